"""DeepMind Control suite tasks from camera images: the last three, in RGB, 84 x 84."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from . import dmc
from .family import Family
from .wrappers import stack_frames

PREFIX = "dmc-pixels/"
# As in Yarats et al. 2021, "DrQ-v2", arXiv 2107.09645.
FRAMES = 3
INSTALL = "Install EGL or OSMesa (Debian: apt-get install libegl1 libgl1-mesa-dri), or set MUJOCO_GL to what there is"


class Pixels(gymnasium.Wrapper):
    """Observe the image of `env.render()`, (height, width, 3) uint8, once per step.

    Outside an action repeat, so that only images that are seen get rendered. Raises RuntimeError, saying what to
    install, where rendering does not work.
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(0, 255, self._try(name).shape, np.uint8)

    def _try(self, name: str) -> Any:
        try:
            return self.env.render()
        except Exception as error:  # of any kind: a missing library shows up in MuJoCo, in PyOpenGL or in ctypes
            self.env.close()
            backend, reason = os.environ.get("MUJOCO_GL", "not set"), " ".join(str(error).split())
            raise RuntimeError(f"{name} cannot be rendered here (MUJOCO_GL: {backend}; {reason}). {INSTALL}") from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Return the first image."""
        _, info = self.env.reset(seed=seed, options=options)
        return self.env.render(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return the image after the step."""
        _, reward, terminated, truncated, info = self.env.step(action)
        return self.env.render(), reward, terminated, truncated, info


def observe_images(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Give `env` the last three images, oldest first, as (9, height, width) uint8 for an observation."""
    return stack_frames(Pixels(env, name), FRAMES, name)


def pixel_ids() -> list[str]:
    """List the suite's tasks as "dmc-pixels/<domain>-<task>"."""
    return [PREFIX + name.removeprefix(dmc.PREFIX) for name in dmc.dmc_ids()]


def has_pixel_task(name: str) -> bool:
    """Return whether "dmc-pixels/<domain>-<task>" is a task of the suite, in any of its spellings."""
    return name.startswith(PREFIX) and dmc.find_task(name) is not None


FAMILY = Family(
    PREFIX,
    pixel_ids,
    dmc.make_dmc,
    action_repeat=dmc.FAMILY.action_repeat,
    accepts=has_pixel_task,
    observe=observe_images,
)
