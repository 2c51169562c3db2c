"""Readings as HTML for notebooks: a table, every value with the tab's colour and, over a session, its sparkline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from ..course import Course
from ..metrics import find_metric
from ..palette import NEUTRAL, WORSE, shade

Courses = Mapping[tuple[str, str], Course]
"""(metric, layer) -> its course so far."""
WIDTH, HEIGHT = 56, 14
_SWATCH = "display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:5px"
_CELL = "text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"


def table_html(rows: Sequence[Sequence[str]], values: Mapping[str, Mapping[str, float]], courses: Courses) -> str:
    """Return a table: ``rows`` of texts, heads first: a layer, its neurons, then one of each metric in ``values``."""
    head, *body = rows
    lines = [_row("th", [escape(text) for text in head])]
    for layer, neurons, *texts in body:
        cells = [
            f"{_swatch(metric, by_layer.get(layer, math.nan), courses.get((metric, layer)))}{escape(text)}"
            f"{sparkline_svg(courses[metric, layer].course()) if (metric, layer) in courses else ''}"
            for text, (metric, by_layer) in zip(texts, values.items(), strict=True)
        ]
        lines.append(_row("td", [escape(layer), escape(neurons), *cells]))
    return f"<table>{''.join(lines)}</table>"


def sparkline_svg(points: Sequence[float]) -> str:
    """Return a small SVG of at least two points between their least and greatest; empty for fewer."""
    known = [(i, value) for i, value in enumerate(points) if math.isfinite(value)]
    if len(known) < 2:
        return ""
    low, high = min(value for _, value in known), max(value for _, value in known)
    across, up = (WIDTH - 2) / (len(points) - 1), (HEIGHT - 3) / ((high - low) or 1)
    line = " ".join(f"{1 + i * across:.1f},{HEIGHT - 1.5 - (value - low) * up:.1f}" for i, value in known)
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" style="margin-left:6px;vertical-align:-2px" role="img" '
        f'aria-label="from {known[0][1]:.3g} to {known[-1][1]:.3g}"><polyline points="{line}" fill="none" '
        'stroke="currentColor" stroke-opacity="0.6" stroke-width="1.2"/></svg>'
    )


def _swatch(metric: str, value: float, course: Course | None) -> str:
    """Return a patch of the tab's colour: a share by its level, a rank by its change since the first reading."""
    kind = find_metric(metric).kind
    if not math.isfinite(value) or kind == "value" or (kind == "rank" and (course is None or not course.first > 0)):
        return ""
    if kind == "share" or course is None:
        colour = shade(value)
    else:
        lost = 1 - value / course.first
        colour = shade(abs(lost), NEUTRAL if lost < 0 else WORSE)
    return f'<i style="{_SWATCH};background:{colour}"></i>'


def _row(cell: str, texts: Sequence[str]) -> str:
    style = f' style="{_CELL}"'
    first, *others = texts
    return (
        f'<tr><{cell} style="text-align:left">{first}</{cell}>'
        + "".join(f"<{cell}{style}>{text}</{cell}>" for text in others)
        + "</tr>"
    )
