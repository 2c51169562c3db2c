"""The tables and pictures of a benchmark, from the folders of its finished runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plasticity.metrics import shown_first
from plasticity.reports.series import Series, band, columns
from plasticity.reports.tables import comma_separated, markdown
from plasticity.reports.tasks import Protocol, in_order, last_of_tasks, task_curves
from plasticity.storage.files import file_name, write_atomically
from plasticity.storage.rows import read_metrics
from plasticity.tags import ALL, EPISODIC_RETURN, SPEED, parse_tag

from .method_names import ORACLE, published_name
from .random_actions import random_returns

if TYPE_CHECKING:
    from .bench import Bench


@dataclass
class Finished:
    """The numbers of the finished runs of one stream."""

    curves: dict[str, dict[int, NDArray[Any]]] = field(default_factory=dict)
    """Method -> seed -> (tasks, bins)."""
    fresh: dict[int, dict[int, NDArray[Any]]] = field(default_factory=dict)
    """Seed -> task -> (bins,) of the agent that is fresh there."""
    speeds: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, dict[str, list[NDArray[Any]]]] = field(default_factory=dict)
    """Method -> metric -> (tasks,) of every seed."""


class BenchReport:
    """Page, tables and pictures of a benchmark."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.suite, self.folder = bench, bench.suite, bench.folder

    def write(self) -> None:
        """Print and write the tables of all streams with finished runs, and pictures; say why other runs failed."""
        for seed in self.bench.seeds:
            if seed.state == "failed":
                print(f"{seed.folder}: failed, {seed.error}; see {seed.console}", file=sys.stderr)
        text = "\n".join(one for env in self.bench.envs for one in self._of(env) if one)
        if not text:
            print("nothing is finished; the same command goes on")
            return
        print(text, end="")
        write_atomically(self.folder / "bench.md", text.encode())
        print(f"\n{self.folder / 'bench.md'}; see also: plasticity report {self.folder}", file=sys.stderr)

    def _of(self, env: str) -> Iterable[str]:
        """Yield the parts of the page on one stream."""
        protocol, place = self.protocol(env), self._place(env)
        if protocol is None:
            return
        tables = {"area": protocol.areas(), "tasks": protocol.per_task(), "gaps": protocol.gaps_by_task()}
        tables["metrics"] = protocol.metrics_by_task()
        for kind, table in tables.items():
            if table is not None:
                yield markdown(table)
                write_atomically(place / f"{kind}.csv", comma_separated(table).encode())
        yield self._order(env, protocol)
        if picture := draw(protocol, self.bench.plans[env].steps or 0, place / "curves.svg"):
            yield f"![{env}: mean return over tasks]({picture.relative_to(self.folder)})\n"

    def _place(self, env: str) -> Path:
        return self.folder / file_name(env)

    def _order(self, env: str, protocol: Protocol) -> str:
        """Return whether the methods that the paper has come in its order; empty for fewer than two of them."""
        keys = {published_name(name): name for name in protocol.everyone()}
        there = [name for name in self.suite.order if name in keys]
        if len(there) < 2 or env not in self.suite.published:
            return ""
        areas = {name: float(protocol.everyone()[keys[name]].mean()) for name in there}
        verdict = "kept" if in_order(areas, there) else "not kept"
        return f"Published order {' > '.join(there)}: {verdict} ({self.suite.source}).\n"

    def protocol(self, env: str) -> Protocol | None:
        """Return the numbers of the finished runs of a stream; None if there are none."""
        found, num = self._found(env), self.bench.plans[env].num or 0
        whole = {seed: np.stack([tasks[k] for k in sorted(tasks)]) for seed, tasks in found.fresh.items()
                 if len(tasks) == num}  # fmt: skip
        if not found.curves and not whole:
            return None
        stacked = {method: np.stack([by_seed[s] for s in sorted(by_seed)]) for method, by_seed in found.curves.items()}
        oracle = np.stack([whole[seed] for seed in sorted(whole)]) if whole else None
        published = {name: v for name in (*stacked, ORACLE) if (v := self._published(env, name)) is not None}
        speed = {method: float(np.mean(values)) for method, values in found.speeds.items()}
        random = self.random(env) if oracle is not None else None
        metrics = {method: averaged(measured) for method, measured in found.metrics.items()}
        return Protocol(env, stacked, oracle, random, speed, published, metrics)

    def _found(self, env: str) -> Finished:
        """Read the finished runs of a stream."""
        found, plan = Finished(), self.bench.plans[env]
        for seed in self.bench.seeds:
            cell = self.bench.cells[seed.folder]
            if cell.env != env or seed.state not in ("finished", "skipped"):
                continue
            series, num = columns(read_metrics(seed.folder)), (plan.num or 0) if cell.task is None else 1
            if EPISODIC_RETURN not in series:
                continue
            curves = task_curves(series[EPISODIC_RETURN], num, plan.steps or 0)
            if cell.task is not None:
                found.fresh.setdefault(cell.seed, {})[cell.task] = curves[0]
                continue
            found.curves.setdefault(cell.method, {})[cell.seed] = curves
            if SPEED in series:  # else the run was too short for one
                found.speeds.setdefault(cell.method, []).append(float(np.nanmean(series[SPEED].values)))
            mine = found.metrics.setdefault(cell.method, {})
            for metric, values in measured(series, num, plan.steps or 0).items():
                mine.setdefault(metric, []).append(values)
        return found

    def _published(self, env: str, method: str) -> float | None:
        return self.suite.published.get(env, {}).get(published_name(method))

    def random(self, env: str) -> NDArray[Any]:
        """Return the mean return of random actions in every task, (tasks,); kept in a file beside the runs."""
        file, num, seed = self._place(env) / "random.json", self.bench.plans[env].num or 0, self.bench.config.seed
        key = f"{seed} {num}"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if key not in kept:
            kept[key] = random_returns(env, seed, num)
            write_atomically(file, json.dumps(kept).encode())
        return np.array(kept[key])


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


def draw(protocol: Protocol, task_steps: int, file: Path) -> Path | None:
    """Draw the mean return over all tasks of every method; None without matplotlib."""
    try:
        from plasticity.reports.figures import Curve, Panel, draw_curves, encoded
    except ImportError:
        return None

    curves = []
    for number, (name, values) in enumerate(protocol.everyone().items()):
        _, tasks, bins = values.shape
        steps = (np.arange(tasks * bins) + 1) * task_steps / bins
        found, _ = band([Series(steps, one.reshape(-1)) for one in values])
        if found is not None:
            curves.append(Curve(name, number, found))
    figure = draw_curves([[Panel(protocol.env, "training return", curves)]], "environment steps")
    write_atomically(file, encoded(figure, "svg"))
    return file
