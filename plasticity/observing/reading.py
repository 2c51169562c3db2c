"""Measurements of a monitor: values per layer and network, scores per neuron, and reasons for missing ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from torch import Tensor

from ..course import Course
from ..tags import ALL
from .notebook import Courses, table_html

WIDEST = 8
"""Metrics that stand side by side in a table; of more, each gets a line."""

OUTPUT_LAYER = "output layer"
"""The reason of a layer that is left out because its neurons are what the model returns."""


class Coverage(NamedTuple):
    """Record of one probe on one layer: measured, or the reason why not."""

    layer: str
    probe: str
    measured: bool
    reason: str = ""


@dataclass(repr=False)
class Reading:
    """The results of one measurement, on the host."""

    values: dict[str, dict[str, float]]
    """Metric -> layer -> value; NaN where there is none. The layer ``all`` is the network: dormant or inactive neurons
    over all hidden neurons for a fraction, the mean over layers for a rank."""
    scores: dict[str, dict[str, Tensor]]
    """Probe -> layer -> (neurons,) scores, for probes that have them."""
    num_neurons: dict[str, int]
    """Layer -> its number of neurons."""
    coverage: list[Coverage] = field(default_factory=list)
    num_passes: int = 0
    """How many forward passes were measured."""
    projections: frozenset[str] = frozenset()
    """The layers without an activation, which have values of their own and no part in that of the network."""
    num_units: int = 0
    """How many units the values of the network are of; of those that several layers write, each counts once."""
    details: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Probe -> layer -> what belongs beside the value by name, such as ``samples``, for probes that say so."""

    @property
    def unmeasured(self) -> list[Coverage]:
        """The entries of :attr:`coverage` that have no value."""
        return [entry for entry in self.coverage if not entry.measured]

    def quantile(self, probe: str, q: float) -> dict[str, float]:
        """Return the ``q``-quantile of each layer's scores: low ones tell how close neurons are to the threshold."""
        return {layer: float(scores.double().quantile(q)) for layer, scores in self.scores[probe].items()}

    def flat(self, prefix: str = "plasticity") -> dict[str, float]:
        """Return the values by tag, ``prefix/metric/layer``."""
        return {f"{prefix}/{m}/{layer}": v for m, by_layer in self.values.items() for layer, v in by_layer.items()}

    def __str__(self) -> str:
        table = self._table()
        if len(self.values) > WIDEST:
            table = [list(column) for column in zip(*table, strict=True)]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in table
        ]
        return "\n".join([*lines, *self._remarks()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return self.html({})

    def html(self, courses: Courses) -> str:
        """Return the table as HTML, shares coloured as in the tab; with ``courses`` ranks, too, and sparklines."""
        remarks = "".join(f"<p>{escape(remark)}</p>" for remark in self._remarks())
        return table_html(self._table(), self.values, courses) + remarks

    def _table(self) -> list[list[str]]:
        """Return a row of cells for every layer, and one for the network."""
        rows = [["layer", "neurons", *self.values]]
        parts = dict.fromkeys(layer for by_layer in self.values.values() for layer in by_layer if layer != ALL)
        for layer in [*dict.fromkeys([*self.num_neurons, *parts]), ALL]:
            count = str(self.num_units if layer == ALL else self.num_neurons.get(layer, "-"))
            rows.append([layer, count, *(_cell(by_layer.get(layer, math.nan)) for by_layer in self.values.values())])
        return rows

    def _remarks(self) -> list[str]:
        """Return lines on what was not measured and why, and on what belongs beside the values."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for entry in self.unmeasured:
            reasons.setdefault((entry.layer, entry.reason), []).append(entry.probe)
        notes = [
            f"not measured: {layer or 'the model itself'} ({', '.join(probes)}): {reason}"
            for (layer, reason), probes in reasons.items()
        ]
        for probe, by_layer in self.details.items() if len(self.values) > WIDEST else self._of_features().items():
            said: dict[str, list[str]] = {}
            for layer, details in by_layer.items():
                said.setdefault(details_in_words(details), []).append(layer)
            for words, layers in said.items():
                notes.append(f"{probe}: {words}" + (f" ({', '.join(layers)})" if len(said) > 1 else ""))
        return notes

    def conditions(self) -> dict[str, str]:
        """Return layer and probe -> samples, features, dtype and centring in words, for probes of feature matrices."""
        found = self._of_features()
        return {
            f"{layer} ({probe})": details_in_words(d)
            for probe, by_layer in found.items()
            for layer, d in by_layer.items()
        }

    def _of_features(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the details of the probes that look at feature matrices: those that say a dtype."""
        found = {p: {la: d for la, d in by_layer.items() if "dtype" in d} for p, by_layer in self.details.items()}
        return {probe: by_layer for probe, by_layer in found.items() if by_layer}


class Readings(dict[str, Reading]):
    """Network -> its latest reading; printed, and in a notebook, a table for each."""

    def __init__(self) -> None:
        super().__init__()
        self.courses: dict[str, dict[tuple[str, str], Course]] = {}
        """Network -> (metric, layer) -> the course of its values over all readings."""

    def note(self, network: str, reading: Reading) -> None:
        """Take a reading as the latest of its network."""
        self[network] = reading
        courses = self.courses.setdefault(network, {})
        for metric, by_layer in reading.values.items():
            for layer, value in by_layer.items():
                courses.setdefault((metric, layer), Course()).add(value)

    def __str__(self) -> str:
        return "\n\n".join(f"{network}\n{reading}" for network, reading in self.items()) or "nothing was measured yet"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the tables for a notebook, with sparklines of all readings."""
        tables = [f"<h4>{escape(n)}</h4>{reading.html(self.courses.get(n, {}))}" for n, reading in self.items()]
        return "".join(tables) or f"<p>{self}</p>"


def details_in_words(details: Mapping[str, Any]) -> str:
    """Return what belongs beside a value as words: ``256 samples, 84 features, float32, not centred``."""
    words = []
    for name, value in details.items():
        if isinstance(value, (list, tuple)):
            words.append(f"{name}: {', '.join(map(str, value))}" if value else f"not {name}")
        elif isinstance(value, bool):
            words.append(name if value else f"not {name}")
        else:
            words.append(str(value) if name == "dtype" else f"{value} {name.replace('_', ' ')}")
    return ", ".join(words)


def _cell(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
