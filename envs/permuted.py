"""Any environment, its observations and actions in another order in every task.

    permute/CartPole-v1, permute/dmc/cartpole-swingup, ...

Task 0 has the usual order. Every later one draws a permutation of the entries of an observation, and one of the
actions: of the choices, or of the entries of a continuous action. Everything else stays, so an agent that has kept its
plasticity learns each task like the first. One action is one step of the simulator unless `action_repeat` says more.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .family import Family
from .stream import Stream, TaskPlan

PREFIX = "permute/"


class Permuted(Stream):
    """Permute observations (n,) and actions; raises ValueError for images."""

    def __init__(self, env: gymnasium.Env, plan: TaskPlan, name: str) -> None:
        box: Any = env.observation_space
        if len(box.shape) != 1:
            raise ValueError(f"{name}: only vectors can be permuted, observations have shape {box.shape}")
        action: Any = env.action_space
        self._discrete = isinstance(action, spaces.Discrete)
        self._sizes = box.shape[0], int(action.n if self._discrete else action.shape[0])
        super().__init__(env, plan)
        self.observation_space = spaces.Box(box.low.min(), box.high.max(), box.shape, box.dtype)

    def begin(self, task: int) -> None:
        """Draw the permutations of the task."""
        rng, (observations, actions) = self.plan.generator("permute", task), self._sizes
        self._order, self._actions = (
            (rng.permutation(observations), rng.permutation(actions))
            if task
            else (np.arange(observations), np.arange(actions))
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the first observation, permuted."""
        obs, info = super().reset(seed=seed, options=options)
        return obs[self._order], info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play the permuted action; return the observation, permuted."""
        obs, *rest = super().step(self._actions[action] if self._discrete else np.asarray(action)[self._actions])
        return (obs[self._order], *rest)


@cache
def _inner(name: str) -> tuple[Family, str]:
    from . import find_family

    inner = name.removeprefix(PREFIX)
    family = find_family(inner)
    if family.make is None or family.stream is not None or family.observe is not None:
        raise ValueError(f"{name}: {inner} cannot be permuted; streams, images and Atari games cannot")
    return family, inner


def _make(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    family, inner = _inner(name)
    assert family.make is not None
    return family.make(inner, seed, max_episode_steps)


def _accepts(name: str) -> bool:
    from . import find_family

    try:
        return name.startswith(PREFIX) and find_family(name.removeprefix(PREFIX)) is not None
    except ValueError:  # what exists and cannot be permuted is refused when it is made
        return False


def _stream(env: gymnasium.Env, name: str, plan: TaskPlan, num_envs: int) -> gymnasium.Env:
    return Permuted(env, plan, name)


def _ids() -> list[str]:
    return [f"{PREFIX}CartPole-v1"]


FAMILY = Family(PREFIX, _ids, _make, accepts=_accepts, stream=_stream, tasks=TaskPlan(steps=50_000, num=10))
