"""Writers: the destinations of a run's numbers, one file each. ``WRITERS`` is the contents page."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from plasticity.callback import Writer, note

from .fanout import Writers, require_writer


def _jsonl(folder: Path) -> Writer:
    """The run's own record, which every command reads: metrics.jsonl and scores.jsonl."""
    from .jsonl import JsonLinesWriter

    return JsonLinesWriter(folder)


def _tensorboard(folder: Path) -> Writer:
    """TensorBoard's event file, with histograms, settings and a layout."""
    from .tensorboard import TensorBoardWriter

    return TensorBoardWriter(folder)


def _csv(folder: Path) -> Writer:
    """A table of all scalars, metrics.csv, and one of all events, events.csv."""
    from .csv import CsvWriter

    return CsvWriter(folder)


WRITERS: dict[str, Callable[[Path], Writer]] = {"jsonl": _jsonl, "tensorboard": _tensorboard, "csv": _csv}
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
    return Writers({**found, **{type(writer).__name__: writer for writer in also}})


__all__ = ["DEFAULT_WRITERS", "WRITERS", "Writer", "Writers", "open_writers", "require_writers"]
