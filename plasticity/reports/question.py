"""The score that a comparison compares, the runs that count, and their common scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.reports import statistics
from plasticity.reports.statistics import Interval
from plasticity.tags import EPISODIC_RETURN, EVAL_RETURN

from .groups import Configuration, configurations
from .runs import RecordedRun
from .series import AT, RETURN_WINDOW, score, until, windowed
from .tables import number

ConfigurationScores = dict[str, list[NDArray[Any]]]
"""Configuration -> scores (runs,) per environment."""


@dataclass(frozen=True)
class Question:
    """The score of a run: the value ``at`` ``last``, ``best`` or ``auc`` of ``metric``, up to step ``until``.

    ``nonfinite``: the score of a run without a finite value; None: such a run is an error.
    """

    metric: str = EVAL_RETURN
    at: str = "last"
    until: int | None = None
    nonfinite: float | None = None
    resamples: int = 10_000
    level: float = 0.95
    seed: int = 0

    def value(self, run: RecordedRun, at: str | None = None) -> float:
        """Return the score of one run; ValueError if it has none and nothing stands in for it."""
        if self.metric not in run.series:
            charts = sorted(tag for tag in run.series if tag.startswith("charts/")) or sorted(run.series)
            raise ValueError(f"{run.folder} did not log {self.metric}; it has {', '.join(charts)}")
        series = until(run.series[self.metric], self.until)
        if self.metric == EPISODIC_RETURN and (at or self.at) == "last" and len(series.finite().steps):
            series = windowed(series, RETURN_WINDOW * series.steps[-1])
        value = score(series, at or self.at)
        if math.isfinite(value):
            return value
        if not len(series.steps):
            first = f"its first {self.metric} at step {run.series[self.metric].steps[0]:,.0f}"
            raise ValueError(f"{run.folder} logged {first}, beyond --until {self.until}")
        if self.nonfinite is None:
            raise ValueError(
                f"{run.folder}: {self.at} {self.metric} is not finite, so the run has no score; leaving it out would "
                "flatter its configuration: give such runs a low score with --nonfinite"
            )
        return self.nonfinite

    def interval(self, statistic: Callable[..., Any], *samples: Any, paired: bool = False) -> Interval:
        """Return a statistic with its bootstrap interval."""
        return statistics.bootstrap(
            statistic, *samples, paired=paired, resamples=self.resamples, level=self.level, seed=self.seed
        )

    def describe(self) -> str:
        """Return the definition of the score, in words."""
        last = (
            f"mean over the last {RETURN_WINDOW:.0%} of the steps" if self.metric == EPISODIC_RETURN else "last value"
        )
        what = {"last": last, "best": "highest value", "auc": "mean over steps (area under the curve)"}[self.at]
        return f"{what} of {self.metric}" + (f" up to step {self.until:,}" if self.until else "")


def complete(runs: Sequence[RecordedRun], question: Question) -> tuple[list[RecordedRun], list[str]]:
    """Return the runs that count and a note on each that does not.

    Without ``until``, a run has to be finished; with it, it has to have come that far.
    """
    if question.at not in AT:
        raise ValueError(f"at must be one of {', '.join(AT)}, got {question.at!r}")
    kept, notes = [], []
    for run in runs:
        if question.until is not None:
            far = run.last_step >= question.until
            reason = f"it ends at step {run.last_step:,}, before {question.until:,}"
        else:
            far, reason = run.status == "finished", f"status {run.status}, last step {run.last_step:,}"
        if far:
            kept.append(run)
        else:
            notes.append(
                f"left out {run.folder}: {reason}; if its training broke down, this flatters its configuration"
            )
    return kept, notes


def repeated(runs: Sequence[RecordedRun]) -> tuple[list[RecordedRun], list[str]]:
    """Return the runs without lone ones, and a note on each of these: one run says nothing about chance.

    Lone are all runs in an environment in which no configuration has two, and those of a configuration that has two
    nowhere. Where nothing else is there, all are returned.
    """
    groups = configurations(runs)
    envs = {env for c in groups for env, members in c.runs.items() if len(members) > 1}
    kept = [
        run for c in groups if any(len(c.runs.get(env, ())) > 1 for env in envs) for env in envs
        for run in c.runs.get(env, ())
    ]  # fmt: skip
    if not kept:
        return list(runs), []
    lone = [run for run in runs if run not in kept]
    return [run for run in runs if run in kept], [
        f"left out {run.folder}: the only run of its configuration{f' in {run.env}' if run.env else ''}, and one says "
        "nothing about chance"
        for run in lone
    ]


def require_comparable(configurations: Sequence[Configuration]) -> list[str]:
    """Return the environments; ValueError for a configuration with one run, or without runs in an environment."""
    if not configurations:
        raise ValueError("no run is left to compare; --until STEP counts runs that are not finished")
    tasks = sorted({env for c in configurations for env in c.runs})
    for c in configurations:
        for env in tasks:
            runs = c.runs.get(env, [])
            where = f" in {env}" if env else ""
            if len(runs) == 1:
                raise ValueError(
                    f"{c.name} has one run{where} ({runs[0].folder}): nothing can be said about chance from one; train "
                    "more seeds (at least two, better ten), or leave it out"
                )
            if not runs:
                raise ValueError(
                    f"{c.name} has no run{where}: an aggregate would compare different tasks; choose tasks with --env"
                )
    return tasks


def normalised(
    configurations: Sequence[Configuration],
    tasks: Sequence[str],
    question: Question,
    anchors: Mapping[str, tuple] | None,
) -> ConfigurationScores:
    """Return configuration -> scores (runs,) per task, on the scale of ``anchors``: environment -> (its 0, its 1)."""
    if anchors is None and len(tasks) > 1:
        raise ValueError(
            f"returns of {', '.join(tasks)} have no common scale: pass --normalise LOW,HIGH for all (0,1000 for "
            "dm_control), --normalise ENV=LOW,HIGH for each, or --normalise and the name of a reference configuration"
        )
    found: ConfigurationScores = {}
    for c in configurations:
        found[c.name] = []
        for env in tasks:
            low, high = anchors[env] if anchors else (0.0, 1.0)
            raw = np.array([question.value(run) for run in c.runs[env]])
            found[c.name].append((raw - low) / (high - low))
    return found


def reference_anchors(configuration: Configuration, question: Question) -> dict[str, tuple[float, float]]:
    """Return, per environment, the mean first value and the mean score of a reference configuration.

    ValueError if it did not get better: such a scale would be upside down.
    """
    anchors = {}
    for env, runs in configuration.runs.items():
        end = float(np.mean([question.value(run) for run in runs]))
        start = float(np.mean([run.series[question.metric].values[0] for run in runs]))
        if not end > start:
            raise ValueError(
                f"{configuration.name} cannot be the reference in {env}: it went from {number(start)} to "
                f"{number(end)}, and 1 must be better than 0"
            )
        anchors[env] = (start, end)
    return anchors
