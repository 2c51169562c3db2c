"""The tab's data of one run: scalars from TensorBoard, events and collapses from its folder."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plasticity.dashboard.tab.story import Curves, collapses, effects, tell
from plasticity.tags import EPISODIC_RETURN, EVAL_RETURN, MEASURED, UPDATES, is_chart, parse_tag

from .aftermath import aftermath
from .clock import Times, clock
from .folders import RunFolder

MAX_EVENTS = 1000
"""Events of a run that are served, the latest."""


def payload(series: Curves, folder: RunFolder | None, curve: str, times: Times | None = None) -> dict[str, Any]:
    """Return the data of one run: plasticity series, the curve above them, events, collapses, widths, clock.

    ``times``: step -> the time at which its numbers were written, in seconds since 1970.
    """
    probes = {tag: points for tag, points in series.items() if parse_tag(tag) is not None}
    widths = folder.widths() if folder else {}
    # How ranks are taken is nothing that happened.
    rows = [row for row in folder.events() if row.get("event") != MEASURED] if folder else []
    events = [tell(row) for row in rows[-MAX_EVENTS:]]
    for event in events:
        event["effects"] = [] if event["note"] else effects(event, probes)
    found = collapses(probes, widths)
    for collapse in found:
        collapse["aftermath"] = aftermath(collapse, events, probes)
    return {
        "series": [
            {"network": tag.network, "metric": tag.metric, "layer": tag.layer, "points": [steps, _json(values)]}
            for name, (steps, values) in probes.items()
            if (tag := parse_tag(name)) is not None
        ],
        "curve": [series[curve][0], _json(series[curve][1])] if curve in series else None,
        "events": events,
        "earlier_events": max(0, len(rows) - MAX_EVENTS),
        "collapses": found,
        "widths": widths,
        "clock": clock(times or {}, series.get(UPDATES)),
    }


def stamp(known: Mapping[str, Any], folder: RunFolder | None, view: str) -> str:
    """Return text that changes when :func:`payload` may; ``known``: tag -> TensorBoard's summary of the series."""
    tags = sorted((tag, info.max_step, info.max_wall_time) for tag, info in known.items())
    return f"{zlib.crc32(repr((tags, folder and folder.stamp(), view)).encode()):08x}"


def curves(tags: Iterable[str]) -> list[str]:
    """Return the tags that may stand above the heat maps, the return first."""
    first = [EPISODIC_RETURN, EVAL_RETURN]
    others = {tag for tag in tags if is_chart(tag) and tag not in first}
    ranked = sorted(others, key=lambda t: (not t.startswith("charts/"), not t.startswith("losses/"), t))
    there = set(tags)
    return [tag for tag in first if tag in there] + ranked


def usual_curve(tags: Iterable[str]) -> str:
    """Return the tag that stands above if nobody chose one: a return, else a loss; empty where there is neither."""
    wanted = [tag for tag in curves(tags) if tag in (EPISODIC_RETURN, EVAL_RETURN) or "loss" in tag.lower()]
    return wanted[0] if wanted else ""


def _json(values: Sequence[float]) -> list[float | None]:
    """Return values, to five digits of the largest, as JSON knows them; a non-finite one is None."""
    numbers = np.asarray(values, np.float64)
    finite = np.isfinite(numbers)
    largest = np.abs(numbers[finite]).max(initial=0.0)
    rounded: list[Any] = np.round(numbers, 5 - math.ceil(math.log10(largest)) if largest else 0).tolist()
    return rounded if finite.all() else [value if known else None for value, known in zip(rounded, finite, strict=True)]
