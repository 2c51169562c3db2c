"""MinAtar: five Atari games on a grid of 10 x 10 cells.

Young & Tian 2019, "MinAtar", arXiv 1903.03176. The package is under the GPL, so it is an optional dependency and is
imported when a game is made.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from . import extras
from .family import Family

PREFIX = "minatar/"
GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
# MinAtar has no time limit, and in Breakout a policy that never misses would play for ever: an evaluation could not
# end. Freeway ends by itself after 2500 decisions.
MAX_EPISODE_STEPS = 5000


class MinAtar(gymnasium.Env):
    """Play one game with MinAtar's own settings: actions stick with probability 0.1, the difficulty ramps up.

    Observations are (C, 10, 10) uint8: a channel per kind of object, 255 where there is one and 0 elsewhere, so that a
    network that divides images by 255 sees 1 and 0. Actions are the game's minimal set, or all six.
    """

    def __init__(self, game: str, all_actions: bool = False) -> None:
        from minatar import Environment

        self._game = Environment(game)
        self._actions = list(range(self._game.num_actions())) if all_actions else self._game.minimal_action_set()
        height, width, channels = self._game.state_shape()
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)
        self.action_space = spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; a seed starts the game's random numbers again."""
        super().reset(seed=seed)
        if seed is not None:
            self._game.seed(seed)
            self._game.last_action = 0  # else the first action of the old stream could stick in the new one
        self._game.reset()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Play one frame."""
        reward, terminal = self._game.act(self._actions[action])
        return self._observe(), float(reward), bool(terminal), False, {}

    def random_state(self) -> dict[str, Any]:
        """Return the state of the game's random numbers, and the action that could stick."""
        return {**self._game.random.get_state(legacy=False), "last_action": int(self._game.last_action)}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Go on from `random_state()`."""
        self._game.last_action = state["last_action"]
        self._game.random.set_state({key: value for key, value in state.items() if key != "last_action"})

    def _observe(self) -> np.ndarray:
        return -self._game.state().view(np.uint8).transpose(2, 0, 1)  # -1 is 255


def make_minatar(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    """Make one game; raises ModuleNotFoundError without the extra "minatar"."""
    del seed  # comes with the first reset
    extras.require_extra("minatar", name)
    return limited(MinAtar(name.removeprefix(PREFIX)), max_episode_steps)


def limited(env: gymnasium.Env, max_episode_steps: int | None) -> gymnasium.Env:
    """Cut the episodes of a game."""
    return TimeLimit(env, max_episode_steps or MAX_EPISODE_STEPS)


def minatar_ids() -> list[str]:
    """List the games as "minatar/<game>"; all of them, installed or not."""
    return [f"{PREFIX}{game}" for game in GAMES]


FAMILY = Family(PREFIX, minatar_ids, make_minatar)
