"""The numbers of the finished runs of a benchmark: measured from their folders, gathered by stream."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.envs import TaskPlan
from plasticity.metrics import shown_first
from plasticity.reports.series import Series, columns
from plasticity.reports.tasks import BINS, last_of_tasks, task_curves
from plasticity.storage.record import read_record
from plasticity.storage.rows import read_metrics
from plasticity.tags import ALL, EPISODIC_RETURN, SPEED, parse_tag

from .bench_cells import Cell
from .bench_options import options_beside
from .suites import Suite

UNDISTURBED = 0.9
"""Quantile of a run's speeds that counts: what else the machine does slows the rest."""
LIMITS = ("action_repeat", "max_episode_steps")
"""Settings of a run that its random actions need."""


@dataclass(frozen=True)
class CellNumbers:
    """The numbers of a finished run."""

    cell: Cell
    steps: int
    """Environment steps of a task."""
    curves: NDArray[Any]
    """(tasks, bins): mean returns; of an oracle's run one task."""
    speed: float | None = None
    """Environment steps per second; None: the run was too short for one."""
    metrics: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Metric -> (tasks,): its last value in every task."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Those of ``LIMITS`` that were given."""
    code: str | None = None
    """Commit of the code that trained it, seven digits; where that is unknown its version, or other words."""
    options: str = ""
    """Those that it was given besides the settings of the suite and of the method; another agent before them."""


def all_numbers(folders: Mapping[Path, Cell], suite: Suite) -> list[CellNumbers]:
    """Return the numbers of finished runs; say which have none, as no episode ended in them."""
    found = []
    for folder, cell in folders.items():
        if (numbers := numbers_of(folder, cell, suite)) is None:
            print(f"{folder} is left out: no episode ended in it", file=sys.stderr)
        else:
            found.append(numbers)
    return found


def numbers_of(folder: Path, cell: Cell, suite: Suite) -> CellNumbers | None:
    """Return the numbers of a finished run, None if no episode ended in it."""
    record, series = read_record(folder), columns(read_metrics(folder))
    if EPISODIC_RETURN not in series:
        return None
    config = record["config"]
    num, num_envs = config["num_tasks"] if cell.task is None else 1, config["num_envs"]
    steps = num_envs * (TaskPlan(steps=config["task_steps"]).shared(num_envs).steps or 0)
    bins = BINS if suite.bin_steps is None else max(1, steps // suite.bin_steps)
    curves = task_curves(series[EPISODIC_RETURN], num, steps, bins)
    limits = {name: config[name] for name in LIMITS if config.get(name) is not None}
    commit = (record.get("git") or {}).get("commit")
    code, options = str(commit)[:7] if commit else record.get("version"), options_beside(record, suite, cell.method)
    found = CellNumbers(cell, steps, rounded(curves), limits=limits, code=code, options=options)
    if cell.task is not None:
        return found
    speeds = series[SPEED].finite().values if SPEED in series else ()
    speed = float(np.quantile(speeds, UNDISTURBED)) if len(speeds) else None
    metrics = {metric: rounded(values) for metric, values in measured(series, num, steps).items()}
    return replace(found, speed=speed and float(rounded(np.array(speed))), metrics=metrics)


def rounded(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values to five digits: those of a file, so that a page is the same from the runs and from the file."""
    return np.array([float(f"{value:.5g}") for value in values.flat]).reshape(values.shape)


def measured(series: Mapping[str, Series], num_tasks: int, task_steps: int) -> dict[str, NDArray[Any]]:
    """Return metric -> its last value in every task, (tasks,), averaged over the networks."""
    found: dict[str, list[NDArray[Any]]] = {}
    for name, values in series.items():
        if (tag := parse_tag(name)) is not None and tag.layer == ALL:
            found.setdefault(tag.metric, []).append(last_of_tasks(values, num_tasks, task_steps))
    return {metric: np.mean(values, 0) for metric, values in found.items()}


def plans_of(runs: Iterable[CellNumbers]) -> dict[str, TaskPlan]:
    """Return stream -> length and number of its tasks; ValueError where those of two runs differ, or their settings.

    An agent that is fresh in every task may have more or fewer tasks: without runs of others its last task counts.
    """
    found: dict[str, TaskPlan] = {}
    first: dict[str, CellNumbers] = {}
    wholes = set[str]()
    for run in runs:
        cell = run.cell
        own = TaskPlan(steps=run.steps, num=len(run.curves) if cell.task is None else cell.task + 1)
        plan = found.setdefault(cell.env, own)
        whole = cell.env in wholes
        if plan.steps != own.steps or (whole and cell.task is None and plan.num != own.num):
            raise _unlike(run, f"{own.num} tasks of {own.steps} steps", f"{plan.num} of {plan.steps}")
        other = first.setdefault(cell.env, run)
        if run.options != other.options:
            raise _unlike(run, run.options or "the suite's settings", other.options or "those of the suite")
        if run.curves.shape[1] != other.curves.shape[1]:
            raise _unlike(run, f"{run.curves.shape[1]} returns in a task", f"{other.curves.shape[1]}")
        if cell.task is None:
            wholes.add(cell.env)
            found[cell.env] = own
        elif not whole:
            found[cell.env] = replace(plan, num=max(plan.num or 1, own.num or 1))
    return found


def _unlike(run: CellNumbers, own: str, others: str) -> ValueError:
    return ValueError(
        f"{run.cell.env}, {run.cell.method}, seed {run.cell.seed}: {own}, where other runs have {others}; take the "
        "ones or the others out of their folder, or give the page a folder of its own"
    )


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


def gather(runs: Iterable[CellNumbers], env: str) -> Numbers:
    """Return the numbers of the runs of a stream."""
    found = Numbers()
    for run in runs:
        cell = run.cell
        if cell.env != env:
            continue
        if cell.task is not None:
            found.fresh.setdefault(cell.seed, {})[cell.task] = run.curves[0]
            continue
        found.curves.setdefault(cell.method, {})[cell.seed] = run.curves
        if run.speed is not None:
            found.speeds.setdefault(cell.method, []).append(run.speed)
        mine = found.metrics.setdefault(cell.method, {})
        for metric, values in run.metrics.items():
            mine.setdefault(metric, []).append(values)
    return found


def averaged(found: Mapping[str, list[NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Return metric -> (tasks,), averaged over seeds; those of the display first."""
    return {metric: np.mean(found[metric], 0) for metric in shown_first(found)}
