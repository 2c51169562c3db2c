"""``plasticity runs``: the runs below a folder, one a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import tyro

from plasticity.storage.record import RECORD, read_record

from .arguments import read_arguments

HEAD: tuple[str, ...] = ("run", "agent", "environment", "seed", "status", "steps", "return", "methods")


@dataclass(frozen=True)
class RunsConfig:
    """List runs: agent, environment, seed, status, steps done, evaluation return and methods."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Folder that holds the runs."""
    agent: str = "*"
    """Agents, as a glob."""
    env: str = "*"
    """Environments, as a glob."""
    status: str = "*"
    """Status, as a glob: finished, running, interrupted, failed."""


def main(arguments: Sequence[str]) -> int:
    """Print a line per run, in the order of their names; what cannot be read is named."""
    config = read_arguments(RunsConfig, "runs", arguments)
    if not config.folder.is_dir():
        raise ValueError(f"{config.folder} is no folder; pass the one that holds the runs")
    rows = [HEAD]
    for path in sorted(config.folder.rglob(RECORD)):
        try:
            row = described(path.parent, read_record(path.parent))
        except ValueError as error:
            print(f"note: left out {error}", file=sys.stderr)
            continue
        if all(fnmatchcase(row[HEAD.index(name)], glob) for name, glob in asked(config).items()):
            rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def asked(config: RunsConfig) -> dict[str, str]:
    """Return column -> glob that it has to match."""
    return {"agent": config.agent, "environment": config.env, "status": config.status}


def described(folder: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of a run."""
    settings, returns = record["config"], [value for value in record.get("eval_returns", []) if value is not None]
    planned = settings.get("steps", 0)
    steps = f"{record['steps_done']:,}" if "steps_done" in record else f"of {planned:,}"
    mean = f"{sum(returns) / len(returns):.1f}" if returns else "-"
    methods = " ".join(settings.get("interventions", {})) or "-"
    names = (str(folder), record["agent"], settings.get("env", "-"), str(settings.get("seed", "-")))
    return (*names, record.get("status", "unknown"), steps, mean, methods)
