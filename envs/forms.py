"""The project's form of observations and actions: the space, and the function that brings values to it or back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from .floats import FLOAT32, to_float32

OBSERVATIONS = (
    "supported observation spaces are Box, Discrete, MultiBinary, MultiDiscrete, and Dict and Tuple of these; images "
    "are uint8 with three dimensions"
)
ACTIONS = "supported action spaces are Box of floats with finite bounds, and Discrete"

Form = tuple[spaces.Space, Callable[[Any], Any]]


def observation_form(space: spaces.Space | None, name: str) -> Form:
    """Return the form of observations, and the function that brings them to it.

    Numbers and choices (one-hot), and Dict and Tuple of them, become one float32 vector, uint8 images (channels,
    height, width). Raises ValueError, naming `name` and the space, for one that has no such form.
    """
    if isinstance(space, spaces.Box) and is_image(space):
        return image_form(space, name)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) > 3:
        raise ValueError(f"{name}: images of shape {space.shape} have too many dimensions; {OBSERVATIONS}")
    if space is None or not is_vector(space) or not spaces.flatdim(space):
        raise ValueError(f"{name}: cannot use the observation space {space}; {OBSERVATIONS}")
    is_box, dtype, flat = isinstance(space, spaces.Box), space.dtype, cast("spaces.Box", spaces.flatten_space(space))

    def flatten(obs: Any) -> np.ndarray:
        # What spaces.flatten does, without the detour; a copy, as wrappers and journals keep it.
        if is_box and type(obs) is np.ndarray and obs.dtype == dtype:
            return obs.flatten() if dtype == FLOAT32 else to_float32(obs.ravel())
        with np.errstate(over="ignore"):
            return to_float32(np.asarray(spaces.flatten(space, obs)))

    with np.errstate(over="ignore"):
        return spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32), flatten


def is_image(space: spaces.Space | None) -> bool:
    """Return whether `space` is a uint8 Box with three dimensions."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def image_form(space: spaces.Box, name: str) -> Form:
    """Return the space (channels, height, width) of images, and the function that brings images to it.

    Raises ValueError where the shape does not tell which dimension is the channels'.
    """
    if not has_channels_last(space.shape, name):
        return space, np.asarray
    box = spaces.Box(space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1), dtype=np.uint8)
    return box, lambda image: np.asarray(image).transpose(2, 0, 1)


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


def is_vector(space: spaces.Space | None) -> bool:
    """Return whether every part of `space` is numbers or choices, of a fixed number."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return all(map(is_vector, space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces))
    return isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete))


def action_form(space: spaces.Space | None, name: str) -> Form:
    """Return the form of actions, and the function that brings them back to `space`.

    [-1, 1] (n,) for a Box of any shape and bounds, 0..n-1 for a Discrete. Raises ValueError, naming `name` and the
    space, for one that has no such form.
    """
    if isinstance(space, spaces.Discrete):
        start, integer = space.start, space.dtype.type
        return spaces.Discrete(space.n), integer if start == 0 else lambda action: integer(action + start)
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating) or not np.prod(space.shape):
        raise ValueError(f"{name}: cannot use the action space {space}; {ACTIONS}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"{name}: the action space {space} has infinite bounds, so [-1, 1] cannot be mapped to it: give it finite "
            "ones, and leave out ClipAction, as actions are clipped to the bounds anyway"
        )
    centre, half = (low + high) / 2, (high - low) / 2
    shape, dtype, flat = space.shape, space.dtype, len(space.shape) == 1
    unit = bool((low == -1).all() and (high == 1).all())
    if unit:  # untouched, bit for bit
        low, high = low.astype(np.float32), high.astype(np.float32)

    def rescale(action: np.ndarray) -> np.ndarray:
        # An action beyond [-1, 1] (a Gaussian policy's) is clipped, and so is what rounding pushed over a bound;
        # np.clip takes longer.
        scaled = action if flat else action.reshape(shape)
        if not unit:
            scaled = centre + half * scaled.astype(np.float64)
        return np.minimum(np.maximum(scaled, low), high).astype(dtype, copy=False)

    return spaces.Box(-1.0, 1.0, (int(np.prod(space.shape)),), np.float32), rescale
