"""The base of writers of files: records that cannot be written are dropped and counted; training goes on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.callback import Writer

_logger = logging.getLogger(__name__)
_VALUE = "value"


class FileWriter(Writer):
    """Write into ``folder``, which is made if missing.

    Only the constructor raises (OSError: the folder cannot be written). Later, records that cannot be written, on a
    full disk for example, are dropped and counted in ``dropped``; the first drop of a kind is reported through
    ``logging``, the total when the writer is closed. Writing goes on as soon as there is space again.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dropped: Counter[str] = Counter()
        """File or ``value`` -> number of records that were not written."""
        self._closed = False

    def sync(self) -> None:
        """Wait until everything is on the disk itself, safe from a power cut: takes milliseconds, not for every row."""

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(succeeded=kind is None)

    def _numbers(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the numbers as floats; other values are dropped."""
        numbers = {}
        for tag, value in values.items():
            try:
                numbers[str(tag)] = float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                self._drop(_VALUE, f"{tag}: {error}")
        return numbers

    def _array(self, tag: str, values: Any) -> NDArray[np.float64] | None:
        """Return the values of a histogram, flat; None where they are no numbers, which counts as dropped."""
        try:
            return np.asarray(values, dtype=np.float64).ravel()
        except (TypeError, ValueError, RuntimeError) as error:
            self._drop(_VALUE, f"histogram {tag}: {error}")
            return None

    def _attempt(self, kind: str, write: Callable[[], None]) -> None:
        """Call ``write``; count one more of ``kind`` as dropped where it cannot be written."""
        try:
            write()
        except (OSError, ValueError, TypeError) as error:
            self._drop(kind, str(error))

    def _drop(self, kind: str, reason: str) -> None:
        self.dropped[kind] += 1
        if self.dropped[kind] == 1:
            _logger.warning("%s: %s not written (%s); training goes on, more are counted", self.folder, kind, reason)

    def _tell_dropped(self) -> None:
        if self.dropped:
            counts = ", ".join(f"{count} x {kind}" for kind, count in self.dropped.items())
            _logger.warning("%s: could not be written: %s", self.folder, counts)


def count_nonfinite(tag: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Return ``<tag>/nonfinite`` -> how many of ``values`` are not finite; empty where all are."""
    count = values.size - np.count_nonzero(np.isfinite(values))
    return {f"{tag}/nonfinite": float(count)} if count else {}
