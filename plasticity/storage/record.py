"""``run.json``: the settings of a run, how it was started and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .files import open_text, write_atomically
from .upgrade import upgraded

RECORD = "run.json"
MODEL, CHECKPOINTS = "model", "checkpoints"
"""Folders beside the record."""
RECORD_FORMAT = 2
"""Format of the records that this version writes; 0.1.0 wrote 1, without saying so."""
NO_CONFIGURATION = frozenset(
    {
        *("seed", "name", "out", "quiet", "seeds", "jobs", "retries", "dry_run", "checkpoint", "log", "tag"),
        *("probes", "probe_every", "probe_window", "meters"),  # measuring changes nothing that is learned
    }
)
"""Settings that do not make another configuration: runs that differ in these only are seeds of one another."""


SHAPE: dict[str, tuple[tuple[type, ...], str]] = {
    "status": ((str,), "text"),
    "config.env": ((str,), "text"),
    "config.seed": ((int,), "a number"),
    "config.steps": ((int,), "a number"),
    "config.num_envs": ((int,), "a number"),
    "config.agent": ((dict,), "an object"),
    "config.interventions": ((dict,), "an object"),
    "config.interventions.*": ((dict,), "an object"),
    "config.meters": ((dict,), "an object"),
    "config.meters.*": ((dict,), "an object"),
    "config.probes": ((list,), "a list"),
    "config.probes.*": ((str,), "text"),
    "config.tag": ((list,), "a list"),
    "config.tag.*": ((str,), "text"),
    "command": ((list,), "a list"),
    "command.*": ((str,), "text"),
    "arguments": ((list,), "a list"),
    "arguments.*": ((str,), "text"),
    "imports": ((list,), "a list"),
    "imports.*": ((str,), "text"),
    "versions": ((dict,), "an object"),
    "resolved": ((dict,), "an object"),
    "hardware": ((dict,), "an object"),
    "git": ((dict, type(None)), "an object"),
    "steps_done": ((int,), "a number"),
    "eval_returns": ((list,), "a list"),
    "eval_returns.*": ((int, float, type(None)), "a number"),
}
"""Dotted place in a record -> the types that readers rely on, in words too; ``*``: every entry. All may be missing."""


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json`` in one step, with format and version; OSError leaves the old one in place."""
    stamped = {"format": RECORD_FORMAT, "version": package_version(), **record}
    write_atomically(folder / RECORD, json.dumps(stamped, indent=2).encode() + b"\n")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the contents of ``run.json``; ValueError if there is none, if it is damaged, or of a newer format."""
    path = Path(folder) / RECORD
    try:
        with open_text(path) as file:
            record = json.loads(file.read())
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a run: it has no {RECORD}") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    written = record.get("format", 1)
    if type(written) is not int:
        raise ValueError(f"{path} is damaged: its format is {written!r:.40}, no number")
    if written > RECORD_FORMAT:
        raise ValueError(
            f"{path} has format {written}, written by version {record.get('version', 'unknown')}; this version reads "
            f"up to {RECORD_FORMAT}: install the newer one"
        )
    if not (isinstance(record.get("agent"), str) and isinstance(record.get("config"), dict)):
        raise ValueError(f"{path} is damaged: it lacks the agent or its config")
    for place, (types, words) in SHAPE.items():
        for value in _found(record, place.split(".")):
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise ValueError(f"{path} is damaged: {place} is {value!r:.40}, not {words}")
    return upgraded(record)


def _found(value: Any, place: list[str]) -> list[Any]:
    """Return what stands at a place, every entry for ``*``; empty where it is missing, or what it is in is another."""
    if not place:
        return [value]
    key, *rest = place
    if key == "*":
        entries = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        return [found for entry in entries for found in _found(entry, rest)]
    return _found(value[key], rest) if isinstance(value, dict) and key in value else []


def package_version() -> str:
    """Return the version of this package, ``unknown`` where it is not installed."""
    try:
        return version("plasticity-toolkit")
    except PackageNotFoundError:
        return "unknown"
