"""A step of a batch of environments, and the protocol of such a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


@dataclass
class Transition:
    """Hold one step of all N environments; no row crosses an episode boundary."""

    obs: Tensor
    """(N, *obs_shape) observations that the agent acted on; float32, or uint8 for images."""
    action: Tensor
    """(N, action_dim) float32 in [-1, 1], or (N,) int64; as the agent sent them, before rescaling."""
    reward: Tensor
    """(N,) float32, summed over the action repeat."""
    next_obs: Tensor
    """(N, *obs_shape) the true successor, never the first observation of the next episode."""
    terminated: Tensor
    """(N,) bool: the task ended; the value of next_obs is 0."""
    truncated: Tensor
    """(N,) bool: the clock (or a callback) ended it; the value of next_obs is bootstrapped. Never with terminated."""
    task: Tensor | None = None
    """(N,) int64: the task in which the action was taken; None for environments without tasks."""


EPISODE_ENDS = "terminated", "truncated"


class Rows(Transition):
    """A transition on the CPU in numpy arrays, whose tensors are made when one asks for them, and kept.

    `arrays` has the fields of `Transition`, except `task`; tensors share their memory. A field that is assigned, such
    as `truncated` by a callback that ends an episode, is in both. `goes_on` says that no episode ended, which saves
    looking at the flags; False says nothing.
    """

    def __init__(self, task: Tensor | None, arrays: dict[str, np.ndarray], goes_on: bool = False) -> None:
        own = self.__dict__  # past __setattr__
        own["task"], own["arrays"], own["goes_on"] = task, arrays, goes_on

    def __getattr__(self, name: str) -> Tensor:
        arrays = vars(self).get("arrays", {})
        if name not in arrays:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        made = vars(self)[name] = torch.from_numpy(arrays[name])
        if name in EPISODE_ENDS:
            vars(self)["goes_on"] = False  # who has the tensor may write to it
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        own = vars(self)
        own[name] = value
        if name in self.arrays:
            own["goes_on"] = False
            own["arrays"] = {**self.arrays, name: torch.as_tensor(value, device="cpu").numpy(force=True)}


@runtime_checkable
class Env(Protocol):
    """Describe a batch of N environments that are reset only when told to."""

    name: str
    """The id it was made from, for example "dmc/cartpole-swingup"."""
    num_envs: int
    observation_space: spaces.Box
    """Of one environment, after adaptation."""
    action_space: spaces.Box | spaces.Discrete
    """Of one environment, after adaptation: Box(-1, 1) in one dimension, or Discrete from 0."""
    task: Tensor | None
    """(N,) int64: the task of the next action, the same tensor until one changes; None before the first reset, and for
    environments without tasks."""

    def reset(self, done: Tensor | None = None) -> Tensor:
        """Start new episodes: of all, or of those where the bool mask (N,) is true; return all observations (N, ...).

        Rows outside the mask keep their current observation. An environment may be reset before its episode ended.
        """
        ...

    def step(self, action: Tensor) -> Transition:
        """Advance every environment by one decision; never resets."""
        ...

    @property
    def obs(self) -> Tensor:
        """The present observations (N, ...), from which a resumed loop goes on."""
        ...

    def set_task(self, task: Tensor | int) -> bool:
        """Let every environment play its task, of (N,) ids or one for all, from the next reset on, and no other.

        Returns False, and changes nothing, where the environments have no method `set_task(task)`.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which the running episodes go on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        """Go on from `state_dict()`; return a bool mask (N,) of the episodes that had to be given up for new ones."""
        ...

    def close(self) -> None:
        """Free the environments' resources; may be called twice."""
        ...
