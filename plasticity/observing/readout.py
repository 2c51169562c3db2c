"""Results of probes on the layers of a wiring, arranged: what stays the same from one reading to the next is kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import nn

from plasticity.isolation import is_scripted
from plasticity.probes import Probe
from plasticity.probes.probe import FORWARD, OF_WEIGHTS, POST, PRE, PREACTIVATION, WEIGHT_BEFORE
from plasticity.structure.layers import NORM_MODULES, Layer, weight_parameter
from plasticity.structure.slices import Slice
from plasticity.structure.wirings import Wiring

from ..tags import ALL
from .hooks import IN_TRANSFORM
from .reading import OUTPUT_LAYER, Coverage
from .whole_units import WholeUnits

Key = tuple[str, str]
"""A probe or metric, and a layer."""
LayerValues = dict[str, dict[str, float]]
"""Metric -> layer -> value."""
NO_STEP = "no optimizer step was watched: it takes watch(), or a run"


class State(NamedTuple):
    """The probes at the time of a reading."""

    metrics: Mapping[str, tuple[str, ...]]
    """Probe -> the names of its results."""
    failed: Mapping[str, str]
    """Probe that failed -> why."""
    missing: Mapping[Key, Collection[str]]
    """The signals that did not arrive, by probe and layer."""
    why_not: Mapping[Key, str]
    """The reasons that probes give themselves."""
    hidden: Collection[str]
    """Layers that ran where their values are wrapped."""


class Readout:
    """The layers that readings are of, among those of ``wiring``, and ``probes`` by name."""

    def __init__(self, wiring: Wiring, layers: list[Layer], probes: Mapping[str, Probe]) -> None:
        self.wiring, self.layers, self.probes = wiring, layers, probes
        self.num_neurons = {layer.name: layer.num_neurons for layer in layers}
        self.activations = {layer.name: "gated" if layer.gated else layer.activation for layer in layers}
        self.projections = frozenset(layer.name for layer in layers if not layer.has_units)
        """The layers that have no part in the value of the network, unless all are such."""
        self._units = WholeUnits(wiring, layers)
        with_units = [name for name in self.num_neurons if name not in self.projections]
        self.num_units = sum(number for _, number in self._units.groups(with_units or self.num_neurons))
        """How many units the values of the network are of."""
        self._of_weights = {name for name, probe in probes.items() if probe.signals & OF_WEIGHTS}
        self._listed = [(layer, self._why_not_read(layer)) for layer in self._with_parts()]
        """The layers of the wiring, with the reason why none of their values is wanted."""
        self._others = [Coverage(name, p, False, why) for name, why in _other_weights(wiring) for p in probes]

    def is_of(self, wiring: Wiring, layers: list[Layer]) -> bool:
        """Return whether it is of just this."""
        return self.wiring is wiring and list(map(id, self.layers)) == list(map(id, layers))

    def tabulate(self, results: Mapping[Key, float], measured: Collection[Key], state: State) -> LayerValues:
        """Arrange values by metric and layer, NaN where there is none, and add the value of the network.

        The network's value is of its hidden units; projections (layers without an activation) only have their own,
        unless all layers are projections. Layers that write the same units count as one, but for what is of weights.
        """
        values = {m: dict.fromkeys(self.num_neurons, math.nan) for name in self.probes for m in state.metrics[name]}
        for (metric, layer), value in results.items():
            if layer in self.num_neurons:
                values[metric][layer] = value
        for name, probe in self.probes.items():
            layers = [la for la in self.num_neurons if (name, la) in measured and name not in state.failed]
            layers = [la for la in layers if la not in self.projections] or layers
            apart = [([la], self.num_neurons[la]) for la in layers]
            groups = apart if name in self._of_weights else self._units.groups(layers)
            neurons = [number for _, number in groups]
            for found in [values[metric] for metric in state.metrics[name]]:
                means = [sum([found[la] for la in group]) / len(group) for group, _ in groups]
                found[ALL] = probe.of_network(means, neurons) if groups else math.nan
        return values

    def coverage(self, values: LayerValues, state: State) -> list[Coverage]:
        """Return, for every weight layer of the model and every probe, whether there is a value and if not, why."""
        entries = []
        for layer, reason in self._listed:
            for name, probe in self.probes.items():
                why = reason or self._why_not(layer, name, state)
                if not why and any(math.isnan(values[metric][layer.name]) for metric in state.metrics[name]):
                    why = probe.nan_reason
                entries.append(Coverage(layer.name, name, not why, why))
        return entries + self._others

    def _with_parts(self) -> Iterator[Layer]:
        """Yield the layers of the wiring, in the place of one whose parts are read these."""
        for layer in self.wiring.layers.values():
            if any(part.name in self.num_neurons for part in layer.parts):
                yield from layer.parts
            else:
                yield layer

    def _why_not_read(self, layer: Layer) -> str:
        """Return why no value of a layer is wanted; empty if it is read."""
        if layer.num_calls == 0:
            return self.wiring.why_not_called(layer.name)
        if layer.name not in self.num_neurons:
            return OUTPUT_LAYER if layer.is_output else "not selected"
        return ""

    def _why_not(self, layer: Layer, probe: str, state: State) -> str:
        """Return why a probe has no value for a layer that is read; empty if it has all its signals."""
        if probe in state.failed:
            return state.failed[probe]
        missing = {*state.missing[probe, layer.name]}
        if not missing:
            return state.why_not.get((probe, layer.name), "")
        if missing == {WEIGHT_BEFORE}:
            return NO_STEP
        if layer.name in state.hidden:
            return f"it ran {IN_TRANSFORM}"
        shown = not self.wiring.ran_before_only(layer)
        if shown and missing & {FORWARD, POST} and not layer.sites:
            return "; ".join(layer.unresolved) or "its activations are out of every module's sight"
        if shown and POST in missing and all(site.replay for site in layer.sites):
            return "its activation is a tensor that no module sees"
        weight = weight_parameter(layer.module)
        if missing & OF_WEIGHTS and (weight is None or not weight.requires_grad):
            return "its weight is frozen" if weight is not None else "its weight is computed, not a parameter"
        if shown and PRE in missing and layer.num_calls and not layer.inputs:
            return "no module sees the input of its activation, behind a norm"
        in_forward = missing <= {FORWARD, PREACTIVATION}
        return "it was not called in the measured passes" if in_forward else "no gradient reached it"


def _other_weights(wiring: Wiring) -> Iterator[tuple[str, str]]:
    """Yield (module, reason) for matrices outside Linear and convolution layers: recurrent cells, bare parameters."""
    adapted = tuple(f"{name}." for name, layer in wiring.layers.items() if layer.adapter)
    for name, module in wiring.modules.items():
        if name in wiring.layers or isinstance(module, (*NORM_MODULES, nn.Embedding, nn.EmbeddingBag)):
            continue
        owner, computed, _ = name.rpartition(".parametrizations.")
        if name.startswith(adapted) or (computed and owner in wiring.layers):
            continue  # the weights of a layer that is measured: of its adapter, or those that its own is computed from
        if is_scripted(module):
            yield name or "(model)", f"{getattr(module, 'original_name', 'it')} is scripted, and runs without hooks"
            continue
        of_layers = (layer.module for layer in wiring.layers.values())
        slices = [found for found in of_layers if isinstance(found, Slice) and found.host is module]
        sliced = {key for found in slices for key in (found.key, *found.bias_keys)}
        own = [key for key, p in module._parameters.items() if p is not None and p.dim() > 1 and key not in sliced]
        if own:
            kind = type(module).__name__
            yield (
                name or "(model)",
                f"{kind}: {', '.join(own)} belong to no Linear or convolution, which alone are measured",
            )
