"""The tables of ``plasticity bench`` on the runs of a report, and which of these runs are parts of an oracle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from plasticity.storage.files import open_text

from .runs import RecordedRun
from .tables import Table, read_comma_separated
from .tasks import AREA_NOTE, GAP_NOTE

TABLES = {
    "area": ("Tasks of {}", AREA_NOTE),
    "tasks": ("Mean return by task of {}", ""),
    "gaps": ("Plasticity gap by task of {}", GAP_NOTE),
    "metrics": ("Metrics at the end of tasks of {}", ""),
}
"""Name of a file, beside the folders of methods -> title and note."""
FRESH = re.compile(r"seed_\d+_task_\d+")
"""Name of the folder of an agent that learns one task alone."""


def bench_tables(runs: Sequence[RecordedRun]) -> tuple[list[Table], list[str]]:
    """Return the tables that stand beside the runs of a bench, as it wrote them last, and notes on unreadable ones."""
    found: list[Table] = []
    notes: list[str] = []
    places: dict[Path, str] = {run.folder.parent.parent: run.env for run in runs}
    for place, env in places.items():
        for name, (title, note) in TABLES.items():
            file = place / f"{name}.csv"
            if not file.is_file():
                continue
            try:
                with open_text(file) as opened:
                    found.append(read_comma_separated(opened.read(), title.format(env), note))
            except (OSError, ValueError) as error:
                notes.append(f"{file} is left out: no table of plasticity bench ({error})")
    return found, notes


def without_oracles(runs: Sequence[RecordedRun]) -> tuple[list[RecordedRun], list[str]]:
    """Return the runs but those of single tasks, which no other run compares with, and a note; all if all are such."""
    kept = [run for run in runs if run.settings.get("num_tasks") != 1 or not FRESH.fullmatch(run.folder.name)]
    if not kept or len(kept) == len(runs):
        return list(runs), []
    left = len(runs) - len(kept)
    return kept, [f"left out {left} runs of agents that are fresh in a task: their numbers are in the tables of bench"]
