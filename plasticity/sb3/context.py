"""The context of an agent: its networks, targets and optimizers by name, how they are called, and its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from torch import nn

from plasticity.callback import Context

from .data import peek_of
from .running import forward_of, state_value_of, value_of

HELD = ("actor", "critic", "q_net", "quantile_net")
"""Names under which off-policy agents hold the networks that they train."""
TRAINED_BY = ("evaluate_actions", "action_log_prob")
"""Methods by which agents call a network in training, beside ``forward``."""


def networks_of(policy: nn.Module) -> dict[str, nn.Module]:
    """Return the networks of a policy that are trained, by name; a policy that is trained as a whole is ``policy``."""
    if hasattr(policy, "evaluate_actions"):
        return {"policy": policy}
    return {name: net for name in HELD if (net := getattr(policy, name, None)) is not None} or {"policy": policy}


def structure_of(policy: nn.Module) -> Context:
    """Return the context of a policy alone: networks, targets and optimizers.

    Raises ValueError for a policy that nothing trains by gradients.
    """
    networks = networks_of(policy)
    optimizers: dict[str, Any] = {}
    for name, net in networks.items():
        optimizers[name] = getattr(net, "optimizer", None) or getattr(policy, "optimizer", None)
        if optimizers[name] is None:
            raise ValueError(
                f"{type(policy).__name__} has no optimizer, so that there are no gradients to look at: "
                f"plasticity.sb3 is for agents that learn by gradient steps"
            )
    found: dict[str, Any] = {name: getattr(policy, f"{name}_target", None) for name in networks}
    targets = {name: target for name, target in found.items() if target is not None}
    return Context(networks, optimizers, targets=targets)


def context_of(model: BaseAlgorithm) -> Context:
    """Return what an agent lends to callbacks: networks, targets, optimizers, replay, values, past transitions."""
    require_gradient_steps(model)
    ctx = structure_of(model.policy)
    if (temperature := getattr(model, "ent_coef_optimizer", None)) is not None:
        ctx.optimizers["ent_coef"] = temperature
    ctx.calls = {n: tuple(m for m in TRAINED_BY if callable(getattr(net, m, None))) for n, net in ctx.networks.items()}
    ctx.forward = {name: forward_of(name, net) for name, net in ctx.networks.items()}
    ctx.buffer = getattr(model, "replay_buffer", None)
    ctx.peek = peek_of(model)
    ctx.value, ctx.state_value = value_of(model), state_value_of(model)
    ctx.set_noise = _noise_of(model)
    ctx.name = type(model).__name__
    return ctx


def require_gradient_steps(model: BaseAlgorithm) -> None:
    """Raise ValueError for TRPO, which moves its policy without its optimizer."""
    if any(kind.__name__ == "TRPO" for kind in type(model).__mro__):
        raise ValueError(
            f"{type(model).__name__} moves its policy by a line search, not by steps of an optimizer, by which "
            f"readings and methods go: use PPO, or plasticity.measure(agent.policy, observations) for a reading by hand"
        )


def write_back(ctx: Context, model: BaseAlgorithm) -> None:
    """Put networks and optimizers that callbacks replaced into the agent."""
    for name, network in ctx.networks.items():
        if name == "policy":
            model.policy = network  # type: ignore[assignment]
        else:
            setattr(model.policy, name, network)
            setattr(model, name, network)
        holder: Any = network if hasattr(network, "optimizer") else model.policy
        holder.optimizer = ctx.optimizers[name]
    for name, target in ctx.targets.items():
        setattr(model.policy, f"{name}_target", target)
        setattr(model, f"{name}_target", target)


def _noise_of(model: BaseAlgorithm) -> Callable[[float], None] | None:
    """Return a function that sets the scale of Gaussian exploration noise; None where there is none."""
    noise = getattr(model, "action_noise", None)
    if not isinstance(noise, (NormalActionNoise, VectorizedActionNoise)):
        return None

    def set_noise(scale: float) -> None:
        for one in noise.noises if isinstance(noise, VectorizedActionNoise) else [noise]:
            if isinstance(one, NormalActionNoise):
                one._sigma = np.full_like(one._sigma, scale)

    return set_noise
