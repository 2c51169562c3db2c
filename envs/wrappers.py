"""Adapt one Gymnasium environment: flat or image observations, actions in [-1, 1], action repeat, frame stack."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TransformAction, TransformObservation

from .floats import to_float32

OBSERVATIONS = (
    "supported observation spaces are Box, Discrete, and Dict of these; images are uint8 with three dimensions"
)
ACTIONS = "supported action spaces are Box of floats with finite bounds, and Discrete"


def adapt(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Return `env` with observations and actions in the project's form.

    Raises ValueError, naming `name` and the space, for a space that has no such form; `env` is closed then.
    """
    try:
        return rescale_actions(flatten_observations(env, name), name)
    except ValueError:
        env.close()
        raise


def flatten_observations(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Turn Box, Discrete (one-hot) and Dict observations into one float32 vector; uint8 images into (C, H, W)."""
    space = getattr(env, "observation_space", None)
    if is_image(space):
        return channels_first(env, name)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 3:
        raise ValueError(f"{name}: images of shape {space.shape} have too many dimensions; {OBSERVATIONS}")
    low, high = _flat_bounds(space, name)
    is_box, dtype = isinstance(space, spaces.Box), space.dtype

    def flatten(obs: Any) -> np.ndarray:
        if is_box and isinstance(obs, np.ndarray) and obs.dtype == dtype:
            return to_float32(obs.ravel())  # what spaces.flatten does, without the detour
        with np.errstate(over="ignore"):
            return to_float32(np.asarray(spaces.flatten(space, obs)))

    with np.errstate(over="ignore"):
        box = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
    return TransformObservation(env, flatten, box)


def is_image(space: spaces.Space | None) -> bool:
    """Return whether `space` is a uint8 Box with three dimensions."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def channels_first(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Turn images (height, width, channels) into (channels, height, width); leave those that have that form alone.

    Raises ValueError where the shape does not tell which dimension is the channels'.
    """
    space = cast("spaces.Box", env.observation_space)
    if not has_channels_last(space.shape, name):
        return env
    box = spaces.Box(space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1), dtype=np.uint8)
    return TransformObservation(env, lambda image: np.asarray(image).transpose(2, 0, 1), box)


def has_channels_last(shape: tuple[int, ...], name: str) -> bool:
    """Return whether an image (a, b, c) has its channels last: two equal sides are height and width, else the smallest
    dimension is the channels. Cubes count as channels first. Raises ValueError where that is the middle one."""
    first, middle, last = shape
    if first == middle == last:
        return False
    if first == middle or middle == last:
        return first == middle
    if first == last or middle < min(first, last):
        raise ValueError(
            f"{name}: cannot tell the channels of images of shape {shape}; give (height, width, channels) or "
            "(channels, height, width)"
        )
    return last < first


def stack_frames(env: gymnasium.Env, num_frames: int, name: str) -> gymnasium.Env:
    """Observe the last `num_frames` images as the channels of one, oldest first; the first image repeats at a reset."""
    env = FrameStackObservation(channels_first(env, name), num_frames)
    space = cast("spaces.Box", env.observation_space)
    shape = (space.shape[0] * space.shape[1], *space.shape[2:])
    box = spaces.Box(space.low.reshape(shape), space.high.reshape(shape), dtype=np.uint8)
    return TransformObservation(env, lambda frames: frames.reshape(shape), box)


def _flat_bounds(space: spaces.Space | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of the flattened `space`, each (n,) float64, in the order of `spaces.flatten`."""
    if isinstance(space, spaces.Box) and np.prod(space.shape) and space.dtype.kind in "fiub":
        return space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    if isinstance(space, spaces.Discrete):
        return np.zeros(int(space.n)), np.ones(int(space.n))
    if isinstance(space, spaces.Dict) and space.spaces:
        lows, highs = zip(*(_flat_bounds(part, name) for part in space.spaces.values()), strict=True)
        return np.concatenate(lows), np.concatenate(highs)
    raise ValueError(f"{name}: cannot use the observation space {space}; {OBSERVATIONS}")


def rescale_actions(env: gymnasium.Env, name: str) -> gymnasium.Env:
    """Let `env` take actions in [-1, 1] (n,) for a Box of any shape and bounds, and 0..n-1 for a Discrete."""
    space = getattr(env, "action_space", None)
    if isinstance(space, spaces.Discrete):
        start, integer = space.start, space.dtype.type
        return TransformAction(env, lambda action: integer(action + start), spaces.Discrete(space.n))
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating) or not np.prod(space.shape):
        raise ValueError(f"{name}: cannot use the action space {space}; {ACTIONS}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"{name}: the action space {space} has infinite bounds, so [-1, 1] cannot be mapped to it")
    centre, half = (low + high) / 2, (high - low) / 2
    unit = bool((low == -1).all() and (high == 1).all())

    def rescale(action: np.ndarray) -> np.ndarray:
        # Bounds of exactly -1 and 1 leave the action untouched, bit for bit. An action beyond [-1, 1] (a Gaussian
        # policy's) is clipped, and so is what rounding pushed over a bound; np.clip takes longer.
        scaled = action.astype(np.float64).reshape(space.shape)
        if not unit:
            scaled = centre + half * scaled
        return np.minimum(np.maximum(scaled, low), high).astype(space.dtype)

    return TransformAction(env, rescale, spaces.Box(-1.0, 1.0, (int(np.prod(space.shape)),), np.float32))


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
