"""Requirements of an agent on its spaces, and the errors that say what to use instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


def box_dim(space: spaces.Space, name: str, role: str, advice: str) -> int:
    """Return the dimension of a one-dimensional Box; ValueError with `advice` for another space."""
    if not is_box(space) or len(space.shape) != 1:
        raise ValueError(f"{name} needs a one-dimensional Box {role} space, found {space}: {advice}")
    return space.shape[0]


def num_actions(space: spaces.Space, name: str) -> int:
    """Return the number of actions of a Discrete space that counts from 0; ValueError for another space."""
    if not is_discrete(space):
        raise ValueError(f"{name} needs a Discrete action space, found {space}: it chooses one action of a list")
    if space.start != 0:
        raise ValueError(f"{name} needs actions counted from 0, found {space}: shift them in a wrapper")
    return int(space.n)


def obs_shape(space: spaces.Space, name: str) -> tuple[int, ...]:
    """Return the shape of one observation, (dim,) or (channels, height, width); ValueError for another space.

    Images must be uint8, which the networks scale to [0, 1] themselves.
    """
    if is_box(space) and (len(space.shape) == 1 or is_image(space)):
        return space.shape
    raise ValueError(
        f"{name} needs observations that are vectors or uint8 images (channels, height, width), found {space}: wrap it "
        "with gymnasium.wrappers.FlattenObservation, or convert its images"
    )


def obs_dtype(space: spaces.Space) -> torch.dtype:
    """Return how observations are stored and fed to networks: uint8 for images, float32 for vectors."""
    return torch.uint8 if is_image(space) else torch.float32


def is_image(space: spaces.Space) -> bool:
    """Return whether it is a Box of uint8 images."""
    return is_box(space) and len(space.shape) == 3 and space.dtype == "uint8"


def is_box(space: spaces.Space) -> TypeGuard[spaces.Box]:
    """Return whether it is a Box."""
    from gymnasium import spaces

    return isinstance(space, spaces.Box)


def is_discrete(space: spaces.Space) -> TypeGuard[spaces.Discrete]:
    """Return whether it is a Discrete."""
    from gymnasium import spaces

    return isinstance(space, spaces.Discrete)
