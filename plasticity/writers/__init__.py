"""Writers: the destinations of a run's numbers, one file each. ``WRITERS`` is the contents page."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plasticity.callback import Writer, note

from .fanout import Writers, named_writers, require_single, require_writer

if TYPE_CHECKING:
    from .aim import AimWriter
    from .csv import CsvWriter
    from .jsonl import JsonLinesWriter
    from .mlflow import MLflowWriter
    from .tensorboard import TensorBoardWriter
    from .trackio import TrackioWriter
    from .wandb import WandbWriter


def _jsonl(folder: Path) -> Writer:
    """The run's own record, which every command reads: metrics.jsonl and scores.jsonl."""
    from .jsonl import JsonLinesWriter

    return JsonLinesWriter(folder)


def _tensorboard(folder: Path) -> Writer:
    """TensorBoard's event file, with histograms, settings and a layout."""
    from .tensorboard import TensorBoardWriter

    return TensorBoardWriter(folder)


def _csv(folder: Path) -> Writer:
    """Tables: metrics.csv of all scalars, events.csv, scores.csv of neurons, settings.csv."""
    from .csv import CsvWriter

    return CsvWriter(folder)


def _wandb(folder: Path) -> Writer:
    """Weights & Biases, also offline: WANDB_MODE=offline, WANDB_PROJECT; pip install wandb."""
    from .wandb import WandbWriter

    return WandbWriter.of_folder(folder)


def _mlflow(folder: Path) -> Writer:
    """MLflow, a server or a local store, as MLFLOW_TRACKING_URI says; pip install mlflow."""
    from .mlflow import MLflowWriter

    return MLflowWriter.of_folder(folder)


def _trackio(folder: Path) -> Writer:
    """Trackio, local: TRACKIO_DIR, TRACKIO_PROJECT; pip install trackio."""
    from .trackio import TrackioWriter

    return TrackioWriter.of_folder(folder)


def _aim(folder: Path) -> Writer:
    """Aim, the repository .aim of the working folder; pip install aim."""
    from .aim import AimWriter

    return AimWriter.of_folder(folder)


WRITERS: dict[str, Callable[[Path], Writer]] = {
    "jsonl": _jsonl,
    "tensorboard": _tensorboard,
    "csv": _csv,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
    "aim": _aim,
}
"""Name -> a function that makes the writer of a run folder; its packages are imported when it is called."""
RECORD_WRITER = "jsonl"
"""The writer that every run has: the commands read its files."""
DEFAULT_WRITERS = ("tensorboard",)


def require_writers(names: Iterable[str]) -> None:
    """Raise ValueError for a name that is not in ``WRITERS``."""
    for name in names:
        if name not in WRITERS:
            close = difflib.get_close_matches(name, WRITERS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"no writer {name!r}; {hint}there are {', '.join(WRITERS)}")


def open_writers(folder: Path | str, names: Sequence[str] = DEFAULT_WRITERS, also: Iterable[Writer] = ()) -> Writers:
    """Return the run's own record, the writers ``names`` and those in ``also`` as one writer into ``folder``.

    The folder is made if missing. Raises ValueError for an unknown name, and what a writer raises that cannot begin.
    """
    require_writers(names)
    beside = named_writers(also)
    require_single(beside.values())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Writer] = {}
    try:
        for name in dict.fromkeys([RECORD_WRITER, *names]):
            found[name] = WRITERS[name](folder)
            require_writer(name, found[name])
    except Exception as error:
        note(error, f"raised by the writer {name}")
        Writers({n: writer for n, writer in found.items() if n != name}).close(succeeded=False)
        raise
    return Writers({**found, **beside})


CLASSES = {
    "JsonLinesWriter": "jsonl",
    "TensorBoardWriter": "tensorboard",
    "CsvWriter": "csv",
    "WandbWriter": "wandb",
    "MLflowWriter": "mlflow",
    "TrackioWriter": "trackio",
    "AimWriter": "aim",
}
"""Class of a writer -> its module here, imported when the class is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{CLASSES[name]}", __name__), name)


__all__ = [
    "DEFAULT_WRITERS",
    "WRITERS",
    "AimWriter",
    "CsvWriter",
    "JsonLinesWriter",
    "MLflowWriter",
    "TensorBoardWriter",
    "TrackioWriter",
    "WandbWriter",
    "Writer",
    "Writers",
    "open_writers",
    "require_writers",
]
