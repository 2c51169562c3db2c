"""Terms that are added to the loss of a gradient step, and projections that run behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from torch import Tensor, nn

Networks = Mapping[str, nn.Module]
Term = Callable[..., Tensor]
"""`term(networks, batch)` returns a 0-D tensor that is added to the loss; see `LossTerm` for more inputs."""
Projection = Callable[[Networks], None]
"""`project(networks)` moves weights in place, without gradients, after a step of the optimizer."""


@dataclass(frozen=True, eq=False)
class LossTerm:
    """A term with inputs of its own: ``term(networks, batch)``, or ``term(networks, batch, drawn)`` with `draw`."""

    term: Term
    reads: Networks = field(default_factory=dict)
    """Further modules, by names that the agent's networks do not have: the term finds them among its `networks`."""
    draw: Callable[[], Any] | None = None
    """Returns a tensor or a batch, anew for every step."""

    def named(self, networks: Networks) -> dict[str, nn.Module]:
        """Return the networks of the agent and those that the term reads; ValueError for a name that both have."""
        if both := networks.keys() & self.reads.keys():
            raise ValueError(f"it reads {sorted(both)}, which the agent has already: give them other names")
        return {**networks, **self.reads}

    def drawn(self) -> tuple[Any, ...]:
        """Return the fresh draw, empty without `draw`; TypeError if it is neither a tensor nor a batch."""
        if self.draw is None:
            return ()
        found = self.draw()
        if not isinstance(found, Tensor) and (isinstance(found, type) or not is_dataclass(found)):
            raise TypeError(f"its draw returned {type(found).__name__}, not a tensor or a batch")
        return (found,)

    def value(self, networks: Networks, batch: Any, drawn: tuple[Any, ...]) -> Tensor:
        """Return the term; TypeError unless it is a 0-D tensor."""
        found = self.term(self.named(networks), batch, *drawn)
        if not isinstance(found, Tensor) or found.dim():
            shape = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"it must return a 0-D tensor, and returned {shape}")
        return found


def as_term(term: Term) -> LossTerm:
    """Return the term with inputs of its own: none, for a plain function."""
    return term if isinstance(term, LossTerm) else LossTerm(term)
