"""The tables of a comparison: aggregate scores, pairs, profiles; and how their intervals were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.reports import statistics
from plasticity.reports.statistics import Interval

from .question import ConfigurationScores, Question
from .tables import Table, number

FEW = 5
"""Runs below which a percentile bootstrap covers much less than it says; see docs/reports.md."""


def aggregates(scores: ConfigurationScores, question: Question, has_target: bool) -> Table:
    """Return IQM, median, mean and, on a normalised scale, the optimality gap of each configuration."""
    kinds: dict[str, Callable[..., Any]] = {
        "IQM": statistics.iqm,
        "median": statistics.median,
        "mean": statistics.mean,
    }
    if has_target:
        kinds["optimality gap"] = statistics.optimality_gap
    rows = [
        [
            name,
            " + ".join(str(len(task)) for task in tasks),
            *(question.interval(kind, tasks) for kind in kinds.values()),
        ]
        for name, tasks in scores.items()
    ]
    several = len(next(iter(scores.values()))) > 1
    note = (
        "IQM: mean of the middle half of all runs" + (" of all environments" if several else "") + ". Median: of the "
        + ("environments' means" if several else "runs") + ". "
        + ("Optimality gap: mean shortfall from 1, lower is better. " if has_target else
           "No optimality gap: it needs a target, so --normalise. ")
        + resampled(question)
    )  # fmt: skip
    return Table("Aggregate scores", ["configuration", "runs", *kinds], rows, note)


def improvements(scores: ConfigurationScores, question: Question) -> Table:
    """Return the probability that a run of one configuration beats one of another, for every pair."""
    rows = [
        [f"{a} over {b}", question.interval(statistics.probability_of_improvement, scores[a], scores[b])]
        for a, b in combinations(scores, 2)
    ]
    note = (
        "P(X > Y) + P(X = Y) / 2 for a random run of each in the same environment, averaged over environments; 0.5: "
        "neither is better. It does not say by how much. The runs of both are resampled independently. "
        f"{len(rows)} pair{'s' * (len(rows) != 1)}, no correction for their number."
    )
    return Table("Probability of improvement", ["pair", "probability"], rows, note)


def profile_thresholds(scores: ConfigurationScores, count: int) -> NDArray[Any]:
    """Return evenly spaced scores from the lowest to the highest of all runs."""
    runs = np.concatenate([task for tasks in scores.values() for task in tasks])
    return np.linspace(runs.min(), runs.max(), count)


def profiles(scores: ConfigurationScores, thresholds: NDArray[Any], question: Question) -> dict[str, Interval]:
    """Return configuration -> fraction of runs above each threshold, with pointwise intervals (thresholds,)."""
    profile = partial(statistics.performance_profile, thresholds=thresholds)
    return {name: question.interval(profile, tasks) for name, tasks in scores.items()}


def profile_table(scores: ConfigurationScores, question: Question, count: int = 9) -> Table:
    """Return the performance profiles at a few thresholds."""
    levels = profile_thresholds(scores, count)
    found = profiles(scores, levels, question)
    rows = [[number(t), *(Interval(*(part[i] for part in p)) for p in found.values())] for i, t in enumerate(levels)]
    note = (
        "Fraction of runs with a score above the threshold, averaged over environments; intervals hold point by "
        "point, and one without width (all runs or none) is no certainty: no run at hand was on the other side."
    )
    return Table("Performance profiles", ["score above", *scores], rows, note)


def per_task(scores: ConfigurationScores, tasks: Sequence[str], question: Question) -> Table:
    """Return the IQM of each configuration in each environment."""
    rows = [
        [env, *(question.interval(statistics.iqm, [own[i]]) for own in scores.values())] for i, env in enumerate(tasks)
    ]
    return Table("Environment by environment", ["environment", *scores], rows, "IQM over runs.")


def resampled(question: Question) -> str:
    """Return a sentence on the intervals: the resampling, its seed, its limits."""
    return (
        f"In brackets: {question.level:.0%} percentile intervals of a stratified bootstrap: runs are redrawn with "
        f"replacement within each environment and configuration, {question.resamples:,} resamples, seed "
        f"{question.seed}. They speak of other seeds, not of other environments."
    )


def cautions(scores: ConfigurationScores) -> list[str]:
    """Return a note where intervals come from few runs."""
    few = [name for name, tasks in scores.items() if sum(map(len, tasks)) < FEW]
    if not few:
        return []
    return [f"fewer than {FEW} runs of {', '.join(few)}: such intervals are too narrow, far below their nominal level"]
