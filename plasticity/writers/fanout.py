"""Several writers as one; one that fails is left behind."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from plasticity.callback import Writer

from .files import FileWriter

RUNS = {
    "wandb": "WandbWriter(run)",
    "mlflow": "MLflowWriter(run)",
    "trackio": "TrackioWriter(run)",
    "aim": "AimWriter(run)",
}
"""Package of a tracking service -> the writer that takes one of its runs."""
METHODS = ("resume", "settings", "log", "histogram", "text", "event", "close")


class Writers(Writer):
    """Pass everything on to several writers, in order; ``with`` closes them.

    A writer that raises is named in a warning, once, and gets nothing from then on; training goes on. Raises TypeError
    for an object that lacks a method of a writer, and ValueError for one that is there twice.
    """

    def __init__(self, writers: Mapping[str, Writer] | Iterable[Writer]) -> None:
        if not isinstance(writers, Mapping):
            writers = named_writers(writers)
        for name, writer in writers.items():
            require_writer(name, writer)
        require_single(writers.values())
        self.active: dict[str, Writer] = dict(writers)
        """Name -> writer, of those that have not failed."""

    def resume(self, step: int) -> None:
        """Let every writer drop its records of ``step`` and later ones."""
        self._each("resume", step)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of the run everywhere."""
        self._each("settings", settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by tag everywhere."""
        self._each("log", step, values)

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write the distribution of ``values`` everywhere."""
        self._each("histogram", step, tag, values)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text everywhere."""
        self._each("text", step, tag, markdown)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done everywhere."""
        self._each("event", step, name, details)

    def close(self, succeeded: bool = True) -> None:
        """Close every writer."""
        self._each("close", succeeded)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(succeeded=kind is None)

    def _each(self, method: str, *args: Any) -> None:
        for name, writer in list(self.active.items()):
            try:
                getattr(writer, method)(*args)
            except Exception as error:
                self._leave_behind(name, f"{type(error).__name__}: {error}")

    def _leave_behind(self, name: str, reason: str) -> None:
        failed = self.active.pop(name)
        with contextlib.suppress(Exception):
            failed.close(succeeded=False)
        message = f"the writer {name} failed and gets nothing from now on; training goes on ({reason})"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def require_writer(name: str, writer: Any) -> None:
    """Raise TypeError for an object that lacks a method of a writer."""
    if isinstance(writer, type):
        raise TypeError(f"got the class {writer.__name__} for a writer: make one, {writer.__name__}(...)")
    package = type(writer).__module__.partition(".")[0]
    if package in RUNS:
        kind = type(writer).__name__
        raise TypeError(f"got a {kind} of {package} for a writer: pass plasticity.writers.{RUNS[package]}")
    if missing := [method for method in METHODS if not callable(getattr(writer, method, None))]:
        raise TypeError(
            f"{name} is no writer: it lacks {', '.join(missing)}; let its class inherit from plasticity.Writer"
        )


def require_single(destinations: Iterable[Any]) -> None:
    """Raise ValueError for a folder, a writer or its files that are there twice: numbers would be written twice."""
    seen: set[Any] = set()
    for one in destinations:
        key = _place(one)
        if key in seen:
            name = one if isinstance(one, (str, Path)) else type(one).__name__
            raise ValueError(f"the destination {name} is there twice: give it once")
        seen.add(key)


def _place(destination: Any) -> Any:
    """Return where a destination writes: a folder, the files of one kind in a folder, or the writer itself."""
    if isinstance(destination, (str, Path)):
        return Path(destination).absolute()
    is_in_folder = isinstance(destination, FileWriter)
    return (type(destination), destination.folder.absolute()) if is_in_folder else id(destination)


def named_writers(writers: Iterable[Writer]) -> dict[str, Writer]:
    """Return writers by the name of their class, with a number where two are of one class."""
    found: dict[str, Writer] = {}
    for writer in writers:
        name = type(writer).__name__
        number = sum(type(other) is type(writer) for other in found.values()) + 1
        found[name if number == 1 else f"{name} {number}"] = writer
    return found
