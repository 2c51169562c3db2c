"""Probes: what can be measured, one file per family. ``PROBES`` is the contents page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from .activity import Activity, inactive_fraction, normalised_scores
from .dormancy import Dormancy
from .grama import GradientActivity
from .probe import Probe
from .rank import RANKS, Rank, effective_rank, feature_rank, singular_values, srank, stable_rank

PROBES: dict[str, Callable[[], Probe]] = {
    "dormancy": Dormancy,
    "grama": GradientActivity,
    "grama_weight": partial(GradientActivity, "weight"),
    "grama_post": partial(GradientActivity, "post"),
    "rank": Rank,
    **{metric: partial(Rank, [metric]) for metric in RANKS},
}
"""Name -> a probe with its default settings; ``rank`` gives all four ranks from one decomposition."""

DEFAULT_PROBES = ("dormancy", "grama", "rank")


def make_probes(names: Iterable[str]) -> dict[str, Probe]:
    """Return probes with default settings by name; raise ValueError for an unknown one."""
    names = list(names)
    unknown = [name for name in names if name not in PROBES]
    if unknown:
        raise ValueError(f"unknown probe {', '.join(unknown)}; there are {', '.join(PROBES)}")
    return {name: PROBES[name]() for name in names}


__all__ = [
    "DEFAULT_PROBES",
    "PROBES",
    "RANKS",
    "Activity",
    "Dormancy",
    "GradientActivity",
    "Probe",
    "Rank",
    "effective_rank",
    "feature_rank",
    "inactive_fraction",
    "make_probes",
    "normalised_scores",
    "singular_values",
    "srank",
    "stable_rank",
]
