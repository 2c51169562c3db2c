"""The base of all writers here: values that are no numbers are dropped and counted; training goes on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.callback import Writer
from plasticity.storage.rows import encode_row

_logger = logging.getLogger(__name__)
_VALUE = "value"


class RecordWriter(Writer):
    """Drop what cannot be written, and count it; the first drop of a kind is reported through ``logging``.

    ``place``: the folder or service, for these reports.
    """

    def __init__(self, place: object) -> None:
        self._place = place
        self.closed = False
        """True once it was closed: it takes nothing more."""
        self.dropped: Counter[str] = Counter()
        """File or ``value`` -> number of records that were not written."""

    def require_open(self) -> None:
        """Raise RuntimeError for a writer that was closed: where it wrote to, a run has ended."""
        if self.closed:
            raise RuntimeError(
                f"this {type(self).__name__} ({self._place}) is closed and takes nothing more: make a new one"
            )

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

    def _drop(self, kind: str, reason: str) -> None:
        self.dropped[kind] += 1
        if self.dropped[kind] == 1:
            _logger.warning("%s: %s not written (%s); training goes on, more are counted", self._place, kind, reason)

    def _tell_dropped(self) -> None:
        if self.dropped:
            counts = ", ".join(f"{count} x {kind}" for kind, count in self.dropped.items())
            _logger.warning("%s: could not be written: %s", self._place, counts)


def count_nonfinite(tag: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Return ``<tag>/nonfinite`` -> how many of ``values`` are not finite; empty where all are."""
    count = values.size - np.count_nonzero(np.isfinite(values))
    return {f"{tag}/nonfinite": float(count)} if count else {}


def told(details: Mapping[str, Any]) -> str:
    """Return the details of an event as Markdown: one object of JSON."""
    return f"```json\n{as_json(details)}\n```"


def as_json(value: Any) -> str:
    """Return plain data as JSON: numbers that are not finite are null, unknown objects their ``str``."""
    return encode_row(value).decode().strip()


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as ``a.b`` -> bool, number or string, without those that are None."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= dotted(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
