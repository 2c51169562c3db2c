"""The page of a suite: a verdict, the picture and the table of every stream, from the numbers of its runs.

Those stand in a file beside it, one per stream: the page keeps the runs that it was drawn from before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.reports.statistics import Interval
from plasticity.reports.tables import Table, cell, markdown
from plasticity.reports.tasks import Protocol, over_seeds
from plasticity.storage.files import write_atomically

from .bench_cells import Cell, find_cells
from .bench_kept import file_of, kept_streams, read_kept, with_new, write_kept
from .bench_numbers import all_numbers, plans_of
from .bench_picture import draw, drawn_methods
from .bench_report import BenchReport
from .method_names import NONE, ORACLE, published_name
from .suites import Suite

LOST = 0.1
"""Gap from which on plasticity counts as lost."""
AREA_COLUMNS = 10
"""Columns of the table of areas; those of metrics follow."""


def write_page(name: str, suite: Suite, runs: Path, folder: Path) -> int:
    """Write NAME.md and a picture per stream to a folder, from the runs of the suite; return the exit status."""
    found = find_cells(runs)
    new = all_numbers(found.finished, suite)
    streams = dict.fromkeys([*suite.envs, *(run.cell.env for run in new), *kept_streams(folder, name)])
    files = {env: file_of(folder, name, env) for env in streams}
    kept = {env: read_kept(file, env) for env, file in files.items()}
    every = with_new((run for before, _ in kept.values() for run in before), new)
    if not every:
        raise ValueError(f"{runs} holds no finished run of {name}: train some first, plasticity bench {name}")
    plans = plans_of(every)
    folder.mkdir(parents=True, exist_ok=True)
    report = BenchReport(suite, runs, plans, every)
    report.known = {env: random for env, (_, random) in kept.items()}
    parts = [f"# {name}\n", f"<!-- Written by `plasticity bench {name} --page FOLDER`: train more, run it again. -->\n"]
    parts += [f"{suite.about}\n"] if suite.about else []
    for env in (env for env in streams if env in plans):
        protocol = report.protocol(env)
        if protocol is not None:
            picture = draw(protocol, plans[env].steps or 0, files[env].with_suffix(".svg"))
            parts += _stream(report, env, protocol, picture)
            parts.append(f"The numbers of all runs: [{files[env].name}]({files[env].name}).\n")
        write_kept(files[env], (run for run in every if run.cell.env == env), report.known[env])
    parts += _missing(suite, report, found.unfinished)
    if code := {run.code for run in every if run.code}:
        parts.append(f"Trained by the code of {', '.join(sorted(code))}.\n")
    write_atomically(folder / f"{name}.md", "\n".join(part for part in parts if part).encode())
    print(folder / f"{name}.md", file=sys.stderr)
    return 0


def _stream(report: BenchReport, env: str, protocol: Protocol, picture: Path | None) -> Iterator[str]:
    """Yield the parts of a page on one stream."""
    plan = report.plans[env]
    options = next(run.options for run in report.runs if run.cell.env == env)
    beside = f", trained with `{options}`" if options else ""
    yield f"## {env}\n\n{plan.num} tasks of {plan.steps:,} steps{beside}. {verdict(protocol)}\n"
    if picture is not None:
        names = ", ".join(drawn_methods(protocol))
        yield f"![{env}: returns over tasks, and the gap to a fresh agent, of {names}]({picture.name})\n"
    table = protocol.areas()
    yield markdown(
        Table("Areas", table.columns[:AREA_COLUMNS], [row[:AREA_COLUMNS] for row in table.rows], table.note), 3
    )
    yield report.order(env, protocol)
    if len(table.columns) > AREA_COLUMNS:
        rows = [
            [row[0], *row[AREA_COLUMNS:]]
            for row in table.rows
            if any(value is not None for value in row[AREA_COLUMNS:])
        ]
        yield markdown(Table("Metrics of the last measurement", ["method", *table.columns[AREA_COLUMNS:]], rows), 3)
    if (lost := protocol.gaps_by_task()) is not None:
        yield markdown(Table("Gap by task", lost.columns, lost.rows, lost.note), 3)


def verdict(protocol: Protocol) -> str:
    """Return what the runs say of lost plasticity: of agents without a method, then of the method that keeps most."""
    if NONE not in protocol.curves:
        return "No verdict: nothing was trained without a method."
    by_task = protocol.curves[NONE].mean((0, 2))
    if len(by_task) < 2:
        return "No verdict: there is one task only."
    said = f"Without a method the return goes from {cell(float(by_task[0]))} in the first task to " \
           f"{cell(float(by_task[-1]))} in the last"  # fmt: skip
    gap = late_gap(protocol.gaps_of(NONE)) if protocol.oracle is not None else float("nan")
    if np.isnan(_value(gap)):
        return f"{said}. No verdict: there is no fresh agent that learns, of the same seed, to compare with."
    assert protocol.oracle is not None
    fresh = cell(float(protocol.oracle[:, -1].mean()))
    said += f", where a fresh agent has {fresh}; in the second half of the tasks its gap to that is {cell(gap)}"
    low = gap.low if isinstance(gap, Interval) else gap
    word = "Plasticity is lost" if low > LOST else "No loss of plasticity is shown"
    others = {name: late_gap(protocol.gaps_of(name)) for name in protocol.curves if name != NONE}
    known = {name: value for name, value in others.items() if not np.isnan(_value(value))}
    best = min(known, key=lambda name: _value(known[name]), default=None)
    keeps = "" if best is None else f" The smallest gap is that of `{best}`: {cell(known[best])}."
    return f"**{word}.** {said}.{keeps}"


def late_gap(gaps: NDArray[Any]) -> Any:
    """Return the mean gap in the second half of the tasks over seeds, with its interval; NaN without one."""
    half = gaps[:, gaps.shape[1] // 2 :] if gaps.size else np.empty((0, 0))
    half = half[np.isfinite(half).any(1)] if half.size else half
    return over_seeds(np.nanmean(half, 1)) if half.size else float("nan")


def _value(number: Any) -> float:
    return number.value if isinstance(number, Interval) else float(number)


def _missing(suite: Suite, report: BenchReport, unfinished: list[Cell]) -> Iterator[str]:
    """Yield what the page lacks."""
    there = {(run.cell.env, published_name(run.cell.method)) for run in report.runs}
    lacks = [f"{env}: {name}" for env, areas in suite.published.items() for name in areas
             if env in report.plans and (env, name) not in there]  # fmt: skip
    lacks += [env for env in suite.envs if env not in report.plans]
    lacks += [f"{one.env}: {one.method}, seed {one.seed}" for one in unfinished if one.method != ORACLE]
    if lacks:
        yield f"## Not there\n\n{'; '.join(lacks)}.\n"
