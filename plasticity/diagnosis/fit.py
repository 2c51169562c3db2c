"""The fit probe: a copy of a network learns something for a few steps, and its loss over these steps is the result.

Aged and fresh networks that learn the same on the same batches in the same order are compared by such curves: Lyle et
al. 2023, *Understanding Plasticity in Neural Networks*, arXiv 2303.01486, section 3; the area as in the testbed of
Felix-Zhenghao/rigorous-plasticity (trapezoid over updates, divided by their number).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

LAST_LOSSES = 5
"""Losses at the end of a fit whose mean is its final loss: one minibatch alone is noisy."""


class AtWork(Protocol):
    """A method at work on the copy."""

    def before(self) -> None:
        """Begin an update."""

    def extra(self, batch: Any) -> Tensor | float:
        """Return what is added to the loss."""

    def after(self) -> None:
        """End an update."""


@dataclass(frozen=True)
class FitCurve:
    """Losses over the steps of a fit, inf from the first one on that was not finite."""

    losses: tuple[float, ...]
    steps: tuple[int, ...] = ()
    """The update before which each loss was measured; left out, 0, 1, 2, ..."""

    @property
    def at(self) -> tuple[int, ...]:
        """The updates before which the losses were measured."""
        return self.steps or tuple(range(len(self.losses)))

    @property
    def first(self) -> float:
        """The loss before the first update."""
        return self.losses[0]

    @property
    def final(self) -> float:
        """The mean of the last five losses, or of all if there are fewer."""
        last = self.losses[-LAST_LOSSES:]
        return sum(last) / len(last)

    @property
    def area(self) -> float:
        """The mean loss over the updates: the area under the curve by trapezoids, divided by the number of updates."""
        return _area(self.at, self.losses)

    @property
    def learned(self) -> float:
        """The mean share of the lesson that was known over the updates, at most 1; 0: nothing, or worse than that.

        Only for losses that are 1 for a network that learns nothing. A loss above 1 counts as 1, so that a fit which
        diverges is not worse than one that stands still, and the measure has bounds.
        """
        return 1.0 - _area(self.at, [min(loss, 1.0) for loss in self.losses])

    def fall(self, num_batches: int = 1) -> float:
        """Return the mean of the first fifth of the losses minus that of the last; 0 where these are not finite.

        ``num_batches``: those that the fit goes round. Both means are over as many whole rounds as a fifth has, at
        least one, so that no batch counts more in one of them; a fit that is too short for two rounds has fifths.
        """
        fifth = max(1, len(self.losses) // 5)
        rounds = num_batches * max(1, fifth // num_batches)
        size = rounds if 2 * rounds <= len(self.losses) else fifth
        start, end = sum(self.losses[:size]), sum(self.losses[-size:])
        return (start - end) / size if math.isfinite(start) and math.isfinite(end) else 0.0

    def steps_to(self, loss: float) -> float:
        """Return the first update after which the loss is at most ``loss``; inf where it never is."""
        return next((float(step) for step, value in zip(self.at, self.losses, strict=True) if value <= loss), math.inf)


def _area(steps: Sequence[int], losses: Sequence[float]) -> float:
    if len(losses) < 2:
        return losses[0]
    pairs = pairwise(zip(steps, losses, strict=True))
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairs) / (steps[-1] - steps[0])


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    steps: int,
    weight: float = 1.0,
    attached: AtWork | None = None,
) -> FitCurve:
    """Train ``model`` in place for ``steps`` updates on ``loss(model, batch)`` and return its losses.

    Batches are taken in order, again and again. Each loss is measured before its update, and once more after the last
    one. ``weight``: factor of the loss that is differentiated, not of those returned. ``attached``: a method that is at
    work meanwhile. A loss without a gradient updates nothing. Give copies: see ``trainee.py``. Raises ValueError for a
    loss that is not one number.
    """
    found: list[Tensor] = []
    with torch.enable_grad():
        for step in range(steps + 1):
            value = one_number(loss(model, batch := batches[step % len(batches)]))
            found.append(value.detach().reshape(()).double())
            if step < steps and value.requires_grad:
                _update(optimizer, partial(loss, model, batch), value, weight, attached)
    return FitCurve(_finite(torch.stack(found).tolist()))


def _update(optimizer: Optimizer, loss: partial[Tensor], value: Tensor, weight: float, attached: AtWork | None) -> None:
    """Take one update on a loss whose ``value`` is known; LBFGS asks for it again."""
    known = [value]

    def backward() -> Tensor:
        total = (known.pop() if known else loss()) * weight
        total = total if attached is None else total + attached.extra(loss.args[1])
        optimizer.zero_grad()
        total.backward()
        return total

    if attached is not None:
        attached.before()
    if isinstance(optimizer, LBFGS):
        optimizer.step(backward)  # type: ignore[arg-type]
    else:
        backward()
        optimizer.step()
    if attached is not None:
        attached.after()


def _finite(losses: Sequence[float]) -> tuple[float, ...]:
    """Return the losses, with inf from the first one on that is not finite."""
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    return (*losses[:end], *[math.inf] * (len(losses) - end))


def one_number(loss: Any) -> Tensor:
    """Return a loss; raise ValueError unless it is a tensor of one element."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss must be one number, a tensor of one element; got {found}")
    return loss
