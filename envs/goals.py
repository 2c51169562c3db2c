"""Point in the plane with four equally good goals: how many does a policy reach?

After the multi-goal task of Haarnoja et al. 2017 (arXiv 1702.08165, section 5.1), whose goals and steps are larger.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from .family import Family

PREFIX = "goals/"
GOALS = np.array([[0.8, 0.0], [0.0, 0.8], [-0.8, 0.0], [0.0, -0.8]])
RADIUS, STRIDE, START, LIMIT, PRIZE = 0.15, 0.15, 0.05, 30, 10.0


def goal_of(position: Any) -> int:
    """Return the number of the goal that a position (2,) has reached, -1 for none."""
    distances = np.linalg.norm(GOALS - np.asarray(position, dtype=np.float64), axis=1)
    return int(distances.argmin()) if distances.min() <= RADIUS else -1


class FourGoals(gymnasium.Env):
    """Walk from the middle to a goal: 10 there, which ends the episode, else minus the distance to the nearest one.

    Observations are the position, (2,) in [-1, 1]; an action moves it by at most 0.15 in each direction. ``reached``
    counts the episodes that ended in each goal.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.reached = np.zeros(len(GOALS), np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start within 0.05 of the middle."""
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-START, START, 2)
        return self.position.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move, and stop at the walls."""
        moved = self.position + STRIDE * np.clip(np.asarray(action, dtype=np.float64), -1, 1)
        self.position = moved.clip(-1, 1)
        goal = goal_of(self.position)
        if goal >= 0:
            self.reached[goal] += 1
        reward = PRIZE if goal >= 0 else -float(np.linalg.norm(GOALS - self.position, axis=1).min())
        return self.position.astype(np.float32), reward, goal >= 0, False, {"goal": goal}


def _make(name: str, seed: int, limit: int | None) -> gymnasium.Env:
    return TimeLimit(FourGoals(), limit or LIMIT)


FAMILY = Family(PREFIX, lambda: [f"{PREFIX}four"], _make)
