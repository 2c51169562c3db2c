"""The base of writers to tracking services: events are counted and told as text, a run that goes on keeps its id."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.storage.rows import METRICS_FILE, read_metrics

from .records import RecordWriter, count_nonfinite, told


class ServiceWriter(RecordWriter):
    """Write to one run of a tracking service.

    ``owned``: the run was opened here, and ends with :meth:`close`; a run that was given stays open. ``folder``: the
    folder of the toolkit's own run, from which a resumed one takes the counts of events so far.

    Subclasses have :meth:`_settings`, :meth:`_text`, :meth:`_scalars`, :meth:`_distribution` and :meth:`_end`. A closed
    writer raises RuntimeError, and errors of a service pass through: :class:`~plasticity.writers.Writers` and
    :class:`~plasticity.callback.Context` then leave the writer behind, with one warning.
    """

    def __init__(self, place: str, owned: bool, folder: Path | None = None) -> None:
        super().__init__(place)
        self.owned, self.folder = owned, folder
        self._event_counts: Counter[str] = Counter()

    def resume(self, step: int) -> None:
        """Take over the counts of events before ``step``; what a service has, it keeps, so later rows repeat there."""
        if self.folder is not None:
            self._event_counts = events_before(self.folder, step)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of the run where the service keeps such."""
        self.require_open()
        self._settings(settings)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text."""
        self.require_open()
        self._text(int(step), tag, markdown)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by tag."""
        self.require_open()
        if numbers := self._numbers(values):
            self._scalars(int(step), numbers)

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write the distribution of the finite ``values``; the others are counted in ``<tag>/nonfinite``."""
        self.require_open()
        numbers = self._array(tag, values)
        if numbers is None:
            return
        if (finite := numbers[np.isfinite(numbers)]).size:
            self._distribution(int(step), tag, finite)
        if nonfinite := count_nonfinite(tag, numbers):
            self._scalars(int(step), nonfinite)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Write the scalar ``events/<name>``, a count, and the details as the text ``events/<name>/details``."""
        self.require_open()
        self._event_counts[name] += 1
        self._scalars(int(step), {f"events/{name}": float(self._event_counts[name])})
        self._text(int(step), f"events/{name}/details", told(details))

    def close(self, succeeded: bool = True) -> None:
        """End the run, if it was opened here; more than once is fine."""
        if not self.closed:
            self.closed = True
            self._end(succeeded)
            self._tell_dropped()

    def _settings(self, settings: Mapping[str, Any]) -> None:
        """Write settings."""
        raise NotImplementedError

    def _text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text."""
        raise NotImplementedError

    def _scalars(self, step: int, numbers: dict[str, float]) -> None:
        """Write scalars."""
        raise NotImplementedError

    def _distribution(self, step: int, tag: str, numbers: NDArray[np.float64]) -> None:
        """Write the distribution of finite numbers, of one at least."""
        raise NotImplementedError

    def _end(self, succeeded: bool) -> None:
        """End the run if it is owned."""
        raise NotImplementedError


def require_package(name: str) -> Any:
    """Return a package; raise ImportError with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"the writer {name} needs the package {name}: pip install {name} ({error})") from error


def kept_id(folder: Path, service: str, new: Callable[[], str]) -> str:
    """Return the id of the service's run that a run folder keeps in ``<service>.id``, ``new()`` in a new one."""
    path = folder / f"{service}.id"
    if not path.exists():
        path.write_text(new(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def events_before(folder: Path, step: int) -> Counter[str]:
    """Return how often each event is in the record of a run folder before a step; empty without a record."""
    rows = read_metrics(folder) if (folder / METRICS_FILE).exists() else []
    return Counter(row["event"] for row in rows if "event" in row and row["step"] < step)
