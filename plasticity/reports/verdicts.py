"""The verdicts of ``plasticity diagnose`` on the runs of a report, as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plasticity.storage.files import open_text

from .runs import RecordedRun
from .tables import Table

VERDICT = "verdict.json"
"""Name of the file that ``plasticity diagnose`` writes into ``diagnosis/step-N`` of a run."""
COLUMNS = ("run", "step", "network", "verdict", "try")


def verdicts(runs: Sequence[RecordedRun]) -> tuple[Table | None, list[str]]:
    """Return a row for every network that was examined, None if none was, and notes on files that cannot be read."""
    rows: list[list[Any]] = []
    notes: list[str] = []
    for run in runs:
        for file in sorted(run.folder.glob(f"diagnosis/*/{VERDICT}"), key=_step):
            try:
                with open_text(file) as opened:
                    rows += _rows(run.folder, json.loads(opened.read()))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                notes.append(f"{file} is left out: no verdict of plasticity diagnose ({type(error).__name__})")
    note = "By trials on copies: plasticity diagnose RUN. The file verdict.txt beside each has the numbers."
    return (Table("Verdicts", list(COLUMNS), rows, note) if rows else None), notes


def _step(file: Path) -> tuple[int, str]:
    digits = file.parent.name.rpartition("-")[2]
    return (int(digits) if digits.isascii() and digits.isdigit() else 0, file.parent.name)


def _rows(folder: Path, found: Any) -> Iterator[list[Any]]:
    step = int(found["step"])
    for network, verdict in found["networks"].items():
        if not isinstance(verdict["findings"], list):
            raise TypeError("findings is no list")
        sentences = ". ".join(str(sentence).rstrip(".") for sentence in verdict["findings"])
        yield [str(folder), step, str(network), sentences, str(verdict["advice"] or "")]
