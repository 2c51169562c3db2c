"""How to run an agent's networks on a batch, and its values of states and actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn


def forward_of(name: str, network: nn.Module) -> Callable[[nn.Module, Any], Tensor]:
    """Return ``(module, batch) -> output``, (batch, outputs), for the network of this name, a copy or its target."""
    if name == "critic":
        return lambda module, batch: side_by_side(module(batch.obs, batch.action))
    if hasattr(network, "get_action_dist_params"):  # SAC, TQC, CrossQ: mean and log_std
        return lambda module, batch: side_by_side(module.get_action_dist_params(batch.obs)[:2])  # type: ignore[operator]
    if hasattr(network, "evaluate_actions"):
        return of_heads
    return lambda module, batch: side_by_side(module(batch.obs))


def side_by_side(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the outputs of several heads side by side, (batch, outputs)."""
    parts = (output,) if isinstance(output, Tensor) else output
    return torch.cat([part.flatten(1) for part in parts], -1)


def of_heads(policy: Any, batch: Any) -> Tensor:
    """Return what the heads of actor and critic put out, (batch, actions + 1), in the pass that trains them.

    A recurrent policy begins every state of the batch with an empty memory.
    """
    found: list[Tensor] = []
    hooks = [
        head.register_forward_hook(lambda module, args, output: found.append(output))
        for head in (policy.action_net, policy.value_net)
    ]
    try:
        policy.evaluate_actions(batch.obs, batch.action, *_empty_memory(policy, len(batch.action)))
    finally:
        for hook in hooks:
            hook.remove()
    return side_by_side(tuple(found))


def _empty_memory(policy: Any, num: int) -> tuple[Any, ...]:
    """Return the states and episode starts that a recurrent policy takes; nothing for others."""
    if not hasattr(policy, "lstm_actor"):
        return ()
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    layers, _, size = policy.lstm_hidden_state_shape
    zeros = (torch.zeros(layers, num, size, device=policy.device),) * 2
    return RNNStates(zeros, zeros), torch.ones(num, device=policy.device)


def value_of(model: BaseAlgorithm) -> Callable[[Any, Tensor], Tensor] | None:
    """Return Q(observation, action), (batch,): of the least of several critics, the mean of quantiles; None without."""
    if not hasattr(model, "replay_buffer"):
        return None
    policy: Any = model.policy

    @torch.no_grad()
    def value(obs: Any, action: Tensor) -> Tensor:
        if hasattr(policy, "critic"):
            found = policy.critic(obs, action)
            if isinstance(found, Tensor):  # TQC: (batch, critics, quantiles)
                return found.mean(-1).amin(-1)
            return torch.cat(found, -1).amin(-1)
        found = policy.q_net(obs) if hasattr(policy, "q_net") else policy.quantile_net(obs).mean(1)
        return found.gather(1, action.long().reshape(-1, 1)).flatten()

    return value


def state_value_of(model: BaseAlgorithm) -> Callable[[Any], Tensor] | None:
    """Return V(observation), (batch,), of agents that learn one and need no memory for it; None of others."""
    policy: Any = model.policy
    if not hasattr(policy, "predict_values") or hasattr(policy, "lstm_actor"):
        return None

    @torch.no_grad()
    def value(obs: Any) -> Tensor:
        return policy.predict_values(obs).flatten()

    return value
