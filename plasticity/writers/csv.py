"""Comma-separated tables for spreadsheets and pandas: scalars, events, scores of neurons, settings."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plasticity.storage.appendfile import AppendFile
from plasticity.storage.files import write_atomically

from .files import FileWriter
from .records import as_json, dotted

METRICS_TABLE, EVENTS_TABLE, SCORES_TABLE, SETTINGS_TABLE = "metrics.csv", "events.csv", "scores.csv", "settings.csv"


class CsvWriter(FileWriter):
    """Write one row per call: scalars, a column per tag, into ``metrics.csv``; events into ``events.csv``.

    A cell is empty where the row logs nothing under its tag; numbers that are not finite are ``nan``, ``inf`` and
    ``-inf``. A tag that is new means that the whole table is written again. Distributions, all numbers of them as JSON,
    go into ``scores.csv``, the settings into ``settings.csv``. Texts are left out.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self._metrics = CsvTable(self.folder / METRICS_TABLE, ["step", "time"])
        self._events = CsvTable(self.folder / EVENTS_TABLE, ["step", "time", "event", "details"])
        self._scores = CsvTable(self.folder / SCORES_TABLE, ["step", "time", "tag", "values"])

    def resume(self, step: int) -> None:
        """Drop the rows of ``step`` and later ones."""
        self._attempt(METRICS_TABLE, lambda: self._metrics.purge(step))
        self._attempt(EVENTS_TABLE, lambda: self._events.purge(step))
        self._attempt(SCORES_TABLE, lambda: self._scores.purge(step))

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Write a row per setting, its name and its value."""
        rows = [["setting", "value"], *([name, value] for name, value in dotted(settings).items())]
        self._attempt(SETTINGS_TABLE, lambda: write_atomically(self.folder / SETTINGS_TABLE, csv_lines(rows)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row of scalars."""
        row = {"step": int(step), "time": time.time()}
        row.update((tag, number) for tag, number in self._numbers(values).items() if tag not in row)
        self._attempt(METRICS_TABLE, lambda: self._metrics.append(row))

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write one row with all numbers of a distribution, a list of JSON; those that are not finite are null."""
        numbers = self._array(tag, values)
        if numbers is not None:
            row = {"step": int(step), "time": time.time(), "tag": tag, "values": as_json(numbers.tolist())}
            self._attempt(SCORES_TABLE, lambda: self._scores.append(row))

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Write one row with the details, an object of JSON."""
        row = {"step": int(step), "time": time.time(), "event": name, "details": as_json(details)}
        self._attempt(EVENTS_TABLE, lambda: self._events.append(row))

    def _end(self, succeeded: bool) -> None:
        self._attempt(METRICS_TABLE, self._metrics.close)
        self._attempt(EVENTS_TABLE, self._events.close)
        self._attempt(SCORES_TABLE, self._scores.close)


class CsvTable:
    """A file of comma-separated rows that gains columns; it appears with its first row. Methods raise OSError."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        self._file: AppendFile | None = None
        if path.exists():
            self._rewrite(*self._read())

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; keys that are no columns yet become the last ones."""
        new = [key for key in row if key not in self.columns]
        if new or self._file is None:
            columns, rows = self._read()
            self._rewrite([*columns, *new], rows)
        assert self._file is not None
        self._file.append(csv_lines([[row.get(column, "") for column in self.columns]]))

    def purge(self, step: int) -> None:
        """Remove the rows of ``step`` and later ones."""
        if self.path.exists():
            columns, rows = self._read()
            self._rewrite(columns, [row for row in rows if _step(row) < step])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of the file, without the torn last line of a killed run."""
        if not self.path.exists():
            return self.columns, []
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1].decode(errors="replace")
        columns, *rows = list(csv.reader(io.StringIO(whole, newline=""))) or [self.columns]
        return columns, rows

    def _rewrite(self, columns: list[str], rows: list[list[str]]) -> None:
        """Replace the file in one step and go on behind its last row."""
        padded = (row + [""] * (len(columns) - len(row)) for row in rows)
        write_atomically(self.path, csv_lines([columns, *padded]))
        old, self._file, self.columns = self._file, AppendFile(self.path), columns
        if old is not None:
            old.close()


def csv_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    """Return rows as comma-separated lines; floats keep every digit."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _step(row: Sequence[str]) -> float:
    try:
        return float(row[0])
    except (ValueError, IndexError):
        return float("inf")
