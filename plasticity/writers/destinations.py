"""The argument ``log=`` of ``plasticity.watch``: a folder, a writer, or several of these."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plasticity.callback import Writer
from plasticity.storage.rows import METRICS_FILE

from . import CLASSES, open_writers
from .fanout import Writers, require_single
from .records import RecordWriter

SERVICES = {name: kind for kind, name in CLASSES.items() if name in ("wandb", "mlflow", "trackio", "aim")}
"""Name of a tracking service -> the class of its writer."""
Destination = str | Path | Writer


class OpenLog:
    """One writer into all destinations; :meth:`close` closes the files, and leaves writers that were given open.

    ``settings``: how the networks are measured, written once.
    """

    def __init__(self, log: Destination | Sequence[Destination], settings: Mapping[str, Any] | None = None) -> None:
        destinations = [free_folder(Path(d)) if isinstance(d, (str, Path)) else d for d in destinations_of(log)]
        given = [one for one in destinations if not isinstance(one, (str, Path))]
        self._opened = [open_writers(one) for one in destinations if isinstance(one, (str, Path))]
        self.writer = Writers([*self._opened, *given])
        if settings:
            self.writer.settings(settings)
        for folder in (one for one in destinations if isinstance(one, Path)):
            print(
                f"plasticity: writing to {folder}; see it with: plasticity dashboard {folder.parent}", file=sys.stderr
            )

    def close(self) -> None:
        """Close the writers that were opened here."""
        for writer in self._opened:
            writer.close()


def destinations_of(log: Destination | Sequence[Destination]) -> list[Destination]:
    """Return the destinations as a list, of one too."""
    return list(log) if isinstance(log, (list, tuple)) else [log]  # type: ignore[list-item]


def free_folder(folder: Path) -> Path:
    """Make and return the folder, or where it holds a run, the next one without: ``mine``, ``mine_2``, ``mine_3``.

    Its ``metrics.jsonl`` is created at once, by one process only: of two that ask at the same time each gets its own.
    """
    number, free = 1, folder
    while True:
        try:
            free.mkdir(parents=True, exist_ok=True)
            (free / METRICS_FILE).touch(exist_ok=False)
            return free
        except FileExistsError:
            if not free.is_dir():
                raise
        number += 1
        free = folder.with_name(f"{folder.name}_{number}")


def require_destinations(log: Destination | Sequence[Destination]) -> None:
    """Raise TypeError for an object that is neither folder nor writer.

    ValueError for the name of a service and a destination that is there twice, RuntimeError for a closed writer.
    """
    for one in destinations_of(log):
        if isinstance(one, str) and one in SERVICES:
            raise ValueError(
                f"log={one!r} would be a folder of that name: for the service pass a writer, "
                f"plasticity.writers.{SERVICES[one]}(); for the folder, pathlib.Path({one!r})"
            )
        if not isinstance(one, (str, Path)) and not callable(getattr(one, "log", None)):
            raise TypeError(
                f"log= takes a folder, a writer (plasticity.callback.Writer), or a list of these; got "
                f"{type(one).__name__}"
            )
        if isinstance(one, RecordWriter):
            one.require_open()
    Writers([one for one in destinations_of(log) if not isinstance(one, (str, Path))])  # names methods that are missing
    require_single(destinations_of(log))
