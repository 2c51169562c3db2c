"""DeepMind Control suite tasks as Gymnasium environments."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from . import extras
from .family import Family
from .floats import to_float32
from .graphics import set_default_gl

PREFIX = "dmc/"
# Other names that papers use for a domain.
ALIASES = {"cup": "ball_in_cup", "pointmass": "point_mass"}
# Its controls are unbounded, so there is nothing to map [-1, 1] to.
UNBOUNDED = {"lqr"}
# What papers look at from pixels: the first camera, except where it does not follow the body.
CAMERAS = {"quadruped": 2}
IMAGE_SIZE = 84
# On a CPU these take nine tenths of the time; at 84 x 84 pixels they show nothing that an agent could use.
FLAGS = {"shadow": False, "reflection": False}
# mujoco.mjMAXVAL: what dm_control reports as the bound of a control that has none.
NO_BOUND = 1e10


class DMControl(gymnasium.Env):
    """Run one suite task: observations (n,) float32 in the task's own key order, its own bounds for actions.

    The end of the time limit truncates; a discount of 0 terminates. `reset(seed=s)` gives exactly the first episode of
    `suite.load(domain, task, {"random": s})`, later resets its following ones. `timed=False` removes the time limit.
    """

    def __init__(self, domain: str, task: str, seed: int | None = None, timed: bool = True) -> None:
        self.domain, self.task_name, self.timed = domain, task, timed
        self._load(seed)
        spec = self._env.action_spec()
        low = np.where(spec.minimum <= -NO_BOUND, -np.inf, spec.minimum)
        high = np.where(spec.maximum >= NO_BOUND, np.inf, spec.maximum)
        self.action_space = spaces.Box(low, high, spec.shape, np.float64)
        size = sum(int(np.prod(part.shape)) for part in self._env.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def _load(self, seed: int | None) -> None:
        task_kwargs: dict[str, Any] = {"random": seed}
        if not self.timed:
            task_kwargs["time_limit"] = float("inf")
        self._env = _suite().load(self.domain, self.task_name, task_kwargs)
        self._env.physics.model.vis.quality.offsamples = 0  # no anti-aliasing, see FLAGS; read at the first render
        self._seed, self._fresh = seed, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode; a seed loads the task anew, because some tasks draw their model as well."""
        super().reset(seed=seed)
        if seed is not None and not (self._fresh and seed == self._seed):
            self._load(seed)
        self._fresh = False
        return concatenated(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply `action` for one control step."""
        result = self._env.step(action)
        terminated = result.last() and result.discount == 0.0
        truncated = result.last() and not terminated
        info = {"discount": result.discount}
        return concatenated(result.observation), float(result.reward), terminated, truncated, info

    def random_state(self) -> dict[str, Any]:
        """Return the state of the task's own random numbers."""
        return self._env.task.random.get_state(legacy=False)

    def set_random_state(self, state: dict[str, Any]) -> None:
        """Go on from `random_state()`."""
        self._env.task.random.set_state(state)

    def render(self) -> np.ndarray:  # type: ignore[override]  # Gymnasium's may also return lists and text
        """Return what the task's camera sees, (84, 84, 3) uint8, without shadows, reflections and anti-aliasing."""
        return self.picture(IMAGE_SIZE)

    def picture(self, size: int) -> np.ndarray:
        """Return the same with another number of pixels per side."""
        camera = CAMERAS.get(self.domain, 0)
        return self._env.physics.render(size, size, camera, render_flag_overrides=FLAGS)

    def close(self) -> None:
        """Release the simulation."""
        self._env.close()


def concatenated(observation: dict[str, Any]) -> np.ndarray:
    """Concatenate a suite observation to (n,) float32 in its own key order."""
    return to_float32(np.concatenate(list(observation.values()), axis=None))


def _suite(name: str = "dm_control's suite") -> ModuleType:
    """Import the suite when it is first needed: it costs a second, and a graphics library.

    Raises ModuleNotFoundError, saying what to do, where there is no dm_control: `name` is what needs it.
    """
    extras.require_extra("dm-control", name)
    set_default_gl()
    from dm_control import suite

    return suite


def find_task(name: str) -> tuple[str, str] | None:
    """Return (domain, task) for "dmc/<domain>-<task>", hyphens and underscores alike; None if there is none.

    The part before the slash is ignored.
    """
    words = _normalise(name.partition("/")[2])
    for alias, domain in ALIASES.items():
        if words.startswith(f"{alias}_"):
            words = domain + words.removeprefix(alias)
    return {_normalise(f"{domain}-{task}"): (domain, task) for domain, task in _suite(name).ALL_TASKS}.get(words)


def _normalise(words: str) -> str:
    return words.replace("-", "_").lower()


def make_dmc(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    """Make one suite task; `max_episode_steps` counts control steps and replaces the task's own time limit."""
    found = find_task(name)
    if found is None:
        raise ValueError(f"{name} is not a task of dm_control's suite")
    if max_episode_steps is None:
        return DMControl(*found, seed=seed)
    return TimeLimit(DMControl(*found, seed=seed, timed=False), max_episode_steps)


def dmc_ids() -> list[str]:
    """List the suite's tasks that can be made, as "dmc/<domain>-<task>"; none without dm_control."""
    if not extras.installed("dm-control"):
        return []
    return [f"{PREFIX}{domain}-{task}" for domain, task in _suite().ALL_TASKS if domain not in UNBOUNDED]


def has_task(name: str) -> bool:
    """Return whether "dmc/<domain>-<task>" is a task of the suite, in any of its spellings."""
    return name.startswith(PREFIX) and find_task(name) is not None


FAMILY = Family(PREFIX, dmc_ids, make_dmc, action_repeat=2, accepts=has_task)
