"""The small panel of a run in a terminal: return and plasticity as sparklines, the last events."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table

from plasticity.course import finite_mean

BARS = "▁▂▃▄▅▆▇█"
GAP = "·"


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
