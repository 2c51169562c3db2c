"""Callbacks on a training loop: five events, and the context a loop lends to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class Transition(Protocol):
    """What one call of ``env.step`` produced, batched over environments; anything with these tensors will do."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    truncated: Tensor


def _ignore(*values: Any) -> None:
    """Drop the values: the default of a context whose owner logs nothing."""


@dataclass
class Context:
    """What a training loop lends to its callbacks; any loop can make one.

    Networks and optimizers are keyed by name (``actor``, ``critic_1``, ...); which optimizer trains which network is
    found by parameter identity, so the names need not agree.
    """

    networks: dict[str, nn.Module] = field(default_factory=dict)
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    buffer: Any | None = None
    """The replay buffer; None for on-policy agents."""
    value: Callable[[Tensor, Tensor], Tensor] | None = None
    """Q(observation, action), (batch,), without gradients."""
    log: Callable[[dict[str, float]], None] = _ignore
    """Takes scalars by tag."""
    histogram: Callable[[str, Tensor], None] = _ignore
    """Takes a tag and the values whose distribution to show."""
    event: Callable[[str, dict[str, Any]], None] = _ignore
    """Takes the name of something that was done, and its details: a mark on the time axis."""
    step: int = 0
    """Environment steps so far."""
    name: str = "this run"

    def require(self, name: str, by: str) -> Any:
        """Return the attribute ``name``; raise ValueError naming ``by`` where this run has none."""
        found = getattr(self, name, None)
        if found is None or found == {}:
            what = {"buffer": "a replay buffer", "value": "a value function of (observation, action)"}.get(name, name)
            raise ValueError(f"{by} needs {what}; {self.name} has none")
        return found


class Callback:
    """Observe or change training at five events; every method does nothing until overridden.

    ``docs/events.md`` shows the loop with a mark where each event fires.
    """

    def on_train_start(self, ctx: Context) -> None:
        """Run once before the first step: fail here, with what was needed, what was found and what to pass."""

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Run after ``env.step`` and before the transition is stored; may set ``transition.truncated``."""

    def on_update_start(self, ctx: Context) -> None:
        """Run before ``agent.update()``."""

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Run after ``agent.update()`` with the losses it returned; they are tensors, still on the device."""

    def on_train_end(self, ctx: Context) -> None:
        """Run once after the last step, also when training was stopped by an exception."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the callback needs to go on later: plain values and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


def fire(callbacks: Iterable[Callback], event: str, ctx: Context, *args: Any) -> None:
    """Call ``callback.<event>(ctx, *args)`` on each callback in order."""
    for callback in callbacks:
        getattr(callback, event)(ctx, *args)
