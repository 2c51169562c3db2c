"""The small panel of a run in a terminal: return and plasticity as sparklines, the last events."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
GAP = "·"


class Course:
    """Keep the course of one value in at most ``capacity`` points: when full, neighbours are averaged in pairs.

    So a sparkline always shows the whole run, however long it is, in bounded memory.
    """

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self.points: list[float] = []
        self._per_point = 1  # values behind one point
        self._open: list[float] = []

    def add(self, value: float) -> None:
        """Append a value; NaN is kept as a gap."""
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


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Return ``values`` as at most ``width`` bars between their minimum and maximum; a gap where one is not finite."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [finite_mean(values[a:b]) for a, b in pairwise(edges)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return GAP * len(values)
    low, span = min(finite), max(finite) - min(finite)
    top = len(BARS) - 1
    return "".join(
        GAP if not math.isfinite(v) else BARS[round((v - low) / span * top)] if span > 0 else BARS[0] for v in values
    )


def panel(rows: Sequence[tuple[str, str, Sequence[float]]], events: deque[str], width: int = 32) -> Table:
    """Return the panel: ``rows`` of (name, latest value as text, course), then the last events, newest last."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(no_wrap=True)
    for name, latest, course in rows:
        table.add_row(name, latest, sparkline(course, width))
    for i, event in enumerate(events):
        table.add_row("" if i else "events", "", event)
    return table
