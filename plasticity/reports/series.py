"""The values of one tag over time: of one run, and of several runs on common steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from plasticity.reports.statistics import bootstrap, iqm
from plasticity.storage.rows import RESERVED, as_float, is_step

AT = ("last", "best", "auc")
MAX_POINTS = 200
"""Points of a curve: more cannot be seen on a page."""
RETURN_WINDOW = 0.1
"""Share of a run's steps over which its training returns are averaged: single episodes say little."""
RESAMPLES = 2000
"""Resamples of the interval of a curve."""
INTERVAL = f"95 % stratified bootstrap interval over runs (percentile, {RESAMPLES:,} resamples)"


class Series(NamedTuple):
    """Values of a tag, NaN where they were not finite, by ascending step."""

    steps: NDArray[Any]
    values: NDArray[Any]

    def finite(self) -> Series:
        """Return the series without values that are not finite."""
        keep = np.isfinite(self.values)
        return Series(self.steps[keep], self.values[keep])


class Band(NamedTuple):
    """A curve over ``n`` runs: interquartile mean and interval at each step; the interval is None for one run."""

    steps: NDArray[Any]
    value: NDArray[Any]
    low: NDArray[Any] | None
    high: NDArray[Any] | None
    n: int


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """Return the series of every tag in ``rows``; of several values at one step the last counts."""
    points: dict[str, dict[float, float]] = {}
    for row in rows:
        if "event" in row or not is_step(row.get("step")):
            continue
        for tag, value in row.items():
            if tag not in RESERVED and (value := as_float(value)) is not None:
                points.setdefault(tag, {})[row["step"]] = value
    return {tag: _series(by_step) for tag, by_step in points.items()}


def score(series: Series, at: str) -> float:
    """Return the last value, the best one (the highest), or the mean over steps (``auc``: trapezoids by their span).

    NaN if there is no value, if the last is not finite, or for ``auc`` any.
    """
    if at not in AT:
        raise ValueError(f"at must be one of {', '.join(AT)}, got {at!r}")
    steps, values = series.finite() if at == "best" else series
    if not len(values):
        return math.nan
    if at == "best":
        return float(values.max())
    if at == "last" or len(values) == 1:
        return float(values[-1])
    return float(((values[1:] + values[:-1]) / 2 * np.diff(steps)).sum() / (steps[-1] - steps[0]))


def windowed(series: Series, width: float) -> Series:
    """Return at every step the mean of the finite values of the last ``width`` steps, that step included."""
    steps, values = series.finite()
    first = np.searchsorted(steps, steps - width, side="right")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    count = np.arange(1, len(steps) + 1)
    return Series(steps, (sums[count] - sums[first]) / (count - first))


def until(series: Series, step: float | None) -> Series:
    """Return the values up to ``step``; None: all."""
    return series if step is None else Series(*(part[series.steps <= step] for part in series))


def aligned(runs: Sequence[Series], limit: int = MAX_POINTS) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Return steps, values (steps, runs) and whether values had to be interpolated.

    The steps are those that every run covers, so that n is the same along the curve: from the latest first to the
    earliest last step. Where runs were measured at different steps, or at more than ``limit``, values in between are
    interpolated linearly. Empty arrays if no step is covered by all.
    """
    runs = [series.finite() for series in runs]
    if not runs or not all(len(series.steps) for series in runs):
        return np.empty(0), np.empty((0, len(runs))), False
    first, last = max(s.steps[0] for s in runs), min(s.steps[-1] for s in runs)
    inside = [s.steps[(s.steps >= first) & (s.steps <= last)] for s in runs]
    grid = np.unique(np.concatenate(inside))
    if len(grid) > limit:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, limit).round().astype(int))]
    interpolated = not all(np.isin(grid, steps).all() for steps in inside)
    return grid, np.stack([np.interp(grid, s.steps, s.values) for s in runs], axis=-1), interpolated


def band(runs: Sequence[Series]) -> tuple[Band | None, bool]:
    """Return the curve of ``runs`` with its bootstrap interval, and whether it was interpolated; None without one."""
    steps, values, interpolated = aligned(runs)
    if not len(steps):
        return None, False
    if len(runs) == 1:
        return Band(steps, values[:, 0], None, None, 1), interpolated
    middle, low, high = bootstrap(iqm, [values], resamples=RESAMPLES)
    return Band(steps, middle, low, high, len(runs)), interpolated


def _series(by_step: Mapping[float, float]) -> Series:
    steps = np.array(sorted(by_step), dtype=np.float64)
    values = np.array([by_step[step] for step in steps], dtype=np.float64)
    return Series(steps, np.where(np.isfinite(values), values, np.nan))
