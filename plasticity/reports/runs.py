"""Run folders as objects: settings, series, events; and notes on damaged ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from plasticity.storage.files import printable
from plasticity.storage.record import NO_CONFIGURATION, RECORD, read_record
from plasticity.storage.rows import METRICS_FILE, decode_row, is_stepless, open_rows, read_metrics
from plasticity.tags import EPISODIC_RETURN, EVAL_RETURN, PLAIN_EVENTS

from .series import RETURN_WINDOW, Series, columns, windowed


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder records it.

    ``record`` is its ``run.json``, empty where it has none (``plasticity.watch`` writes none).
    """

    folder: Path
    record: dict[str, Any]
    series: dict[str, Series]
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def env(self) -> str:
        """Return the environment, an empty string if the run has none."""
        return printable(str(self.record.get("config", {}).get("env", "")))

    @property
    def seed(self) -> Any:
        """Return the seed, None if it is not recorded."""
        return self.record.get("config", {}).get("seed")

    @property
    def status(self) -> str:
        """Return how the run ended: finished, running, interrupted, failed, or unknown."""
        return str(self.record.get("status", "unknown"))

    @property
    def last_step(self) -> int:
        """Return the last step that anything was logged at."""
        return int(max((s.steps[-1] for s in self.series.values()), default=0))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return the settings of its configuration, flat, by the names of the flags; without a record, its folder."""
        if not self.record:
            return {"run": str(self.folder)}
        config = dict(self.record["config"])
        if config.get("task_seed") == config.get("seed") and "task_seed" in config:  # as by default
            config["task_seed"] = None
        agent, methods = _mapping(config.pop("agent", None)), _mapping(config.pop("interventions", None))
        flat = {"agent": self.record["agent"], "interventions": sorted(methods), **config, **agent}
        flat |= {f"{method}.{key}": value for method, own in methods.items() for key, value in _mapping(own).items()}
        return {key: value for key, value in flat.items() if key not in NO_CONFIGURATION}

    @property
    def told(self) -> dict[str, Any]:
        """Return the settings as they are told: a default that was left open is what it came to in this run."""
        resolved = _mapping(_mapping(self.record.get("resolved")).get("told"))
        return {k: resolved.get(k, "default") if v is None else v for k, v in self.settings.items()}

    @property
    def command(self) -> list[str]:
        """Return the command that makes the run again, as it can be typed; empty where none is recorded.

        Of a flag that was given twice the last one counts, which is the one that is told.
        """
        if isinstance(arguments := self.record.get("arguments"), list):
            modules = [part for module in self.record.get("imports") or [] for part in ("--import", module)]
            return _typed(["plasticity", *modules, "train", self.record["agent"], *arguments])
        return _typed([str(word) for word in self.record.get("command") or []])


def load_runs(paths: Sequence[Path | str]) -> tuple[list[RecordedRun], list[str]]:
    """Return the runs at or below ``paths``, and notes on those left out or damaged.

    Of several runs with the same settings and seed one stays, the finished or else the longest: they are copies, not
    independent. Raises ValueError for a path without any run.
    """
    runs: list[RecordedRun] = []
    notes: list[str] = []
    for folder in _folders(paths):
        run = _load(folder, notes)
        if run is not None:
            runs.append(run)
    if not runs:
        raise ValueError("; ".join(notes) or "no runs given; pass run folders, or the folder that holds them: runs")
    kept = _without_copies(runs, notes)
    return kept, [printable(note) for note in notes]


def only_finished(runs: Sequence[RecordedRun], notes: Sequence[str]) -> tuple[list[RecordedRun], list[str]]:
    """Return the finished runs, and the notes with those that were left out; ValueError if none is finished."""
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        raise ValueError(f"none of {len(runs)} runs is finished")
    left = [f"left out {run.folder}: status {run.status}, last step {run.last_step:,}" for run in runs]
    return finished, [*notes, *(note for run, note in zip(runs, left, strict=True) if run.status != "finished")]


def having(runs: Sequence[RecordedRun], tag: str) -> list[Series]:
    """Return the series of ``tag`` of the runs that have a finite value of it; of training returns, their means.

    The mean at a step is that of the episodes that ended within the last ``RETURN_WINDOW`` of the run's steps.
    """
    found = [(run, run.series[tag]) for run in runs if tag in run.series and len(run.series[tag].finite().steps)]
    if tag != EPISODIC_RETURN:
        return [series for _, series in found]
    return [windowed(series, RETURN_WINDOW * run.last_step) for run, series in found]


def _folders(paths: Sequence[Path | str]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise ValueError(f"{path} is no folder; pass run folders, or a folder that holds some")
        below = sorted(Path(f) for f, _, files in os.walk(path) if {METRICS_FILE, RECORD} & set(files))
        if not below:
            raise ValueError(f"no run in {path}: no folder in it has a {METRICS_FILE}")
        found.update((folder.resolve(), folder) for folder in below)
    return list(found.values())


def _load(folder: Path, notes: list[str]) -> RecordedRun | None:
    record = _record(folder, notes)
    if not (folder / METRICS_FILE).is_file():
        notes.append(f"left out {folder}: it has no {METRICS_FILE} (status: {record.get('status', 'unknown')})")
        return None
    rows = read_metrics(folder)
    notes.extend(_left_out_lines(folder))
    series = columns(rows)
    if not series:
        notes.append(f"left out {folder}: nothing was logged yet (status: {record.get('status', 'unknown')})")
        return None
    events = [row for row in rows if isinstance(row.get("event"), str) and row["event"] not in PLAIN_EVENTS]
    run = RecordedRun(folder, record, series, events)
    if record and run.status != "finished":
        notes.append(f"{folder}: not finished (status: {run.status}, last step {run.last_step:,})")
    return run


def _record(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Return ``run.json``, empty where it cannot be read; ``notes`` then says why."""
    if not os.path.lexists(folder / RECORD):
        reason = f"there is no {RECORD}"
    else:
        try:
            return read_record(folder)
        except ValueError as error:
            reason = str(error)
    notes.append(f"{folder}: settings unknown, so it stands alone: {reason}")
    return {}


def _left_out_lines(folder: Path) -> list[str]:
    """Return notes on lines that are no rows, the torn last line of a killed run included."""
    with open_rows(folder) as lines:
        bad = [line for line in lines if line.strip() and decode_row(line) is None]
    stepless = sum(map(is_stepless, bad))
    counts = {
        "damaged line": ("", len(bad) - stepless),
        "line": (f' without a step: every row needs one, as in {{"step": 100, "{EVAL_RETURN}": 1.0}}', stepless),
    }
    return [
        f"{folder}: left out {count} {what}{'s' * (count > 1)} of {METRICS_FILE}{why}"
        for what, (why, count) in counts.items()
        if count
    ]


def _without_copies(runs: list[RecordedRun], notes: list[str]) -> list[RecordedRun]:
    kept: list[RecordedRun] = []
    for run in runs:
        place = next((i for i, other in enumerate(kept) if _is_copy(run, other)), None)
        if place is None:
            kept.append(run)
            continue
        by_length = sorted((kept[place], run), key=lambda r: (r.status == "finished", r.last_step), reverse=True)
        kept[place], worse = by_length
        same = f"same settings and seed as {kept[place].folder}"
        notes.append(f"left out {worse.folder}: {same}, so not an independent run")
    return kept


def _is_copy(run: RecordedRun, other: RecordedRun) -> bool:
    """Return whether two runs have the same seed and settings; one that only one of them records tells nothing."""
    shared = run.settings.keys() & other.settings.keys()
    return run.seed == other.seed and bool(shared) and all(run.settings[k] == other.settings[k] for k in shared)


def _typed(words: list[str]) -> list[str]:
    """Return a recorded command as it is typed: by its name, and every flag once."""
    if not words:
        return []
    head = ["plasticity"] if Path(words[0]).name in ("__main__.py", "plasticity") else words[:1]
    groups: list[list[str]] = [[]]
    for word in words[1:]:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    last = {group[0].partition("=")[0]: i for i, group in enumerate(groups) if group}
    kept = [g for i, g in enumerate(groups) if g and (i == 0 or last[g[0].partition("=")[0]] == i)]
    return [*head, *(word for group in kept for word in group)]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
