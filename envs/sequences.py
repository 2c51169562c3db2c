"""Environments in turn, with the same spaces: tasks of one body, or games.

    cdmc/<body>   tasks of one body of dm_control, in a row; 50,000 steps each (1 million in the papers)
    cminatar      Space Invaders, Asterix, Seaquest of MinAtar; 200,000 steps each (2 million in the papers)

After Tang et al. 2025 (C-CHAIN, arXiv 2506.00592; `crl_dmc`, `crl_minatar`). MinAtar's images are padded with empty
channels to 10, and every game takes all 6 actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from . import dmc, extras, minatar_games
from .family import Family
from .journal import env_random_state, set_random_state
from .stream import Stream, TaskPlan

TASKS_OF_BODY = {
    "walker": ("walker-stand", "walker-walk", "walker-run") * 2,
    "quadruped": ("quadruped-walk", "quadruped-run") * 3,
    "dog": ("dog-stand", "dog-walk", "dog-run", "dog-trot") * 2,
}
GAMES_IN_TURN = ("space_invaders", "asterix", "seaquest")
NUM_CHANNELS = 10


class Several(gymnasium.Env):
    """Hold one environment per name, and play the one that was chosen last; raises ValueError where spaces differ."""

    def __init__(self, make: Callable[[str], gymnasium.Env], names: Sequence[str]) -> None:
        self._make, self.names = make, tuple(names)
        self._envs: dict[str, gymnasium.Env] = {}
        self._seed: int | None = None
        self._seeded: set[str] = set()
        self.play(0)
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space

    def play(self, index: int) -> None:
        """Play the environment of a place in `names` from the next reset on; places beyond the last begin again."""
        self.name = self.names[index % len(self.names)]
        if self.name not in self._envs:
            self._envs[self.name] = self._make(self.name)

    @property
    def env(self) -> gymnasium.Env:
        """Return the environment that is played."""
        return self._envs[self.name]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; every environment is seeded at its own first reset, by the seed that came last."""
        if seed is not None:
            self._seed, self._seeded = seed, set()
        own = self._seed if self.name not in self._seeded else None
        self._seeded.add(self.name)
        obs, info = self.env.reset(seed=own, options=options)
        if self.env.observation_space != self.observation_space or self.env.action_space != self.action_space:
            raise ValueError(f"the tasks of a stream must have the same spaces; those of {self.name} differ")
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment that is played."""
        return self.env.step(action)

    def random_state(self) -> dict[str, Any]:
        """Return the random states of all environments so far, and which were seeded."""
        states = {name: env_random_state(env.unwrapped) for name, env in self._envs.items()}
        return {"states": states, "seed": self._seed, "seeded": sorted(self._seeded)}

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Go on from `random_state()`."""
        for name, saved in state["states"].items():
            if name not in self._envs:
                self._envs[name] = self._make(name)
            if name not in state["seeded"]:
                continue
            self._envs[name].reset(seed=state["seed"])  # some draw their model by the seed
            set_random_state(self._envs[name].unwrapped, saved)
        self._seed, self._seeded = state["seed"], set(state["seeded"])

    def render(self) -> Any:
        """Return what the environment that is played shows."""
        return self.env.render()

    def close(self) -> None:
        """Close all."""
        for env in self._envs.values():
            env.close()


class InTurn(Stream):
    """Play the environment of the task."""

    def begin(self, task: int) -> None:
        """Choose the environment."""
        self.env.unwrapped.play(task)  # type: ignore[attr-defined]


class Padded(gymnasium.ObservationWrapper):
    """Pad images with empty channels, and take all actions of MinAtar; those that the game lacks do nothing new."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        shape: Any = env.observation_space.shape
        self.observation_space = spaces.Box(0, 255, (NUM_CHANNELS, *shape[1:]), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """Return (10, height, width) uint8."""
        missing = NUM_CHANNELS - len(observation)
        return np.pad(observation, ((0, missing), (0, 0), (0, 0)))


def _cdmc(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    tasks = TASKS_OF_BODY[name.partition("/")[2]]
    return Several(lambda task: dmc.make_dmc(f"dmc/{task}", seed, max_episode_steps), tasks)


def _cminatar(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    extras.require_extra("minatar", name)

    def make(game: str) -> gymnasium.Env:
        env = minatar_games.MinAtar(game, all_actions=True)
        return Padded(minatar_games.limited(env, max_episode_steps))

    return Several(make, GAMES_IN_TURN)


def _stream(env: gymnasium.Env, name: str, plan: TaskPlan, num_envs: int) -> gymnasium.Env:
    return InTurn(env, plan)


def _bodies() -> list[str]:
    return [f"cdmc/{body}" for body in TASKS_OF_BODY]


CDMC = Family("cdmc/", _bodies, _cdmc, action_repeat=2, stream=_stream, tasks=TaskPlan(steps=50_000, num=6))
"""Tasks of one body of dm_control, in turn."""
CMINATAR = Family("cminatar", lambda: ["cminatar"], _cminatar, stream=_stream, tasks=TaskPlan(steps=200_000, num=3))
"""Three games of MinAtar in turn, with the same channels and actions."""
