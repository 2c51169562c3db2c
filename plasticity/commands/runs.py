"""``plasticity runs``: the runs below a folder, one a line; chosen by filters, they are deleted or archived."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import tyro

from plasticity.storage.files import is_locked, printable
from plasticity.storage.record import RECORD, read_record
from plasticity.storage.rows import last_step

from .arguments import read_arguments
from .return_text import return_text
from .tidying import archive, delete, require_alone, size_of

HEAD: tuple[str, ...] = ("run", "agent", "environment", "seed", "status", "steps", "return", "methods", "tags")


@dataclass(frozen=True)
class RunsConfig:
    """List runs: agent, environment, seed, status, steps done, evaluation return, methods and tags.

    Filters choose runs, and only with --delete or --archive is anything done to those that are listed. A run that is
    being trained is never touched, nor is a file that no run writes.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Folder that holds the runs."""
    agent: str = "*"
    """Agents, as a glob."""
    env: str = "*"
    """Environments, as a glob."""
    status: str = "*"
    """Status, as a glob: finished, running, interrupted, failed, killed."""
    tag: str | None = None
    """Runs with a tag that matches this glob; see --tag of plasticity train."""
    name: str = "*"
    """Paths below the folder, as a glob: *_seed1_*."""
    delete: bool = False
    """Delete the runs that are listed, after a question."""
    archive: Path | None = None
    """Move the runs that are listed into this folder, each to the same place below it."""
    yes: bool = False
    """Delete without the question."""


def main(arguments: Sequence[str]) -> int:
    """Print a line per run, in the order of their names; what cannot be read is named."""
    config = read_arguments(RunsConfig, "runs", arguments)
    if not config.folder.is_dir():
        raise ValueError(f"{config.folder} is no folder; pass the one that holds the runs")
    if config.delete and config.archive is not None:
        raise ValueError("runs are deleted or archived: pass --delete or --archive, not both")
    found = dict(listed(config))
    print_columns([HEAD, *found.values()])
    if not found:
        filters = [f"--{name} {value}" for name in FILTERS if (value := getattr(config, name)) not in (None, "*")]
        why = f" matches {printable(' '.join(filters))}; without filters all are listed" if filters else ""
        print(f"note: no run below {printable(str(config.folder))}{why}", file=sys.stderr)
    if config.archive is not None:
        return move_all(list(found), config.folder, config.archive)
    return delete_all(list(found), config.yes) if config.delete else 0


FILTERS = ("agent", "env", "status", "tag", "name")


def listed(config: RunsConfig) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the folders of the runs that the filters choose, and their cells; what cannot be read is named."""
    asked = {"agent": config.agent, "environment": config.env, "status": config.status}
    for path in sorted(config.folder.rglob(RECORD)):
        folder = path.parent
        try:
            record = read_record(folder)
        except ValueError as error:
            print(f"note: left out {printable(str(error))}", file=sys.stderr)
            continue
        row, tags = described(folder, record), record["config"].get("tag", [])
        fits = all(fnmatchcase(row[HEAD.index(column)], glob) for column, glob in asked.items())
        tagged = config.tag is None or any(fnmatchcase(tag, config.tag) for tag in tags)
        if fits and tagged and fnmatchcase(str(folder.relative_to(config.folder)), config.name):
            yield folder, row


def print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows as columns."""
    table = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    for row in table:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def described(folder: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a run."""
    settings, returns = record["config"], [value for value in record.get("eval_returns", []) if value is not None]
    status, planned = status_of(folder, record), settings.get("steps", 0)
    done = record["steps_done"] if "steps_done" in record and status != "running" else last_step(folder)
    steps = f"{done:,}" if status == "finished" else f"{done:,} of {planned:,}"
    mean = return_text(sum(returns) / len(returns)) if returns else "-"
    words = (" ".join(settings.get(kind, ())) or "-" for kind in ("interventions", "tag"))
    names = (str(folder), record["agent"], settings.get("env", "-"), str(settings.get("seed", "-")))
    return (*names, status, steps, mean, *words)


def status_of(folder: Path, record: dict[str, Any]) -> str:
    """Return the status of a run; ``killed`` for one that says that it runs, and has no process."""
    status = record.get("status", "unknown")
    return "killed" if status == "running" and not is_locked(folder) else status


def move_all(folders: Sequence[Path], root: Path, target: Path) -> int:
    """Archive runs; return 1 if one was refused."""
    return each(folders, lambda folder: f"moved to {archive(folder, root, target)}")


def delete_all(folders: Sequence[Path], yes: bool) -> int:
    """Delete runs, after a question unless ``yes``; return 1 if one was refused."""
    if not folders:
        return 0
    for folder in folders:
        require_alone(folder)
    if not yes:
        question = f"delete {len(folders)} runs, {size_of(folders) / 1e6:,.1f} MB? [y/N] "
        if not sys.stdin.isatty():
            raise ValueError("nothing was deleted: without a terminal to ask in, pass --yes")
        if input(question).strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return 0

    def deleted(folder: Path) -> str:
        kept = delete(folder)
        return f"deleted; kept {', '.join(kept)}, which no run writes" if kept else "deleted"

    return each(folders, deleted)


def each(folders: Sequence[Path], do: Any) -> int:
    """Do something to every run and say what; one that refuses is named, and the others go on."""
    code = 0
    for folder in folders:
        try:
            print(f"{folder}: {do(folder)}")
        except (RuntimeError, OSError, ValueError) as error:
            print(f"plasticity runs: left alone: {error}", file=sys.stderr)
            code = 1
    return code
