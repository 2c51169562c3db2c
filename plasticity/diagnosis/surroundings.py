"""Surroundings: what a network learns with that is not itself, such as replayed data, made fresh.

Aged and fresh networks learn the lesson once more in fresh surroundings. What is left of the gap there is the network's
own; what is gone was due to the surroundings.
"""

from __future__ import annotations

from dataclasses import replace

from .comparison import Comparison, Size, compare
from .intervals import Estimate, of_ratio
from .trials import Trials

FRESH_NETWORKS = 4
"""Fresh networks that learn in fresh surroundings."""


def in_fresh_surroundings(trials: Trials, comparison: Comparison, name: str) -> tuple[Estimate, bool]:
    """Return the share of the gap that closes, and whether the aged network learns there as a fresh one would.

    Gaps are relative to what fresh networks learn: the scale of a loss depends on its data. Raises OutOfTime.
    """
    patient = replace(trials.patient.surroundings[name].made(), name=f"{trials.patient.name} with fresh {name}")
    store = trials.store and trials.store.with_name(f"{trials.store.stem}-{name.replace(' ', '-')}.json")
    there = Trials(patient, trials.steps, trials.budget, store, trials.seed)
    found = compare(there, comparison.lesson, Size(len(comparison.aged), FRESH_NETWORKS), comparison.rate)
    before, after = ([gap / one.null.value for gap in one.gaps] for one in (comparison, found))
    gained = [old - new for old, new in zip(before, after, strict=True)]
    return of_ratio(gained, before), not found.is_slower
