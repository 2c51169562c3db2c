"""MinAtar Breakout as a vector of 400 numbers, for agents whose reference is a fully connected network."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from minatar import Environment


class FlatBreakout(gymnasium.Env):
    """The game with its own settings; observations (400,) float32, minimal action set."""

    def __init__(self) -> None:
        self.game = Environment("breakout")
        self.actions = self.game.minimal_action_set()
        self.observation_space = spaces.Box(0, 1, (400,), np.float32)
        self.action_space = spaces.Discrete(len(self.actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.game.seed(seed)
        self.game.reset()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward, over = self.game.act(self.actions[action])
        return self._observe(), float(reward), bool(over), False, {}

    def _observe(self) -> np.ndarray:
        return self.game.state().ravel().astype(np.float32)


gymnasium.register("FlatBreakout-v0", entry_point=FlatBreakout, max_episode_steps=5000)
