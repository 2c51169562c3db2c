"""Wrappers of one Gymnasium environment: the project's form, action repeat, frame stack."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TransformObservation

from .forms import action_form, image_form, observation_form


def adapt(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Return `env` with observations and actions in the project's form.

    Raises ValueError, naming `name` and the space, for a space that has no such form; `env` is closed then.
    """
    try:
        return Adapted(env, name)
    except ValueError:
        env.close()
        raise


class Adapted(gymnasium.Wrapper):
    """Give observations and take actions in the project's form; one wrapper for both, as it runs at every step."""

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self.observation_space, self._observe = observation_form(getattr(env, "observation_space", None), name)
        self.action_space, self._act = action_form(getattr(env, "action_space", None), name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the first observation, in the project's form."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._observe(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play an action, and return the observation, both in the project's form."""
        obs, reward, terminated, truncated, info = self.env.step(self._act(action))
        return self._observe(obs), reward, terminated, truncated, info


def stack_frames(env: gymnasium.Env, num_frames: int, name: str) -> gymnasium.Env:
    """Observe the last `num_frames` images as the channels of one, oldest first; the first image repeats at a reset."""
    box, channels_first = image_form(cast("spaces.Box", env.observation_space), name)
    env = FrameStackObservation(TransformObservation(env, channels_first, box), num_frames)
    space = cast("spaces.Box", env.observation_space)
    shape = (space.shape[0] * space.shape[1], *space.shape[2:])
    stacked = spaces.Box(space.low.reshape(shape), space.high.reshape(shape), dtype=np.uint8)
    return TransformObservation(env, lambda frames: frames.reshape(shape), stacked)


def repeat_actions(env: gymnasium.Env, times: int) -> gymnasium.Env:
    """Return `env` with each action applied `times` times."""
    return ActionRepeat(env, times) if times > 1 else env


class ActionRepeat(gymnasium.Wrapper):
    """Apply each action `times` times, sum the rewards, and stop where the episode ends."""

    def __init__(self, env: gymnasium.Env, times: int) -> None:
        super().__init__(env)
        self.times = times

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Return the last observation and flags with the summed reward."""
        total = 0.0
        for _ in range(self.times):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info
