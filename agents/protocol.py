"""What the training loop asks of an agent and of an environment: any object with these methods will do."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Agent(Protocol):
    """Something that acts and learns."""

    name: str
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        """Return an action for every observation."""

    def observe(self, transition: Any) -> None:
        """Take in one step of every environment."""

    def ready(self) -> bool:
        """Return whether an update is owed."""

    def update(self) -> dict[str, Tensor]:
        """Learn once; return metrics, still on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to act and to go on: nested dicts of tensors and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""


class Env(Protocol):
    """A batch of environments that are reset only when told to."""

    name: str
    num_envs: int
    obs: Tensor
    """The present observations; what a loop goes on from when it is resumed."""

    def reset(self, done: Tensor | None = None) -> Tensor:
        """Start new episodes, of all environments or of those marked in ``done``; return all observations."""

    def step(self, action: Tensor) -> Any:
        """Advance every environment; return a transition."""

    def close(self) -> None:
        """Free what the environments hold."""
