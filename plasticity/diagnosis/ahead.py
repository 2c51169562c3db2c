"""Methods by what comes next: copies learn the batches that follow, by the loss of training, with each method.

A random teacher says which method restores learning; only the data that follow say which one will help there (the
study in docs/results.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from .fit import FitCurve
from .intervals import Estimate, of_ratio
from .trials import AGED, OWN, Trials

MAX_AHEAD = 100
"""Batches that are learned, one update each."""


@dataclass(frozen=True)
class Ahead:
    """The curves of the network as it is on the batches that follow, which methods are compared with."""

    aged: tuple[FitCurve, ...]
    lesson: ClassVar[str] = OWN
    rate: ClassVar[float | None] = None

    def closes(self, curves: Sequence[FitCurve]) -> Estimate:
        """Return the share by which the mean loss over the updates is lower."""
        areas = [old.area for old in self.aged]
        return of_ratio([old - new.area for old, new in zip(areas, curves, strict=True)], list(map(abs, areas)))

    def suffices(self, curves: Sequence[FitCurve]) -> bool:
        """Return False: there is no fresh network to be as good as."""
        del curves
        return False


def look_ahead(trials: Trials, batches: Sequence[Any], draws: int) -> tuple[Trials, Ahead]:
    """Return the trials on the batches that follow, and the curves of the network as it is; raises OutOfTime."""
    patient = replace(trials.patient, name=f"{trials.patient.name} ahead", batches=batches)
    store = trials.store and trials.store.with_name(f"{trials.store.stem}-ahead.json")
    there = Trials(patient, len(batches), trials.budget, store, trials.seed)
    return there, Ahead(tuple(there.curve(OWN, AGED, draw) for draw in range(draws)))
