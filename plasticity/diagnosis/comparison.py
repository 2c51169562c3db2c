"""Aged against fresh in one lesson: is the aged network slower than another fresh one would be, and by how much.

The null distribution is that of fresh networks: each of them, like the aged one, learns from all teachers, and the
spread of their means says how much chance alone does. The aged network is slower where its mean lies below the interval
in which the mean of one more fresh network would lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .fit import FitCurve
from .intervals import Estimate, of_mean, of_next_amount, of_ratio
from .trials import AGED, FRESH, OWN, Change, Trials

TAUGHT = 0.01
"""Share of a lesson from which on fresh networks learn more than next to nothing."""


@dataclass(frozen=True)
class Size:
    """Numbers of an examination."""

    teachers: int = 4
    fresh: int = 6
    """Fresh networks: their spread is the null distribution."""


@dataclass(frozen=True)
class Comparison:
    """The curves of the aged and the fresh networks in one lesson."""

    lesson: str
    rate: float | None
    aged: tuple[FitCurve, ...]
    """One per teacher."""
    fresh: tuple[tuple[FitCurve, ...], ...]
    """Fresh network -> one per teacher."""
    num_batches: int = 1
    """Batches that the fits went round."""

    def outcome(self, curve: FitCurve) -> float:
        """Return how well a fit went, higher is better: the share learned; on the own loss, its fall to the final one.

        The own loss falls from that of an untrained network, the highest first loss of the fresh ones; to end above it
        counts as 0, as it does in the other lessons.
        """
        if self.lesson != OWN:
            return curve.learned
        start = max(c.first for curves in self.fresh for c in curves)
        return start - min(curve.final, start)

    @property
    def null(self) -> Estimate:
        """The outcome of fresh networks, and the interval in which that of another one would lie."""
        return of_next_amount([_mean(list(map(self.outcome, curves))) for curves in self.fresh])

    @property
    def learned(self) -> Estimate:
        """The outcome of the aged network, with its interval over teachers."""
        return of_mean(list(map(self.outcome, self.aged)))

    @property
    def is_slower(self) -> bool:
        """Return whether the aged network learned less than another fresh one would."""
        return self.learned.value < self.null.low

    @property
    def fresh_learns(self) -> bool:
        """Return whether fresh networks learn anything: their mean is above 0 beyond chance, or all of them are.

        At a small rate the own loss falls by amounts that differ tenfold between networks, and their mean has an
        interval that reaches below 0 where each of them learns.
        """
        gains = [_mean(list(map(self.gain, curves))) for curves in self.fresh]
        return min(gains) > 0 or of_mean(gains).low > 0

    @property
    def tells(self) -> bool:
        """Return whether a network that learns nothing could be told from another fresh one."""
        return self.null.low > 0

    @property
    def fresh_learn_enough(self) -> bool:
        """Return whether fresh networks learn a hundredth of the lesson or more, for good; less is next to nothing.

        Losses that have blown up in the end are no learning, however low they were before.
        """
        fresh = [curve for curves in self.fresh for curve in curves]
        falls = _mean([curve.final for curve in fresh]) < _mean([curve.first for curve in fresh])
        return falls and self.fresh_learns and self.tells and self.null.value >= TAUGHT

    def gain(self, curve: FitCurve) -> float:
        """Return what was learned in a fit: the share, or the fall of the own loss."""
        return curve.learned if self.lesson != OWN else curve.fall(self.num_batches)

    @property
    def gaps(self) -> list[float]:
        """By teacher, what the fresh networks learned more than the aged one."""
        fresh = [_mean([self.outcome(curves[t]) for curves in self.fresh]) for t in range(len(self.aged))]
        return [f - self.outcome(a) for f, a in zip(fresh, self.aged, strict=True)]

    @property
    def may_be_chance(self) -> bool:
        """Return whether the mean gap over teachers is no larger than their differences allow by chance."""
        return of_mean(self.gaps).low <= 0

    @property
    def slowdown(self) -> Estimate:
        """The steps of the aged network over those of the fresh ones to the same loss, with its interval over teachers.

        The mean is the geometric one.
        """
        logs = [math.log(aged / fresh) for aged, fresh in self.steps]
        return Estimate(*(math.exp(min(x, 700)) for x in of_mean(logs)))

    @property
    def steps(self) -> list[tuple[float, float]]:
        """By teacher, the steps of the aged network and of the mean fresh one to the same loss.

        The loss is the higher of the two final ones, so that both reach it.
        """
        found = []
        for teacher, aged in enumerate(self.aged):
            fresh = _mean_curve([curves[teacher] for curves in self.fresh])
            level = max(aged.final, fresh.final)
            found.append((_reached(aged, level), _reached(fresh, level)))
        return found

    def closes(self, curves: Sequence[FitCurve]) -> Estimate:
        """Return the share of the gap that closes for an aged network that was changed, by its curves."""
        gains = [self.outcome(new) - self.outcome(old) for new, old in zip(curves, self.aged, strict=True)]
        return of_ratio(gains, self.gaps)

    def suffices(self, curves: Sequence[FitCurve]) -> bool:
        """Return whether a changed network is no longer told from a fresh one."""
        return _mean(list(map(self.outcome, curves))) >= self.null.low


class InALesson(Protocol):
    """Curves of the aged network in a lesson, at a rate."""

    @property
    def lesson(self) -> str:
        """Name of the lesson."""

    @property
    def rate(self) -> float | None:
        """The rate; None for the optimizer's own."""

    @property
    def aged(self) -> tuple[FitCurve, ...]:
        """One curve per teacher."""


def compare(
    trials: Trials, lesson: str, size: Size, rate: float | None = None, change: Change | None = None, name: str = ""
) -> Comparison:
    """Let the aged and the fresh networks learn a lesson; raise OutOfTime where the budget ends before.

    ``change``: done to each of them before, under ``name``.
    """

    def curves(who: str) -> tuple[FitCurve, ...]:
        key = f"{who} {name}" if name else who
        return tuple(trials.curve(lesson, key, t, change, rate) for t in range(size.teachers))

    fresh = tuple(curves(f"{FRESH} {i}") for i in range(size.fresh))
    return Comparison(lesson, rate, curves(AGED), fresh, len(trials.patient.batches))


def changed(trials: Trials, comparison: InALesson, name: str, change: Change) -> tuple[FitCurve, ...]:
    """Return the curves of the aged network after a change, one per teacher of the comparison."""
    lesson, rate = comparison.lesson, comparison.rate
    return tuple(trials.curve(lesson, name, t, change, rate) for t in range(len(comparison.aged)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_curve(curves: Sequence[FitCurve]) -> FitCurve:
    return FitCurve(tuple(_mean(losses) for losses in zip(*(c.losses for c in curves), strict=True)))


def _reached(curve: FitCurve, level: float) -> float:
    """Return the first step at which a curve, taken as falling, is at ``level``; at least 1, the last step if never."""
    found = curve.steps_to(level)
    return float(min(max(found, 1.0), curve.at[-1]))
