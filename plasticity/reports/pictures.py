"""The figures of a report: learning curves, plasticity curves, layers over time; each with its caption."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.metrics import find_metric
from plasticity.tags import ALL, EPISODIC_RETURN, RETURN_TITLES, Tag, plasticity_tag, plasticity_tags

from .figures import Curve, Map, Panel, Strip, draw_curves, draw_maps, shading
from .groups import Configuration
from .runs import RecordedRun, having
from .series import INTERVAL, RETURN_WINDOW, Series, aligned, band

MAPS_ABREAST = 3
"""Configurations side by side in one figure of maps."""


@dataclass(frozen=True)
class Picture:
    """A figure, the name of its file, and a caption with content, n and interval."""

    name: str
    figure: Any
    caption: str


class Pictures:
    """Draws everything for one environment; ``curves`` collects the numbers that were drawn, for a table."""

    def __init__(self, configurations: Sequence[Configuration], env: str, metrics: Sequence[str]) -> None:
        self.groups = [(i, c.name, c.runs[env]) for i, c in enumerate(configurations) if env in c.runs]
        self.env = env
        self.metrics = [m for m in metrics if any(m == metric for _, metric, _ in self._tags())]
        self.where = f" in {env}" if env else ""
        self.slug = _slug(env) or "runs"
        self.xlabel = "environment steps" if env else "steps"
        self.curves: list[tuple[Any, ...]] = []
        """(environment, configuration, tag, step, n, interquartile mean, low, high)."""
        self.notes: list[str] = []

    def draw(self, tags: Sequence[str]) -> list[Picture]:
        """Return the figures of this environment that have something to show."""
        pictures = [self._learning(tags), self._plasticity(), *(self._maps(metric) for metric in self.metrics)]
        return [picture for picture in pictures if picture is not None]

    def _learning(self, tags: Sequence[str]) -> Picture | None:
        panels: list[Panel] = []
        remarks: set[str] = set()
        for tag in tags:
            curves = self._curves(tag, remarks)
            if curves:
                panels.append(Panel(_title(tag), "return", curves, self._strips(None)))
        if not panels:
            self.notes.append(f"no learning curve{self.where}: no run logged {' or '.join(tags)}")
            return None
        caption = f"Learning curves{self.where}. {self._band_text(remarks)}{self._strip_text(panels)}"
        return Picture(f"learning-{self.slug}", draw_curves([panels], self.xlabel), caption)

    def _plasticity(self) -> Picture | None:
        networks = list(dict.fromkeys(network for network, _, layer in self._tags() if layer == ALL))
        remarks: set[str] = set()
        rows = [
            [
                Panel(
                    network if metric == self.metrics[0] else "",
                    metric.replace("_", " "),
                    self._curves(plasticity_tag(network, metric), remarks),
                    self._strips(network),
                    self._why_empty(network, metric),
                    (0.0, 1.0) if find_metric(metric).kind == "share" else None,
                )
                for network in networks
            ]
            for metric in self.metrics
        ]
        if not networks or not rows:
            self.notes.append(f"no curve of plasticity{self.where}: no run measured a network; --probes, --probe-every")
            return None
        caption = (
            f"Plasticity of whole networks{self.where}, one column each. {self._band_text(remarks)}"
            f"{self._strip_text([panel for row in rows for panel in row])}"
        )
        return Picture(f"plasticity-{self.slug}", draw_curves(rows, self.xlabel), caption)

    def _maps(self, metric: str) -> Picture | None:
        layers: dict[str, list[str]] = {}
        for network, m, layer in self._tags():
            if m == metric and layer != ALL:
                layers.setdefault(network, []).append(layer)
        blocks = [self.groups[i : i + MAPS_ABREAST] for i in range(0, len(self.groups), MAPS_ABREAST)]
        width = len(blocks[0])
        rows: list[list[Map | None]] = []
        for block in blocks:
            for network, own in layers.items():
                row = [self._map(name, runs, network, metric, in_one_order(own)) for _, name, runs in block]
                rows.append(row + [None] * (width - len(row)))
        rows = [row for row in rows if any(one is not None for one in row)]
        if not rows:
            return None
        label, kind = metric.replace("_", " "), find_metric(metric).kind
        caption = (
            f"{label.capitalize()} of each layer over time{self.where}; mean over runs ({self._counts()}), one colour "
            f"scale for all maps, white where nothing was measured. {_SCALES[kind]} A bar above a map: an intervention "
            "acted on this network in one of the runs at that step."
        )
        return Picture(
            f"layers-{_slug(metric)}-{self.slug}", draw_maps(rows, shading(metric, kind), self.xlabel), caption
        )

    def _map(self, name: str, runs: list[RecordedRun], network: str, metric: str, layers: list[str]) -> Map | None:
        found = {layer: having(runs, plasticity_tag(network, metric, layer)) for layer in layers}
        partial = [layer for layer, series in found.items() if 0 < len(series) < len(runs)]
        if partial:
            layers_text = f"{metric} of {', '.join(partial)} ({network}){self.where}"
            self.notes.append(f"{layers_text} is not shown as a map: not all runs of {name} have these layers")
        by_change = find_metric(metric).kind == "rank"
        parts = {
            layer: aligned([_lost(s) for s in series] if by_change else series)
            for layer, series in found.items()
            if len(series) == len(runs)
        }
        steps = np.unique(np.concatenate([grid for grid, _, _ in parts.values()] or [np.empty(0)]))
        if not len(steps):
            return None
        values = np.full((len(layers), len(steps)), np.nan)
        for i, layer in enumerate(layers):
            if layer in parts and len(parts[layer][0]):
                grid, numbers, _ = parts[layer]
                values[i] = np.interp(steps, grid, numbers.mean(-1), left=np.nan, right=np.nan)
        return Map(f"{network}: {name}", layers, steps, values, _event_steps(runs, network))

    def _curves(self, tag: str, remarks: set[str]) -> list[Curve]:
        curves = []
        for style, name, runs in self.groups:
            series = having(runs, tag)
            if not series:
                continue
            if len(series) < len(runs):
                remarks.add(f"{len(runs) - len(series)} of {len(runs)} runs of {name} lack {tag}")
            drawn, interpolated = band(series)
            if drawn is None:
                remarks.add(f"the runs of {name} have no common steps of {tag}")
                continue
            gaps = sum(len(s.steps) - len(s.finite().steps) for s in series)
            if gaps:
                remarks.add(f"{gaps} values of {tag} that are not finite ({name}) are bridged by a straight line")
            if interpolated:
                remarks.add("values between a run's own measurements are interpolated linearly")
            ends = {run.last_step for run in runs}
            if len(ends) > 1 and max(ends) > 1.02 * min(ends):
                remarks.add(f"the curve of {name} ends with its shortest run, at step {int(drawn.steps[-1]):,}")
            curves.append(Curve(name, style, drawn))
            self._collect(name, tag, drawn)
        return curves

    def _why_empty(self, network: str, metric: str) -> str:
        """Return why a network has no curve of a metric."""
        tag, runs = plasticity_tag(network, metric), [run for _, _, runs in self.groups for run in runs]
        if not any(tag in run.series for run in runs):
            return f"not measured: no run logged {metric.replace('_', ' ')} of {network}"
        if not having(runs, tag):
            return "no value was a finite number"
        return "the runs of no configuration have a step in common"

    def _collect(self, name: str, tag: str, drawn: Any) -> None:
        for i, (step, value) in enumerate(zip(drawn.steps, drawn.value, strict=True)):
            low, high = (None, None) if drawn.low is None else (float(drawn.low[i]), float(drawn.high[i]))
            self.curves.append((self.env, name, tag, int(step), drawn.n, float(value), low, high))

    def _strips(self, network: str | None) -> list[Strip]:
        """Return a strip per configuration and kind of event: those of the network, and those without one."""
        strips = []
        for style, name, runs in self.groups:
            for event in dict.fromkeys(e["event"] for run in runs for e in run.events):
                steps = _event_steps(runs, network, event)
                strips.append(Strip(event if event in name else f"{name}: {event}", style, steps))
        return strips

    def _tags(self) -> list[Tag]:
        """Return every plasticity tag, in order of appearance."""
        names = dict.fromkeys(tag for _, _, runs in self.groups for run in runs for tag in run.series)
        return plasticity_tags(names)

    def _counts(self) -> str:
        return ", ".join(f"{name}: n = {len(runs)}" for _, name, runs in self.groups)

    def _band_text(self, remarks: set[str]) -> str:
        interval = f"Lines: interquartile mean over runs. Bands: {INTERVAL}. {self._counts()}."
        if any(len(runs) == 1 for _, _, runs in self.groups):
            interval += " One run has no interval."
        if any(1 < len(runs) < 5 for _, _, runs in self.groups):
            interval += " With fewer than five runs a bootstrap interval is too narrow."
        return interval + "".join(f" Note: {remark}." for remark in sorted(remarks))

    def _strip_text(self, panels: Sequence[Panel]) -> str:
        if not any(panel.strips for panel in panels):
            return ""
        return " Ticks below: steps at which an intervention acted, in any run."


_SCALES = {
    "share": "From 0 to 1, all neurons.",
    "rank": "The level of a rank says little: the colour is its change against the first measurement of the run.",
    "value": "Neither end of the scale is bad by itself.",
}
"""Kind of a metric -> what the colours of its map mean."""


def _title(tag: str) -> str:
    if tag == EPISODIC_RETURN:
        return f"{RETURN_TITLES[tag]},\nmean over {RETURN_WINDOW:.0%} of the steps"
    return RETURN_TITLES.get(tag, tag)


def _lost(series: Series) -> Series:
    """Return the share of the first finite value that is lost, below 0 where there is more; NaN where it was 0."""
    steps, values = series
    finite = values[np.isfinite(values)]
    first = finite[0] if len(finite) and finite[0] > 0 else np.nan
    return Series(steps, np.maximum(1 - values / first, -1.0))


def _slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _event_steps(runs: Sequence[RecordedRun], network: str | None, event: str | None = None) -> NDArray[Any]:
    chosen = (
        row["step"]
        for run in runs
        for row in run.events
        if (event is None or row["event"] == event) and (network is None or row.get("network") in (None, network))
    )
    return np.unique(np.fromiter(chosen, dtype=np.float64))


def in_one_order(layers: Sequence[str]) -> list[str]:
    """Return layers of several configurations in one order: containers as they come, what is in each by its number."""
    containers = list(dict.fromkeys(name.rpartition(".")[0] for name in layers))

    def place(name: str) -> tuple[int, int]:
        container, _, last = name.rpartition(".")
        return containers.index(container), int(last) if last.isdecimal() else -1

    return sorted(layers, key=place)
