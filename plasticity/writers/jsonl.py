"""The run's own record: ``metrics.jsonl`` with every scalar and event, ``scores.jsonl`` with the scores of neurons."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plasticity.storage.appendfile import AppendFile
from plasticity.storage.rows import METRICS_FILE, RESERVED, encode_row
from plasticity.storage.scores import SCORES_FILE, ScoresFile
from plasticity.tags import parse_score_tag

from .files import FileWriter
from .records import count_nonfinite


class JsonLinesWriter(FileWriter):
    """Write a line of JSON per call into ``metrics.jsonl``, and the scores of neurons into ``scores.jsonl``.

    Every row is handed to the system when it is logged, so a killed run loses none. A non-finite value is ``null``.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        path = self.folder / METRICS_FILE
        self._rows = AppendFile(path)
        try:
            self._scores = ScoresFile(self.folder)
        except OSError:
            self._rows.close()
            raise
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):  # the torn line of a killed run
            self._attempt(METRICS_FILE, lambda: self._rows.append(b"\n"))

    def resume(self, step: int) -> None:
        """Mark that readers forget the rows of ``step`` and later ones that stand before the mark."""
        if (self.folder / METRICS_FILE).stat().st_size:
            self._write(step, time.time(), {}, purge_step=step)
        self._scores.resume(step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row of scalars."""
        self._write(step, time.time(), self._numbers(values))

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write scores of neurons (``scores/<network>/<probe>/<layer>``), and how many values are not finite."""
        numbers = self._array(tag, values)
        if numbers is None:
            return
        if numbers.size and parse_score_tag(tag) is not None:
            self._attempt(SCORES_FILE, lambda: self._scores.append(step, tag, numbers))
        if nonfinite := count_nonfinite(tag, numbers):
            self.log(step, nonfinite)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Write one row with the details of an event."""
        self._write(step, time.time(), details, event=name)

    def sync(self) -> None:
        """Wait until all rows are on the disk itself."""
        self._attempt(METRICS_FILE, self._rows.sync)
        self._attempt(SCORES_FILE, self._scores.sync)

    def _end(self, succeeded: bool) -> None:
        self._attempt(METRICS_FILE, self._rows.close)
        self._attempt(SCORES_FILE, self._scores.close)

    def _write(self, step: int, now: float, values: Mapping[str, Any], **marks: Any) -> None:
        row = {"step": int(step), "time": now, **marks}
        row.update((key, value) for key, value in values.items() if key not in RESERVED)
        for key in values.keys() & set(RESERVED):
            self._drop("value", f"the name {key!r} is taken by every row of {METRICS_FILE}")
        self._attempt(METRICS_FILE, lambda: self._rows.append(encode_row(row)))
