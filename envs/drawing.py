"""Pictures of a running environment, without a screen."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np

SIZE = 320
"""Pixels per side where an environment can be asked; of others, the least that a picture is enlarged to."""


def picture(env: gymnasium.Env | None, obs: np.ndarray, name: str) -> np.ndarray:
    """Return a picture (height, width, 3) uint8 of an environment; of one that draws none, its image observation `obs`.

    Raises RuntimeError with the environment's own reason, or for one that has neither.
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws into memory
    inner: Any = None if env is None else env.unwrapped
    drawn = None
    try:
        if hasattr(inner, "picture"):
            drawn = inner.picture(SIZE)
        elif inner is not None:
            if inner.render_mode is None and "rgb_array" in inner.metadata.get("render_modes", ()):
                inner.render_mode = "rgb_array"  # as if made with it: these environments read it when they draw
            drawn = inner.render()
    except NotImplementedError:
        pass
    except Exception as error:  # a missing package, no graphics: whatever it says
        raise RuntimeError(f"{name} cannot be drawn here: {type(error).__name__}: {error}") from error
    if drawn is None and obs.dtype == np.uint8 and obs.ndim == 3:
        drawn = of_channels(obs)
    if not (isinstance(drawn, np.ndarray) and drawn.ndim == 3 and drawn.shape[2] == 3):
        raise RuntimeError(f"{name} cannot be drawn: it has no render() that returns an image")
    return enlarged(drawn.astype(np.uint8))


def of_channels(obs: np.ndarray) -> np.ndarray:
    """Return an image observation (channels, height, width) as a picture.

    The last three of a multiple of three channels are colours, those of up to four are frames of which the last is
    shown, and more are kinds of objects, a colour each.
    """
    channels = len(obs)
    if channels % 3 == 0 and channels <= 12:
        return obs[-3:].transpose(1, 2, 0)
    if channels < 5:
        return np.repeat(obs[-1][:, :, None], 3, 2)
    angle = 2 * np.pi * np.arange(channels)[:, None] / channels + np.array([0, 2, 4]) * np.pi / 3
    colours = 0.6 + 0.4 * np.cos(angle)
    return np.clip(np.tensordot(obs / 255, colours, (0, 0)) * 255, 0, 255).astype(np.uint8)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Return a small picture with every pixel repeated, so that its shorter side has some 320 pixels."""
    times = max(1, SIZE // min(image.shape[:2]))
    return image.repeat(times, 0).repeat(times, 1)
