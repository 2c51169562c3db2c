"""The course of a value in bounded memory: a trend of the whole run, however long it is."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Course:
    """Keep the course of one value in at most ``capacity`` points: when full, neighbours are averaged in pairs.

    So a sparkline always shows the whole run, however long it is, in bounded memory.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self.points: list[float] = []
        self.first = math.nan
        """The first value that is finite."""
        self._per_point = 1  # values behind one point
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """Append a value; NaN is kept as a gap."""
        if math.isnan(self.first) and math.isfinite(value):
            self.first = value
        self._open.append(value)
        if len(self._open) == self._per_point:
            self.points.append(finite_mean(self._open))
            self._open = []
        if len(self.points) == self.capacity:
            self.points = [finite_mean(pair) for pair in zip(self.points[::2], self.points[1::2], strict=True)]
            self._per_point *= 2

    def course(self) -> list[float]:
        """Return the points; the last one averages the values since the last full point."""
        return [*self.points, *([finite_mean(self._open)] if self._open else [])]


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
