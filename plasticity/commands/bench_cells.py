"""The runs of a benchmark: which there are in a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from plasticity.interventions import INTERVENTIONS
from plasticity.storage.record import RECORD, read_record

from .method_names import joined_methods

PLACE = re.compile(r"seed_(\d+)(?:_task_(\d+))?")
"""Name of a run's folder."""


NUMBERS_NEED = "env", "num_envs", "task_steps", "num_tasks"
"""Settings that the numbers of a run are computed with."""


@dataclass(frozen=True)
class Cell:
    """A run of the benchmark."""

    env: str
    method: str
    seed: int
    task: int | None
    """Of an oracle's run: the only task; None: all of them."""


@dataclass
class FoundCells:
    """The runs that a folder of a suite holds."""

    finished: dict[Path, Cell] = field(default_factory=dict)
    unfinished: list[Cell] = field(default_factory=list)


def find_cells(folder: Path) -> FoundCells:
    """Return the runs of a suite."""
    found = FoundCells()
    for place, (seed, task) in _runs(folder):
        record = read_record(place)
        if missing := [name for name in NUMBERS_NEED if record["config"].get(name) is None]:
            raise ValueError(f"{place} is no run of plasticity bench: its settings lack {', '.join(missing)}; move it")
        cell = Cell(record["config"]["env"], method_of(place.parent.name), seed, task)
        if record.get("status") == "finished":
            found.finished[place] = cell
        else:
            found.unfinished.append(cell)
    return found


def _runs(folder: Path) -> Iterator[tuple[Path, tuple[int, int | None]]]:
    """Yield the folders of runs, in the order of streams, methods, seeds and tasks, with seed and task."""
    places = [record.parent for record in folder.glob(f"*/*/*/{RECORD}")]
    named = [(place, match) for place in places if (match := PLACE.fullmatch(place.name))]
    cells = [(place, (int(m[1]), None if m[2] is None else int(m[2]))) for place, m in named]
    return iter(sorted(cells, key=lambda one: (one[0].parent, one[1][0], one[1][1] or 0)))


def place_of(method: str) -> str:
    """Return the name of the folder of a method."""
    return re.sub(r"[^\w.,=+-]+", "_", method)


def method_of(place: str) -> str:
    """Return the method whose folder has this name: l2-init:coef=0.1 of l2-init_coef=0.1."""
    names = sorted((form for name in INTERVENTIONS for form in {name, name.replace("_", "-")}), key=len, reverse=True)
    parts = []
    for part in joined_methods(place):
        name = next((name for name in names if part.startswith(f"{name}_") and "=" in part), None)
        parts.append(part if name is None else f"{name}:{part[len(name) + 1 :]}")
    return "+".join(parts)
