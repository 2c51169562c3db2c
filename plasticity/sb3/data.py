"""Past transitions of an agent, looked at without a trace in what it will draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from plasticity.isolation import other_generators


@dataclass
class PastSteps:
    """Past transitions as an agent's networks take them; the first dimension is the batch."""

    obs: Any
    """A tensor, or a dict of tensors by key."""
    action: Tensor
    next_obs: Any = None
    reward: Tensor | None = None
    terminated: Tensor | None = None


def peek_of(model: BaseAlgorithm) -> Callable[[int, torch.Generator], PastSteps] | None:
    """Return ``peek(num, generator)``, of the replay or of the last rollout; None for agents that have neither.

    While these are empty, as in an agent that was just loaded, it is the present states, with the agent's choices.
    """
    look = next((look for name, look in LOOKS.items() if getattr(model, name, None) is not None), None)
    if look is None:
        return None
    return lambda num, generator: look(model, num, generator)


def _replayed(model: Any, num: int, generator: torch.Generator) -> PastSteps:
    """Return transitions of the replay."""
    buffer = model.replay_buffer
    if not buffer.size():
        return _present(model, num, generator)
    rows = buffer.size() - int(buffer.full and getattr(buffer, "optimize_memory_usage", False))
    ages = 1 + torch.randint(rows, (num,), generator=generator).numpy()
    seed = int(torch.randint(2**31, (), generator=generator))
    with other_generators():
        np.random.seed(seed)  # the buffer draws which of its environments
        found = buffer._get_samples((buffer.pos - ages) % buffer.buffer_size, env=model._vec_normalize_env)
    return PastSteps(
        found.observations,
        found.actions,
        found.next_observations,
        found.rewards.flatten(),
        found.dones.flatten().bool(),
    )


def _rolled_out(model: Any, num: int, generator: torch.Generator) -> PastSteps:
    """Return states and actions of the last rollout."""
    buffer = model.rollout_buffer
    if not buffer.size():
        return _present(model, num, generator)
    steps = len(buffer.actions) if buffer.generator_ready else buffer.size()
    envs = 1 if buffer.generator_ready else buffer.n_envs
    draw = torch.randint(steps * envs, (num,), generator=generator).numpy()

    def take(values: Any) -> Any:
        if isinstance(values, dict):
            return {key: take(value) for key, value in values.items()}
        return buffer.to_torch(values[draw] if buffer.generator_ready else values[draw // envs, draw % envs])

    actions = take(buffer.actions)
    return PastSteps(
        take(buffer.observations), actions.long().flatten() if hasattr(model.action_space, "n") else actions
    )


def _present(model: Any, num: int, generator: torch.Generator) -> PastSteps:
    """Return the present states of the environments; ValueError before the first."""
    if model._last_obs is None:
        raise ValueError(f"{type(model).__name__} has seen nothing yet: there are no transitions to look at")
    draw = torch.randint(model.n_envs, (num,), generator=generator)
    obs = model.policy.obs_to_tensor(model._last_obs)[0]
    action = model.predict(model._last_obs, deterministic=True)[0]
    if isinstance(model.action_space, spaces.Box) and model.policy.squash_output:
        action = model.policy.scale_action(action)
    chosen = {key: value[draw] for key, value in obs.items()} if isinstance(obs, dict) else obs[draw]
    return PastSteps(chosen, torch.as_tensor(action, device=model.device)[draw])


LOOKS = {"replay_buffer": _replayed, "rollout_buffer": _rolled_out}
"""Attribute of an agent that holds its past transitions -> how to look at them."""
