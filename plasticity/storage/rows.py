"""The rows of ``metrics.jsonl``: one as a line, all of a run, their tags; the runs below a folder."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from .files import open_plain, open_text

METRICS_FILE = "metrics.jsonl"
_TAIL = 2**18
"""Bytes at the end of the file that surely hold a row."""
RESERVED = ("step", "time", "event", "purge_step")  # keys of a row that are not tags

_logger = logging.getLogger(__name__)


def find_runs(root: Path | str) -> list[Path]:
    """Return every folder at or below ``root`` that holds a ``metrics.jsonl``, sorted."""
    return sorted(Path(folder) for folder, _, files in os.walk(root) if METRICS_FILE in files)


def open_rows(folder: Path | str) -> TextIO:
    """Open the rows of a run, as lines of text; OSError where they are no plain file."""
    return open_text(Path(folder) / METRICS_FILE, errors="replace")


def read_metrics(folder: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a run in the order they were written; FileNotFoundError if it has none.

    A non-finite value is None. A torn last line (killed run) is left out, and so is what a resumed run wrote again:
    the rows from its resume step on that stood before it.
    """
    rows: list[dict[str, Any]] = []
    unreadable = 0
    with open_rows(folder) as lines:
        for line in lines:
            row = decode_row(line)
            if row is None:
                unreadable += bool(line.strip())
            elif "purge_step" in row:
                rows = [earlier for earlier in rows if earlier["step"] < row["purge_step"]]
            else:
                rows.append(row)
    if unreadable > 1:  # one is what a kill leaves
        _logger.warning("%s: left out %d lines that are no rows", Path(folder) / METRICS_FILE, unreadable)
    return rows


def last_step(folder: Path | str) -> int:
    """Return the step of the last row of a run; 0 for none. Reads the end of its file only."""
    try:
        with open_plain(Path(folder) / METRICS_FILE) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0
    return next((int(row["step"]) for line in reversed(lines) if (row := decode_row(line)) is not None), 0)


def metric_tags(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the TensorBoard tags behind ``rows``, each once, in order of appearance."""
    tags: dict[str, None] = {}
    for row in rows:
        if "event" in row:
            tags[f"events/{row['event']}"] = None
        else:
            tags.update(dict.fromkeys(tag for tag in row if tag not in RESERVED))
    return list(tags)


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Return ``row`` as one line of valid JSON: non-finite numbers become null, unknown objects their ``str``."""
    try:
        text = json.dumps(row, allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(row), default=_plain)
    return text.encode() + b"\n"


def decode_row(line: str | bytes) -> dict[str, Any] | None:
    """Return the row on ``line``, an object with a number as ``step``; None where there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and is_step(row.get("step")) and is_step(row.get("purge_step", 0)) else None


def is_stepless(line: str | bytes) -> bool:
    """Return whether a line is an object without a step, as other tools write them."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "step" not in row


def as_float(value: Any) -> float | None:
    """Return a value of a row as a float, NaN for null and for an integer beyond a float; None for other types."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.nan


def is_step(value: Any) -> bool:
    """Return whether a value can be the step of a row."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _plain(value: Any) -> Any:
    """Return tensors, arrays and numpy scalars as plain numbers, anything else as its ``str``."""
    return _finite(value.tolist()) if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
