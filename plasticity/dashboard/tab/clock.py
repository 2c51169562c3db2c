"""The clock of a run: wall-clock time and updates at its steps, so that curves can be drawn over any of the three."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_TICKS = 300
"""Points of a clock; between them the page interpolates."""

Times = Mapping[float, float]
"""Step -> seconds since 1970."""


def clock(times: Times, updates: tuple[Sequence[float], Sequence[float]] | None) -> dict[str, Any]:
    """Return ``time`` and ``update``, each ``[steps, values]``: seconds since the first number, and optimizer steps.

    ``updates`` is the series of update counts, None where a run did not log it; then it is None here, too. Time never
    goes backwards: a row that was written by a clock that was put back counts as written when the one before was.
    """
    first, latest, seconds = min(times.values(), default=0.0), 0.0, []
    steps = sorted(times)
    for step in steps:
        latest = max(latest, times[step] - first)
        seconds.append(round(latest, 2))
    counted = None if updates is None else _thinned([0, *updates[0]], [0, *updates[1]])
    return {"time": _thinned(steps, seconds), "update": counted}


def _thinned(steps: Sequence[float], values: Sequence[float]) -> list[list[float]]:
    """Return both, at most ``MAX_TICKS`` points at equal distances, the first and the last among them."""
    every = max(1, -(-len(steps) // MAX_TICKS))
    chosen = sorted({*range(0, len(steps), every), *([len(steps) - 1] if steps else [])})
    return [[steps[i] for i in chosen], [values[i] for i in chosen]]
