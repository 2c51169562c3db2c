"""The runs of a benchmark: which there are in a folder, and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.envs import TaskPlan
from plasticity.interventions import INTERVENTIONS
from plasticity.metrics import shown_first
from plasticity.reports.series import Series, columns
from plasticity.reports.tasks import BINS, last_of_tasks, task_curves
from plasticity.storage.record import RECORD, read_record
from plasticity.storage.rows import read_metrics
from plasticity.tags import ALL, EPISODIC_RETURN, SPEED, parse_tag

PLACE = re.compile(r"seed_(\d+)(?:_task_(\d+))?")
"""Name of a run's folder."""
UNDISTURBED = 0.9
"""Quantile of a run's speeds that counts: what else the machine does slows the rest."""


@dataclass(frozen=True)
class Cell:
    """A run of the benchmark."""

    env: str
    method: str
    seed: int
    task: int | None
    """Of an oracle's run: the only task; None: all of them."""


@dataclass
class FoundCells:
    """The runs that a folder of a suite holds."""

    finished: dict[Path, Cell] = field(default_factory=dict)
    unfinished: list[Cell] = field(default_factory=list)
    plans: dict[str, TaskPlan] = field(default_factory=dict)
    """Stream -> length and number of its tasks, as its runs have them."""
    commits: set[str] = field(default_factory=set)
    """Commits of the code that trained them, seven digits."""


def find_cells(folder: Path) -> FoundCells:
    """Return the runs of a suite; ValueError where two runs of a stream have tasks of other lengths or numbers.

    An agent that is fresh in every task may have more or fewer tasks: without runs of others its last task counts.
    """
    found, wholes = FoundCells(), set[str]()
    for place, (seed, task) in _runs(folder):
        record = read_record(place)
        config, method = record["config"], method_of(place.parent.name)
        cell = Cell(config["env"], method, seed, task)
        if record["status"] != "finished":
            found.unfinished.append(cell)
            continue
        found.finished[place] = cell
        found.commits |= {str(commit)[:7] for commit in [(record.get("git") or {}).get("commit")] if commit}
        own = TaskPlan(steps=config["task_steps"], num=config["num_tasks"] if task is None else task + 1)
        plan = found.plans.setdefault(cell.env, own)
        whole = cell.env in wholes
        if plan.steps != own.steps or (whole and task is None and plan.num != own.num):
            others = f"other runs of {cell.env} have {plan.num} of {plan.steps}"
            raise ValueError(f"{place}: {own.num} tasks of {own.steps} steps, {others}")
        if task is None:
            wholes.add(cell.env)
            found.plans[cell.env] = own
        elif not whole:
            found.plans[cell.env] = replace(plan, num=max(plan.num or 1, own.num or 1))
    return found


def _runs(folder: Path) -> Iterator[tuple[Path, tuple[int, int | None]]]:
    """Yield the folders of runs, in the order of streams, methods, seeds and tasks, with seed and task."""
    places = [record.parent for record in folder.glob(f"*/*/*/{RECORD}")]
    named = [(place, match) for place in places if (match := PLACE.fullmatch(place.name))]
    cells = [(place, (int(m[1]), None if m[2] is None else int(m[2]))) for place, m in named]
    return iter(sorted(cells, key=lambda one: (one[0].parent, one[1][0], one[1][1] or 0)))


def place_of(method: str) -> str:
    """Return the name of the folder of a method."""
    return re.sub(r"[^\w.,=+-]+", "_", method)


def method_of(place: str) -> str:
    """Return the method whose folder has this name: l2-init:coef=0.1 of l2-init_coef=0.1."""
    names = sorted((form for name in INTERVENTIONS for form in {name, name.replace("_", "-")}), key=len, reverse=True)
    parts = []
    for part in place.split("+"):
        name = next((name for name in names if part.startswith(f"{name}_") and "=" in part), None)
        parts.append(part if name is None else f"{name}:{part[len(name) + 1 :]}")
    return "+".join(parts)


@dataclass
class Numbers:
    """The numbers of the finished runs of one stream."""

    curves: dict[str, dict[int, NDArray[Any]]] = field(default_factory=dict)
    """Method -> seed -> (tasks, bins)."""
    fresh: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    """Seed -> task -> (bins,) of the agent that is fresh there."""
    speeds: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, dict[str, list[NDArray[Any]]]] = field(default_factory=dict)
    """Method -> metric -> (tasks,) of every seed."""

    def oracle(self, num_tasks: int) -> dict[int, NDArray[Any]]:
        """Return seed -> (tasks, bins) of the agent that is fresh in every task, where no task is missing."""
        every = range(num_tasks)
        whole = {seed: tasks for seed, tasks in sorted(self.fresh.items()) if tasks.keys() >= {*every}}
        return {seed: np.stack([tasks[k] for k in every]) for seed, tasks in whole.items()}


def read_cells(cells: Mapping[Path, Cell], env: str, plan: TaskPlan, bin_steps: int | None = None) -> Numbers:
    """Read the finished runs of a stream; ``bin_steps``: environment steps in which episodes are averaged."""
    found, steps = Numbers(), plan.steps or 0
    bins = BINS if bin_steps is None else max(1, steps // bin_steps)
    for folder, cell in cells.items():
        if cell.env != env:
            continue
        series, num = columns(read_metrics(folder)), (plan.num or 0) if cell.task is None else 1
        if EPISODIC_RETURN not in series:
            continue
        curves = task_curves(series[EPISODIC_RETURN], num, steps, bins)
        if cell.task is not None:
            found.fresh.setdefault(cell.seed, {})[cell.task] = curves[0]
            continue
        found.curves.setdefault(cell.method, {})[cell.seed] = curves
        if SPEED in series:  # else the run was too short for one
            found.speeds.setdefault(cell.method, []).append(float(np.nanquantile(series[SPEED].values, UNDISTURBED)))
        mine = found.metrics.setdefault(cell.method, {})
        for metric, values in measured(series, num, steps).items():
            mine.setdefault(metric, []).append(values)
    return found


def measured(series: Mapping[str, Series], num_tasks: int, task_steps: int) -> dict[str, NDArray[Any]]:
    """Return metric -> its last value in every task, (tasks,), averaged over the networks."""
    found: dict[str, list[NDArray[Any]]] = {}
    for name, values in series.items():
        if (tag := parse_tag(name)) is not None and tag.layer == ALL:
            found.setdefault(tag.metric, []).append(last_of_tasks(values, num_tasks, task_steps))
    return {metric: np.mean(values, 0) for metric, values in found.items()}


def averaged(found: Mapping[str, list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return metric -> (tasks,), averaged over seeds; those of the display first."""
    return {metric: np.mean(found[metric], 0) for metric in shown_first(found)}
