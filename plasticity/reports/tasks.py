"""Numbers of a stream of tasks: area, per task, gap to a fresh network, forward transfer.

A curve is the training return: the mean of the episodes that ended in each of BINS parts of a task. With A_k the mean
of the curve over task k, O_k that of an agent that is fresh in task k (the oracle), R_k that of random actions:

    area              mean over all tasks of A_k
    gap of task k     (O_k - A_k) / (O_k - R_k)                     0: as plastic as a fresh agent, 1: learns nothing
    slope of the gap  per task, least squares over tasks            above 0: plasticity is lost
    forward transfer  mean over k >= 1 of (A_k - O_k) / (M - O_k)    M: the highest bin of any run

The oracle is that of Tang et al. 2025 (arXiv 2506.00592), the form of forward transfer that of Wolczyk et al. 2021
(arXiv 2105.10919).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.metrics import shown_first

from .series import Series
from .statistics import Interval, bootstrap, mean
from .tables import Table

BINS = 40
"""Parts of a task in which episodes are averaged, where a suite has no steps of its own for that."""
AREA_NOTE = (
    "Mean training return over all steps of all tasks, with the 95 % bootstrap interval over seeds. gap: to an agent "
    "that is fresh in every task, 0 is as plastic, 1 learns nothing. time: of a step, in steps without a method, in "
    "the fastest tenth of a run. Metrics are those of the last measurement."
)
GAP_NOTE = "Mean over seeds; 0 is as plastic as a fresh agent. A dash: the fresh agent is no better than random."


def task_curves(series: Series, num_tasks: int, task_steps: int, bins: int = BINS) -> NDArray[Any]:
    """Return the mean of a series in every one of ``bins`` parts of every task, (num_tasks, bins).

    A bin in which nothing ended repeats the one before it; one before the first value takes the first. NaN where the
    series has no finite value.
    """
    finite = series.finite()
    if not len(finite.steps):
        return np.full((num_tasks, bins), np.nan)
    place = np.ceil(finite.steps * bins / task_steps).astype(int) - 1  # step s ends bin s: the last one is its own
    place = place.clip(0, num_tasks * bins - 1)
    sums = np.bincount(place, finite.values, num_tasks * bins)
    counts = np.bincount(place, minlength=num_tasks * bins)
    filled = np.flatnonzero(counts)
    last = np.searchsorted(filled, np.arange(num_tasks * bins), side="right") - 1
    known = filled[last.clip(0)]
    return (sums[known] / counts[known]).reshape(num_tasks, bins)


def last_of_tasks(series: Series, num_tasks: int, task_steps: int) -> NDArray[Any]:
    """Return the last finite value of a series in every task, (num_tasks,); NaN where there is none."""
    finite, found = series.finite(), np.full(num_tasks, np.nan)
    tasks = (np.ceil(finite.steps / task_steps).astype(int) - 1).clip(0, num_tasks - 1)
    found[tasks] = finite.values  # of several the last one stays: steps ascend
    return found


def gaps(curves: NDArray[Any], oracle: NDArray[Any], random: NDArray[Any]) -> NDArray[Any]:
    """Return the plasticity gap of every task; NaN where the oracle learns nothing.

    ``curves`` and ``oracle``: (tasks, bins); ``random``: (tasks,).
    """
    best, room = oracle.mean(-1), oracle.mean(-1) - random
    return np.divide(best - curves.mean(-1), room, out=np.full(len(room), np.nan), where=room > 0)


def slope(values: NDArray[Any]) -> float:
    """Return the least-squares slope of values (tasks,) per task; NaN for fewer than two finite ones."""
    keep = np.isfinite(values)
    if keep.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.flatnonzero(keep), values[keep], 1)[0])


def forward_transfer(curves: NDArray[Any], oracle: NDArray[Any], highest: float) -> float:
    """Return the mean over tasks but the first of (A_k - O_k) / (highest - O_k); NaN where there is no such task."""
    ours, fresh = curves.mean(-1)[1:], oracle.mean(-1)[1:]
    room = highest - fresh
    return float(np.mean((ours - fresh)[room > 0] / room[room > 0])) if (room > 0).any() else float("nan")


@dataclass(frozen=True)
class Protocol:
    """All runs of one environment, by method; arrays are (seeds, tasks, bins)."""

    env: str
    curves: Mapping[str, NDArray[Any]]
    oracle: NDArray[Any] | None
    """Of an agent that is fresh in every task; None where it was not trained."""
    random: NDArray[Any] | None
    """(tasks,), or (seeds of the oracle, tasks): mean returns of random actions."""
    speed: Mapping[str, float]
    """Method -> mean environment steps per second."""
    published: Mapping[str, float]
    """Method -> the area in the paper."""
    metrics: Mapping[str, Mapping[str, NDArray[Any]]]
    """Method -> metric -> (tasks,): its last value in every task, averaged over networks and seeds."""
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Method, the oracle too -> the seeds of its curves; empty: the same ones, in the same order."""

    def areas(self) -> Table:
        """Return the table of areas, first and last tasks, gaps and forward transfer, the best method first."""
        measured = shown_first(metric for found in self.metrics.values() for metric in found)
        columns = ["method", "seeds", "area", "published", "first task", "last task", "gap", "slope of the gap"]
        rows = [
            [*row, *self._against(name), *(self._last(name, metric) for metric in measured)]
            for name, row in self._scores().items()
        ]
        rows.sort(key=lambda row: -float(row[2].value if isinstance(row[2], Interval) else row[2]))
        columns += ["forward transfer", "time", *measured]
        return Table(self.env, columns, rows, AREA_NOTE)

    def per_task(self) -> Table:
        """Return the mean return in every task."""
        tasks = next(iter(self.everyone().values())).shape[1]
        rows = [[name, *(float(v) for v in curves.mean((0, 2)))] for name, curves in self.everyone().items()]
        return Table(f"{self.env}: mean return by task", ["method", *map(str, range(tasks))], rows)

    def gaps_by_task(self) -> Table | None:
        """Return the gap to the fresh agent in every task; None without one."""
        if self.oracle is None or self.random is None or not self.curves:
            return None
        rows = []
        for name in self.curves:
            found = self.gaps_of(name)
            rows.append([name, *map(float, found.mean(0) if len(found) else np.full(found.shape[1], np.nan))])
        tasks = map(str, range(self.oracle.shape[1]))
        return Table(f"{self.env}: plasticity gap by task", ["method", *tasks], rows, GAP_NOTE)

    def metrics_by_task(self) -> Table | None:
        """Return the last value of every metric in every task; None where nothing was measured."""
        rows = [[name, metric, *map(float, values)]
                for name, found in self.metrics.items() for metric, values in found.items()]  # fmt: skip
        if not rows:
            return None
        tasks = map(str, range(len(rows[0]) - 2))
        return Table(f"{self.env}: metrics at the end of tasks", ["method", "metric", *tasks], rows)

    def gaps_of(self, name: str) -> NDArray[Any]:
        """Return the gap of a method in every task, (seeds, tasks), for the seeds that the fresh agent has too."""
        if self.oracle is None or self.random is None:
            return np.empty((0, 0))
        pairs = [gaps(*arrays) for arrays in self._pairs(name)]
        return np.stack(pairs) if pairs else np.empty((0, self.oracle.shape[1]))

    def _pairs(self, name: str) -> list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """Return the curves of a method and of the fresh agent, (tasks, bins) each, and the returns of random actions,
        (tasks,), of the seeds that both have."""
        assert self.oracle is not None
        assert self.random is not None
        random = np.broadcast_to(self.random, self.oracle.shape[:2])
        if not self.seeds:
            return list(zip(self.curves[name], self.oracle, random, strict=False))
        fresh = {seed: pair for seed, *pair in zip(self.seeds["oracle"], self.oracle, random, strict=True)}
        ours = zip(self.seeds[name], self.curves[name], strict=True)
        return [(curves, *fresh[seed]) for seed, curves in ours if seed in fresh]

    def _last(self, name: str, metric: str) -> float | None:
        values = self.metrics.get(name, {}).get(metric, np.array([]))
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if len(finite) else None

    def everyone(self) -> dict[str, NDArray[Any]]:
        """Return the curves of all methods, the oracle among them."""
        return {**({"oracle": self.oracle} if self.oracle is not None else {}), **self.curves}

    def _scores(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for name, curves in self.everyone().items():
            area, ends = over_seeds(curves.mean((1, 2))), (over_seeds(curves[:, k].mean(-1)) for k in (0, -1))
            found[name] = [name, len(curves), area, self.published.get(name), *ends]
        return found

    def _against(self, name: str) -> list[Any]:
        base = self.speed.get("none")
        time = base / self.speed[name] if base and self.speed.get(name) else None
        if self.oracle is None or self.random is None or name == "oracle":
            return [None, None, None, time]
        pairs = self._pairs(name)
        highest = max(float(curves.max()) for curves in self.everyone().values())
        every = self.gaps_of(name)
        gap = [float(np.nanmean(one)) if np.isfinite(one).any() else float("nan") for one in every]
        slopes = [slope(one) for one in every]
        transfer = [forward_transfer(ours, fresh, highest) for ours, fresh, _ in pairs]
        return [over_seeds(np.array(gap)), over_seeds(np.array(slopes)), over_seeds(np.array(transfer)), time]


def over_seeds(values: NDArray[Any]) -> Any:
    """Return the mean over seeds with its bootstrap interval; the value alone for one seed, NaN where one is NaN."""
    if not np.isfinite(values).all() or not len(values):
        return float("nan")
    return bootstrap(mean, [values]) if len(values) > 1 else float(values[0])


def disorder(areas: Mapping[str, float], expected: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of neighbours, of those methods that there are, whose areas fall in the other order."""
    found = [name for name in expected if name in areas]
    return [(a, b) for a, b in pairwise(found) if areas[a] <= areas[b]]


def in_order(areas: Mapping[str, float], expected: Sequence[str]) -> bool:
    """Return True if the areas fall in the expected order, for those methods that there are."""
    return not disorder(areas, expected)
