"""Continual Gym control: observations move by a fixed offset per task.

    observation' = observation + offset_task,   offset_0 = 0, otherwise drawn from N(0, 2^2) per entry

The streams of Muppidi et al. 2024 (TRAC) and Tang et al. 2025 (C-CHAIN, arXiv 2506.00592, released code
`crl_gym_classic_control`): 10 tasks of 200 iterations of 800 steps. An episode is cut after 400 steps, and at the end
of an iteration, where the agents of these papers learn. "cgym-short/..." has 40 iterations a task. The papers have
LunarLander-v2 of gym; here it is Gymnasium's v3, with the same physics and the limits of its observations corrected.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .family import Family
from .gym import make_gymnasium
from .stream import Stream, TaskPlan

CONTROL_GAMES = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1", "lunarlander": "LunarLander-v3"}
ITERATION = 800
"""Environment steps after which the agent of the papers learns."""
EPISODE_STEPS = 400
SPREAD = 2.0


class Offset(Stream):
    """Add the offset of the task to every observation, (n,) float32."""

    def __init__(self, env: gymnasium.Env, plan: TaskPlan, cut: int | None = ITERATION) -> None:
        box: Any = env.observation_space
        self.offset = np.zeros(box.shape, dtype=np.float32)
        super().__init__(env, plan, cut)
        self.observation_space = spaces.Box(-np.inf, np.inf, box.shape, np.float32)

    def begin(self, task: int) -> None:
        """Draw the offset of the task."""
        draw = self.plan.generator("offset", task).normal(0.0, SPREAD, self.offset.shape)
        self.offset = (draw if task else np.zeros_like(draw)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the first observation, moved."""
        obs, info = super().reset(seed=seed, options=options)
        return obs + self.offset, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return the observation, moved."""
        obs, *rest = super().step(action)
        return (obs + self.offset, *rest)


def _make(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    game = CONTROL_GAMES[name.partition("/")[2]]
    return make_gymnasium(game, seed, max_episode_steps or EPISODE_STEPS)


def _stream(env: gymnasium.Env, name: str, plan: TaskPlan, num_envs: int) -> gymnasium.Env:
    del name
    cut, rest = divmod(ITERATION, num_envs)
    return Offset(env, plan, None if rest else cut)


def _family(prefix: str, iterations: int) -> Family:
    def ids() -> list[str]:
        return [f"{prefix}{game}" for game in CONTROL_GAMES]

    return Family(prefix, ids, _make, stream=_stream, tasks=TaskPlan(steps=iterations * ITERATION, num=10))


FAMILY = _family("cgym/", 200)
SHORT_FAMILY = _family("cgym-short/", 40)
"""The same with tasks of a fifth of the length."""
