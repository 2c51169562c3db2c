"""``plasticity report``: curves, heat maps and tables of runs, as one page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from plasticity.tags import RETURN_TITLES

from .arguments import read_arguments


@dataclass(frozen=True)
class ReportConfig:
    """Write a report on runs: learning and plasticity curves with bands over seeds, layers over time, tables."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders that hold some. Runs that differ in their seed only are one configuration."""
    out: Path = Path("report")
    """Folder to write into."""
    formats: tuple[Literal["html", "pdf", "md", "csv", "svg", "png"], ...] = ("html",)
    """Any of: html (one page with everything in it), pdf, md, csv, svg, png."""
    curves: tuple[str, ...] = tuple(RETURN_TITLES)
    """Tags to draw as learning curves."""
    metrics: tuple[str, ...] = ()
    """Plasticity metrics to show; default: dormancy, grama, effective_rank and probes of your own, six at most."""
    finished: bool = False
    """Leave out runs that are not finished; curves of a configuration end with its shortest run."""


def main(arguments: Sequence[str]) -> int:
    """Write the files and name them."""
    config = read_arguments(ReportConfig, "report", arguments, imports="matplotlib")
    from plasticity.reports.bench_tables import without_oracles
    from plasticity.reports.document import Report
    from plasticity.reports.runs import load_runs, only_finished

    runs, notes = load_runs(config.runs)
    runs, left_out = without_oracles(runs)
    notes += left_out
    if config.finished:
        runs, notes = only_finished(runs, notes)
    command = shlex.join(["plasticity", "report", *arguments])
    report = Report(runs, notes, config.curves, config.metrics or None, command)
    files = report.write(config.out, config.formats)
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    for file in files:
        print(file)
    return 0
