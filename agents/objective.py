"""The function that a gradient step differentiates: a loss and its terms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .compiled import Loss
from .constants import constants_of
from .terms import LossTerm, Networks

Split = Callable[..., dict[str, Tensor]]
"""`split(batch, *more)` returns the parts by name of which a loss is the sum."""


class Objective:
    """The loss of one step with its terms, as one function of its inputs: those of the loss, then the draws."""

    def __init__(
        self, loss: Loss, terms: Mapping[str, LossTerm], networks: Networks, step: str, num_inputs: int
    ) -> None:
        self.loss, self.terms, self.networks, self.step = loss, terms, networks, step
        self.num_inputs = num_inputs

    def __call__(self, *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.loss(*inputs[: self.num_inputs])
        for name, value in self._added(inputs, metrics):
            loss, metrics = loss + value, {**metrics, name: value}
        return loss, metrics

    def parts(self, split: Split | None, *inputs: Any) -> dict[str, Tensor]:
        """Return the parts of the loss by name, as `split` has them of the same inputs, and the terms."""
        own = inputs[: self.num_inputs]
        found = {"loss": self.loss(*own)[0]} if split is None else split(*own)
        return {**found, **dict(self._added(inputs, found))}

    def _added(self, inputs: Sequence[Any], taken: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield each term's name and value; RuntimeError for a name that is taken, or a term that fails."""
        drawn = iter(inputs[self.num_inputs :])
        for name, term in self.terms.items():
            with self._blamed(name):
                if name in taken:
                    raise ValueError("the loss has a metric of that name: choose another one")
                value = term.value(self.networks, inputs[0], () if term.draw is None else (next(drawn),))
            yield name, value

    def draw(self) -> list[Any]:
        """Return the fresh draws of the terms that have any."""
        found: list[Any] = []
        for name, term in self.terms.items():
            with self._blamed(name):
                found += term.drawn()
        return found

    def key(self) -> Hashable:
        """Return a key of the terms."""
        return tuple((name, constants_of(term.term), tuple(term.reads)) for name, term in self.terms.items())

    def _blamed(self, term: str) -> Any:
        return blamed(f"the term {term!r} of the step {self.step!r}")


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Within, raise an error as RuntimeError that says what failed."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what} failed: {type(error).__name__}: {error}") from error
