"""Aggregate scores of runs over tasks, with stratified bootstrap intervals: Agarwal et al. 2021, arXiv 2108.13264.

``scores`` is one array (..., runs) per task; tasks may have different numbers of runs. A statistic works on the last
axis and returns (...), so that one call handles all resamples of a bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

TaskScores = Sequence[NDArray[Any]]
_BLOCK = 250  # resamples at once: bounds the memory of statistics that compare all pairs
_UNDEFINED = 0.05  # largest share of resamples without a value that an interval may leave out


class Interval(NamedTuple):
    """A statistic and its confidence interval, numbers or arrays of one shape."""

    value: Any
    low: Any
    high: Any


def mean(scores: TaskScores) -> NDArray[Any]:
    """Return the mean over tasks of each task's mean."""
    return np.mean([task.mean(-1) for task in scores], axis=0)


def median(scores: TaskScores) -> NDArray[Any]:
    """Return the median over tasks of each task's mean, as the paper has it; with one task, the median of its runs."""
    if len(scores) == 1:
        return np.median(scores[0], axis=-1)
    return np.median([task.mean(-1) for task in scores], axis=0)


def iqm(scores: TaskScores) -> NDArray[Any]:
    """Return the interquartile mean: the mean of all runs of all tasks without the lowest and highest quarter.

    Of n runs, floor(n / 4) are cut off at each end (``scipy.stats.trim_mean``): with three or fewer it is their mean.
    """
    runs = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    cut = runs.shape[-1] // 4
    return runs[..., cut : runs.shape[-1] - cut].mean(-1)


def optimality_gap(scores: TaskScores, target: float = 1.0) -> NDArray[Any]:
    """Return the mean shortfall of all runs of all tasks from ``target``; a surplus does not make up for it.

    Only of scores normalised so that ``target`` means the same in every task. 0 is best.
    """
    return np.maximum(target - np.concatenate(scores, axis=-1), 0.0).mean(-1)


def probability_of_improvement(scores: TaskScores, baseline: TaskScores) -> NDArray[Any]:
    """Return P(X > Y) + P(X = Y) / 2 for a run X of ``scores`` and Y of ``baseline`` in one task, averaged over tasks.

    It is the Mann-Whitney statistic divided by the number of pairs. 0.5: neither is better. It says nothing about by
    how much. ValueError if the two have different numbers of tasks.
    """
    if len(scores) != len(baseline):
        raise ValueError(f"both need the same tasks, got {len(scores)} and {len(baseline)} of them")
    pairs = [(x[..., :, None], y[..., None, :]) for x, y in zip(scores, baseline, strict=True)]
    return np.mean([((x > y) + 0.5 * (x == y)).mean((-2, -1)) for x, y in pairs], axis=0)


def performance_profile(scores: TaskScores, thresholds: ArrayLike) -> NDArray[Any]:
    """Return (thresholds, ...): the fraction of runs whose score is above each threshold, averaged over tasks."""
    levels = np.asarray(thresholds, dtype=np.float64)
    return np.stack([np.mean([(task > level).mean(-1) for task in scores], axis=0) for level in levels])


def ranks(values: NDArray[Any]) -> NDArray[Any]:
    """Return the ranks 1 to n along the last axis; equal values share the mean of their ranks."""
    here, there = values[..., :, None], values[..., None, :]
    return (there < here).sum(-1) + ((there == here).sum(-1) + 1) / 2


def spearman(x: TaskScores, y: TaskScores) -> NDArray[Any]:
    """Return Spearman's rank correlation of ``x`` and ``y`` within groups: (..., runs) per group, in [-1, 1].

    Ranks are taken and centred within each group and divided by its runs plus one; their correlation over all groups
    is free of differences between groups. With one group it is Spearman's rho. NaN where a side has one value only.
    """
    a, b = ([ranks(group) / (group.shape[-1] + 1) - 0.5 for group in side] for side in (x, y))
    u, v = np.concatenate(a, axis=-1), np.concatenate(b, axis=-1)
    scale = np.sqrt((u * u).sum(-1) * (v * v).sum(-1))
    return np.divide((u * v).sum(-1), scale, out=np.full(np.shape(scale), np.nan), where=scale > 0)


def bootstrap(
    statistic: Callable[..., NDArray[Any]],
    *samples: TaskScores,
    paired: bool = False,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return ``statistic(*samples)`` and its percentile interval under a stratified bootstrap.

    Each resample draws, in every task, as many runs as it has, with replacement; ``samples`` are drawn independently,
    or, if ``paired``, the same runs of all. A run with several values (steps, runs) is drawn whole. Resamples without
    a value (NaN) are left out; the interval is NaN if they are more than a twentieth.

    Raises ValueError for a task with fewer than two runs and for values that are not finite.
    """
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"needs resamples of at least 1 and a level in (0, 1), got {resamples} and {level}")
    checked = [[_checked(task) for task in sample] for sample in samples]
    rng = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        draws.append(statistic(*_redraw(checked, count, paired, rng)))
    return _interval(statistic(*checked), np.concatenate(draws, axis=-1), level)


def _checked(task: ArrayLike) -> NDArray[Any]:
    runs = np.asarray(task, dtype=np.float64)
    if runs.ndim == 0 or runs.shape[-1] < 2:
        raise ValueError(
            f"an interval needs at least two runs in every task, found {runs.shape[-1] if runs.ndim else 1}"
        )
    if not np.isfinite(runs).all():
        raise ValueError("an interval needs finite scores, found NaN or infinity")
    return runs


def _redraw(
    samples: list[list[NDArray[Any]]], count: int, paired: bool, rng: np.random.Generator
) -> list[list[NDArray[Any]]]:
    """Return every task of every sample as (..., count, runs)."""

    def indices(sample: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [rng.integers(0, task.shape[-1], (count, task.shape[-1])) for task in sample]

    same = indices(samples[0]) if paired else None
    chosen = [same or indices(sample) for sample in samples]
    return [[task[..., i] for task, i in zip(*pair, strict=True)] for pair in zip(samples, chosen, strict=True)]


def _interval(value: NDArray[Any], draws: NDArray[Any], level: float) -> Interval:
    undefined = np.isnan(draws).mean(-1)
    filled = np.where(np.isnan(draws) & (undefined == 1)[..., None], 0.0, draws)  # nanquantile warns where all are NaN
    low, high = np.nanquantile(filled, [(1 - level) / 2, (1 + level) / 2], axis=-1)
    low, high = (np.where(undefined > _UNDEFINED, np.nan, bound)[()] for bound in (low, high))
    return Interval(value, low, high)
