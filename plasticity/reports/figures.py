"""Drawing: curves with bands, heat maps of layers over time, event strips, performance profiles.

Configurations differ in colour, line style and marker, so that they can be told apart in grey and by everybody. Colours
of lines and maps, and what is bad on a map, are those of the tab.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill, shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.palette import CHANGE, LINE_COLOURS, NEUTRAL, WORSE

from .series import Band

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "figures need matplotlib, which is not installed: pip install matplotlib, or the extra report of this package"
    ) from error

COLOURS = LINE_COLOURS
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "X", "P")
# Twelve, five and seven: no combination comes twice before 420 configurations.
FIGURE_WIDTH = 9.6
"""Inches; the page shows it at that size."""
LINE_HEIGHT, ROOM = 0.2, 3
"""Inches of a line of the legend, and the lines that every figure has room for."""
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "svg.fonttype": "path",  # the same on every machine: text would need the font there
    "svg.hashsalt": "plasticity",  # the same file from the same runs
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Curve:
    """A named band; ``style`` is the number of its configuration."""

    label: str
    style: int
    band: Band


@dataclass(frozen=True)
class Strip:
    """The steps at which something was done, drawn as a row of ticks below a curve."""

    label: str
    style: int
    steps: NDArray[Any]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    ``why``: what is said where it has no curve; ``limits``: of the vertical axis; ``shades``: first and last step of
    what is shaded.
    """

    title: str
    ylabel: str
    curves: Sequence[Curve]
    strips: Sequence[Strip] = ()
    why: str = "not measured"
    limits: tuple[float, float] | None = None
    shades: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Shading:
    """The colours of a map: those from ``low`` to ``high``; None: the range of the values."""

    label: str
    stops: Sequence[str] = WORSE
    low: float | None = 0.0
    high: float | None = 1.0


def shading(metric: str, kind: str) -> Shading:
    """Return the colours of a metric, as in the tab: a share from 0 to 1, a rank by change, anything else by range."""
    label = metric.replace("_", " ")
    if kind == "share":
        return Shading(label)
    if kind == "rank":
        return Shading(f"{label}: lost since the first measurement (blue: gained)", CHANGE, -1.0, 1.0)
    return Shading(label, NEUTRAL, None, None)


@dataclass(frozen=True)
class Map:
    """Layers over time: ``values`` (layers, steps), NaN where nothing was measured; ``marks`` are steps of events."""

    title: str
    layers: Sequence[str]
    steps: NDArray[Any]
    values: NDArray[Any]
    marks: NDArray[Any] = field(default_factory=lambda: np.empty(0))


def draw_curves(rows: Sequence[Sequence[Panel]], xlabel: str) -> Figure:
    """Return a grid of panels with a shared legend; the strips of a column stand once, below it."""
    with matplotlib.rc_context(STYLE):
        strips = max(len(panel.strips) for row in rows for panel in row)
        heights = [2.1] * len(rows) + [0.16 * strips + 0.12] * bool(strips)
        columns = max(map(len, rows))
        figure = Figure(figsize=(FIGURE_WIDTH, sum(heights) + 0.7))
        axes = figure.subplots(len(heights), columns, squeeze=False, sharex="col", sharey="row", height_ratios=heights)
        for line, row in zip(axes, rows, strict=False):
            for place, panel in zip(line, row, strict=False):
                _curves(place, panel, first=place is line[0])
            for place in line[len(row) :]:
                place.set_visible(False)
        if strips:
            for i, place in enumerate(axes[-1]):
                _strips(place, rows[0][i].strips if i < len(rows[0]) else ())
        for place in axes[-1]:
            _steps_axis(place, xlabel)
        _legend(figure, [curve for row in rows for panel in row for curve in panel.curves])
        return figure


def draw_maps(rows: Sequence[Sequence[Map | None]], colours: Shading, xlabel: str) -> Figure:
    """Return a grid of heat maps with one colour scale; None leaves a place empty."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        maps = [one for row in rows for one in row if one is not None]
        heights = [0.27 * max((len(one.layers) for one in row if one is not None), default=1) + 0.3 for row in rows]
        figure = Figure(figsize=(FIGURE_WIDTH, sum(heights) + 0.75))
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex=True, sharey="row", height_ratios=heights)
        low, high = _range(np.concatenate([one.values.ravel() for one in maps]), colours)
        scale = LinearSegmentedColormap.from_list("plasticity", list(colours.stops)).with_extremes(bad="#ffffff")
        image = None
        for line, row in zip(axes, rows, strict=True):
            for place, one in zip(line, row, strict=True):
                if one is None:
                    place.set_visible(False)
                else:
                    image = _map(place, one, scale, low, high)
        _label_outer_maps(axes, xlabel)
        if image is not None:
            label = fill(colours.label, int(14 * (sum(heights) + 0.5)))  # along the scale, which may be short
            figure.colorbar(image, ax=axes, label=label, fraction=0.025, pad=0.01)
        return figure


def draw_profiles(curves: Sequence[Curve], xlabel: str) -> Figure:
    """Return performance profiles: ``steps`` of a band are thresholds, values the fraction of runs above them."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(FIGURE_WIDTH * 0.62, 3.2))
        place = figure.subplots()
        _curves(place, Panel("", "fraction of runs with a score above it", curves), first=True)
        place.set_xlabel(xlabel)
        place.set_ylim(-0.02, 1.02)
        _legend(figure, curves)
        return figure


def draw_intervals(columns: Mapping[str, Sequence[tuple[str, Any]]]) -> Figure:
    """Return a point and its interval per configuration: statistic -> (configuration, interval), all in one order."""
    with matplotlib.rc_context(STYLE):
        rows = max(map(len, columns.values()))
        figure = Figure(figsize=(FIGURE_WIDTH, 0.32 * rows + 0.75))
        axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for place, (name, points) in zip(axes, columns.items(), strict=True):
            for i, (_, (value, low, high)) in enumerate(points):
                colour, _, marker = _style(i)
                place.plot([low, high], [i, i], color=colour, linewidth=2, solid_capstyle="butt")
                place.plot(value, i, marker, color=colour, markersize=6, markerfacecolor="white")
            place.set_yticks(range(rows), [label for label, _ in points])
            place.set_ylim(rows - 0.5, -0.5)
            place.xaxis.set_major_locator(MaxNLocator(4))
            place.set_xlabel(name)
        return figure


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element, to stand in a page."""
    text = encoded(figure, "svg").decode()
    return text[text.index("<svg") :]


def encoded(figure: Figure, kind: str) -> bytes:
    """Return a figure as the contents of a file; the same runs give the same bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names of runs may have any letters
        figure.savefig(out, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _style(number: int) -> tuple[str, Any, str]:
    return COLOURS[number % len(COLOURS)], LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]


def _curves(place: Axes, panel: Panel, first: bool) -> None:
    for curve in panel.curves:
        colour, line, marker = _style(curve.style)
        steps, value, low, high, _ = curve.band
        every = max(1, len(steps) // 8)
        place.plot(
            steps, value, linestyle=line, color=colour, linewidth=1.6, marker=marker, markersize=4.5,
            markevery=(curve.style * 2 % every, every), markerfacecolor="white", label=curve.label,
        )  # fmt: skip
        if low is not None and high is not None:
            place.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
            for edge in (low, high):  # the band alone is pale in print
                place.plot(steps, edge, linestyle=line, color=colour, linewidth=0.5, alpha=0.6)
    for start, end in panel.shades:
        place.axvspan(start, end, color="#000000", alpha=0.05, linewidth=0)
    place.set_title(panel.title, loc="left")
    if first:
        place.set_ylabel(panel.ylabel)
    if panel.limits:
        place.set_ylim(*panel.limits)
    said = fill(panel.why, 46) if not panel.curves else _lone(panel.curves)
    if said:
        place.text(0.5, 0.5, said, transform=place.transAxes, ha="center", va="center", color="#666666", fontsize=8)


def _lone(curves: Sequence[Curve]) -> str:
    """Return what is said where curves are points: one measurement makes no line; empty where there is a line."""
    return (
        "one measurement only:\nmeasure more often, --probe-every"
        if all(len(c.band.steps) == 1 for c in curves)
        else ""
    )


def _strips(place: Axes, strips: Sequence[Strip]) -> None:
    for i, strip in enumerate(strips):
        place.vlines(
            strip.steps,
            i - 0.36,
            i + 0.36,
            color=_style(strip.style)[0],
            linewidth=0.8,
            rasterized=len(strip.steps) > 500,
        )
    place.set_ylim(max(len(strips), 1) - 0.5, -0.5)
    place.set_yticks(range(len(strips)), [shorten(strip.label, 30, placeholder=" ...") for strip in strips], fontsize=7)
    place.tick_params("y", length=0)
    place.grid(False)
    for side in ("left", "right", "top"):
        place.spines[side].set_visible(False)


def _map(place: Axes, one: Map, colours: Any, low: float, high: float) -> Any:
    place.set_facecolor("#ffffff")
    edges = _edges(one.steps)
    image = place.pcolormesh(
        edges, np.arange(len(one.layers) + 1), one.values, cmap=colours, vmin=low, vmax=high, rasterized=True
    )
    if len(one.steps) == 1:  # too narrow a cell to be seen beside a whole run
        said = f"one measurement only, at step {one.steps[0]:,.0f}: measure more often, --probe-every"
        place.text(0.5, 0.5, said, transform=place.transAxes, ha="center", va="center", color="#666666", fontsize=8)
    place.set_yticks(np.arange(len(one.layers)) + 0.5, one.layers, fontsize=7)
    place.set_ylim(len(one.layers), 0)
    place.tick_params("y", length=0)
    place.set_title(fill(one.title, 44), loc="left", pad=9)
    if len(one.marks):
        above = place.get_xaxis_transform()
        place.plot(one.marks, np.full(len(one.marks), 1.02), "|", transform=above, color="#000000",
                   markersize=5, markeredgewidth=0.8, clip_on=False)  # fmt: skip
    return image


def _label_outer_maps(axes: NDArray[Any], xlabel: str) -> None:
    """Write layers beside the first map of each row and steps below the last of each column: places may be empty."""
    for line in axes:
        for place in [one for one in line if one.get_visible()][:1]:
            place.tick_params("y", labelleft=True)
    for column in axes.T:
        for place in [one for one in column if one.get_visible()][-1:]:
            place.tick_params("x", labelbottom=True)
            _steps_axis(place, xlabel)


def _range(values: NDArray[Any], colours: Shading) -> tuple[float, float]:
    """Return the ends of the colour scale: those of the shading, else of the values; 0 and 1 hold what lies inside."""
    if colours.low is not None and colours.high is not None:
        return colours.low, colours.high
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)


def _edges(steps: NDArray[Any]) -> NDArray[Any]:
    """Return the borders of cells around ``steps``."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


def _steps_axis(place: Axes, label: str) -> None:
    place.set_xlabel(label)
    place.xaxis.set_major_formatter(EngFormatter(sep=""))
    place.xaxis.set_major_locator(MaxNLocator(5))


def _legend(figure: Figure, curves: Sequence[Curve]) -> None:
    """Draw one entry per configuration; a single one is in the caption."""
    seen: dict[str, Any] = {}
    for place in figure.axes:
        handles, labels = place.get_legend_handles_labels()
        seen |= dict(zip(labels, handles, strict=True))
    if seen and curves:
        labels = [fill(label, 100) for label in seen]
        columns = max(1, 120 // (max(map(len, labels)) + 9))
        lines = sum(label.count("\n") + 1 for label in labels) / columns
        figure.set_figheight(
            figure.get_figheight() + LINE_HEIGHT * max(0.0, lines - ROOM)
        )  # so that panels keep theirs
        figure.legend(list(seen.values()), labels, loc="outside upper left", handlelength=3.4, ncols=columns)
