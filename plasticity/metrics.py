"""The choice and display of plasticity metrics: probes by default and in sets, order, short names, scales.

A metric that is not listed here is shown too, under its own name, on a scale of its own range. A line in ``METRICS``
gives it a short name, a scale and a place in the order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """The display of one metric."""

    short: str
    """Name in a terminal."""
    kind: Literal["share", "rank", "value"] = "value"
    """``share``: part of a layer's neurons, in [0, 1], higher is worse. ``rank``: at most the layer's width, lower is
    worse. ``value``: anything else."""
    headline: bool = False
    """True: shown before the others."""

    @property
    def tells_loss(self) -> bool:
        """Return whether it says which part of a layer is lost: a share does, and of the ranks the headline."""
        return self.kind == "share" or (self.kind == "rank" and self.headline)

    def text(self, value: float) -> str:
        """Return a value as text; empty for NaN."""
        if math.isnan(value):
            return ""
        return f"{value:.1%}" if self.kind == "share" else f"{value:.1f}" if self.kind == "rank" else f"{value:.3g}"


DEFAULT_PROBES = ("dormancy", "grama", "rank")
"""Names of the probes that measure where nobody chose any."""

SETS: dict[str, tuple[str, ...]] = {
    "basic": DEFAULT_PROBES,
    "activity": (
        *("dormancy", "rdu", "fau", "fau_units", "dead", "never_fired", "rarely_fires", "linearised", "saturated"),
        *("silent", "quadrants", "dormant_again", "still_dormant"),
    ),
    "gradient": (
        *("grama", "gradient_norm", "zero_gradient", "gradient_kurtosis", "rua", "rua_volatile", "step_cosine"),
        *("loss_cosine", "sample_gradients", "ntk"),
    ),
    "ranks": ("rank", "spectrum", "feature_norm"),
    "weights": (
        *("weight_magnitude", "weight_spectrum", "weight_distance", "weight_change", "update_ratio"),
        *("effective_lr", "unchanged"),
    ),
}
"""Set -> its probes. ``ranks`` holds ``rank``, which is the name of one probe."""
SETS["all"] = tuple(dict.fromkeys(name for names in SETS.values() for name in names))
# Not in "all": the curvature costs many passes, and few networks are transformers.
SETS["curvature"] = ("hessian", "sharpness")
SETS["transformer"] = ("attention", "residual_stream", "router", "token_entropy")

METRICS: dict[str, Metric] = {
    "dormancy": Metric("dormant", "share", headline=True),
    "grama": Metric("GraMa", "share", headline=True),
    "effective_rank": Metric("rank", "rank", headline=True),
    "srank": Metric("srank", "rank"),
    "feature_rank": Metric("feature rank", "rank"),
    "stable_rank": Metric("stable rank"),
    "rdu": Metric("RDU", "share"),
    "dead": Metric("dead", "share"),
    "never_fired": Metric("never fired", "share"),
    "rarely_fires": Metric("rarely fires", "share"),
    "silent": Metric("silent", "share"),
    "linearised": Metric("linear", "share"),
    "saturated": Metric("saturated", "share"),
    "rua": Metric("RUA", "share"),
    "pca_rank": Metric("PCA rank", "rank"),
    "numerical_rank": Metric("numerical rank", "rank"),
}
"""Name -> how it is shown, in the order in which metrics are shown."""
DEFAULT_METRICS = ("dormancy", "grama", "effective_rank", "srank", "feature_rank", "stable_rank")
"""Metrics of the default probes: of these, headlines alone are shown first; all others were asked for."""
MOST_SHOWN = 6
"""Metrics that are shown at first, at most."""


def find_metric(name: str) -> Metric:
    """Return how a metric is shown; ``grama_post`` has the scale of ``grama``, an unknown one is a plain value."""
    if name in METRICS:
        return METRICS[name]
    family = next((known for known in METRICS if name.startswith(f"{known}_")), None)
    plain = METRICS[family] if family else Metric("")
    return dataclasses.replace(plain, short=name.replace("_", " "), headline=False)


def is_asked_for(name: str) -> bool:
    """Return whether a metric is there because somebody chose it: no default probe gives it."""
    return name not in DEFAULT_METRICS


def ordered(names: Iterable[str]) -> list[str]:
    """Return the names of metrics in the order in which they are shown: listed ones first, then by name."""
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(set(names), key=lambda name: (places.get(name, len(places)), name))


def headlines() -> list[str]:
    """Return the names of the metrics that are shown before all others."""
    return [name for name, metric in METRICS.items() if metric.headline]


def shown_first(names: Iterable[str]) -> list[str]:
    """Return which of the metrics are shown where nobody chose any: at most ``MOST_SHOWN``.

    Headline metrics come first, then those that no default probe gives. Where there is neither, all of them count.
    """
    there = ordered(names)
    chosen = [name for name in there if is_asked_for(name) or METRICS[name].headline]
    return (chosen or there)[:MOST_SHOWN]


def expanded(names: Iterable[str], probes: Container[str]) -> list[str]:
    """Return the names with every set replaced by its probes, each once; a probe goes before a set of its name."""
    found = [(name,) if name in probes else SETS.get(name, (name,)) for name in names]
    return list(dict.fromkeys(one for some in found for one in some))
