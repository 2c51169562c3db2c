"""What crosses the seam between environments and everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gymnasium import spaces
from torch import Tensor


@dataclass
class Transition:
    """Hold one step of all N environments; no row crosses an episode boundary."""

    obs: Tensor
    """(N, *obs_shape) what the agent saw; float32, or uint8 for images."""
    action: Tensor
    """(N, action_dim) float32 in [-1, 1], or (N,) int64; what the agent sent, before rescaling."""
    reward: Tensor
    """(N,) float32, summed over the action repeat."""
    next_obs: Tensor
    """(N, *obs_shape) the true successor, never the first observation of the next episode."""
    terminated: Tensor
    """(N,) bool: the task ended; the value of next_obs is 0."""
    truncated: Tensor
    """(N,) bool: the clock (or a callback) ended it; the value of next_obs is bootstrapped. Never with terminated."""


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

    def state_dict(self) -> dict[str, Any]:
        """Return what the running episodes go on from."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        """Go on from `state_dict()`; return a bool mask (N,) of the episodes that had to be given up for new ones."""
        ...

    def close(self) -> None:
        """Free what the environments hold; may be called twice."""
        ...
