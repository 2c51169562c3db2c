"""Rank correlations of plasticity metrics and the score over runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from plasticity.reports.statistics import spearman
from plasticity.tags import ALL, plasticity_tag, plasticity_tags

from .groups import Configuration
from .question import Question
from .runs import RecordedRun
from .series import Series, until
from .tables import Table

OF = ("last", "mean")
MIN_RUNS = 5
"""Runs below which a rank correlation takes a few values only and says nothing; of those that are ranked together."""


def associations(configurations: Sequence[Configuration], question: Question, of: str = "last") -> Table | None:
    """Return Spearman's rho between the score and each network-wide metric (its ``last`` or ``mean`` value per run).

    Within configurations: ranks are taken among the runs of one configuration in one environment. Pooled: among all
    runs of an environment. A group of fewer than ``MIN_RUNS`` runs is left out. None if no metric has enough.
    """
    if of not in OF:
        raise ValueError(f"a metric is taken at one of {', '.join(OF)}, got {of!r}")
    groups = [runs for c in configurations for runs in c.runs.values()]
    environments = dict.fromkeys(env for c in configurations for env in c.runs)
    pools = [[run for c in configurations for run in c.runs.get(env, [])] for env in environments]
    tags = dict.fromkeys(tag for runs in groups for run in runs for tag in run.series)
    rows: list[list[Any]] = []
    for network, metric, layer in plasticity_tags(tags):
        if layer != ALL:
            continue
        cells = [_rho(strata, plasticity_tag(network, metric), question, of) for strata in (groups, pools)]
        if any(n for _, n in cells):
            rows.append([f"{network}: {metric}", cells[0][0], cells[0][1], cells[1][0], cells[1][1]])
    if not rows:
        return None
    note = (
        f"Spearman's rho of the {of} value of a metric and the score, over runs; in brackets {question.level:.0%} "
        "intervals, whole runs redrawn within their group; '-': not defined. Within configurations: ranked among the "
        "runs of one configuration in one environment. Pooled: among all runs of an environment, so that a difference "
        "between configurations alone makes an association. Neither shows a cause, and by chance alone about "
        f"{1 - question.level:.0%} of the intervals would leave out zero."
    )
    return Table("Association with the score", ["metric", "within configurations", "n", "pooled", "n "], rows, note)


def has_measurements(configurations: Sequence[Configuration]) -> bool:
    """Return whether any run measured a network-wide metric."""
    runs = [run for c in configurations for members in c.runs.values() for run in members]
    return any(tag.layer == ALL for run in runs for tag in plasticity_tags(run.series))


def _rho(strata: Sequence[Sequence[RecordedRun]], tag: str, question: Question, of: str) -> tuple[Any, int]:
    """Return rho with its interval and the number of runs; (None, 0) where no group has enough with a value."""
    x, y = [], []
    for runs in strata:
        pairs = [
            (_value(until(run.series[tag], question.until), of), question.value(run))
            for run in runs
            if tag in run.series
        ]
        finite = np.array([pair for pair in pairs if np.isfinite(pair).all()])
        if len(finite) >= MIN_RUNS:
            x.append(finite[:, 0])
            y.append(finite[:, 1])
    count = sum(map(len, x))
    return (question.interval(spearman, x, y, paired=True), count) if count else (None, 0)


def _value(series: Series, of: str) -> float:
    values = series.finite().values
    if not len(values):
        return float("nan")
    return float(values[-1] if of == "last" else values.mean())
