"""The part of its state that every agent has: networks, targets, optimizers and random generators, by name."""

import copy
from typing import Any

from .replay import restore_generator


def shared_state(agent: Any) -> dict[str, Any]:
    """Its networks, targets (where it has any), optimizers and generators as nested dicts; tensors are not copied.

    Raises FloatingPointError where a loss was not finite: such a state must not replace a good one.
    """
    agent.finite.verify()
    return {
        "networks": {key: dict(network.state_dict()) for key, network in agent.networks.items()},
        "targets": {key: dict(target.state_dict()) for key, target in getattr(agent, "targets", {}).items()},
        "optimizers": {key: optimizer.state_dict() for key, optimizer in agent.optimizers.items()},
        "generators": {key: generator.get_state() for key, generator in agent.generators.items()},
    }


def load_shared_state(agent: Any, state: dict[str, Any]) -> None:
    """Go on from `shared_state`; learning rates come from the saved optimizers."""
    for kind in ("networks", "targets"):
        for key, network in getattr(agent, kind, {}).items():
            network.load_state_dict(state[kind][key])
    for key, optimizer in agent.optimizers.items():
        optimizer.load_state_dict(copy.deepcopy(state["optimizers"][key]))
    for key, generator in agent.generators.items():
        restore_generator(generator, state["generators"][key])
