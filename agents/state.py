"""The state that all agents have: networks, targets, optimizers and random generators, by name."""

import copy
from typing import Any

from .replay import restore_generator


def shared_state(agent: Any) -> dict[str, Any]:
    """Return an agent's networks, targets, optimizers and generators as nested dicts; tensors are not copied.

    Raises FloatingPointError where a loss was not finite: such a state must not replace a good one.
    """
    agent.finite.verify()
    return {
        "networks": {key: dict(network.state_dict()) for key, network in agent.networks.items()},
        "targets": {key: dict(target.state_dict()) for key, target in getattr(agent, "targets", {}).items()},
        "optimizers": {key: optimizer.state_dict() for key, optimizer in agent.optimizers.items()},
        "optimizer_kinds": {key: type(optimizer).__name__ for key, optimizer in agent.optimizers.items()},
        "generators": {key: generator.get_state() for key, generator in agent.generators.items()},
    }


def load_shared_state(agent: Any, state: dict[str, Any]) -> None:
    """Go on from `shared_state`; learning rates come from the saved optimizers.

    Raises ValueError, with nothing changed, for an optimizer of another kind than was saved.
    """
    for key, optimizer in agent.optimizers.items():
        saved, here = state["optimizer_kinds"].get(key), type(optimizer).__name__
        if saved != here:
            raise ValueError(
                f"{agent.name}: its optimizer {key} was saved as {saved}, and is {here} now; a callback that replaces "
                f"an optimizer must do so in restructure, and be given again when the run goes on"
            )
    for kind in ("networks", "targets"):
        for key, network in getattr(agent, kind, {}).items():
            network.load_state_dict(state[kind][key])
    for key, optimizer in agent.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(state["optimizers"][key]))
    for key, generator in agent.generators.items():
        restore_generator(generator, state["generators"][key])
