"""Feed one copy of each probe per layer, and turn what they say into a reading."""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .callback import note
from .distributed import combined
from .layers import NORMS, Layer, Wiring
from .probes import Probe
from .probes.probe import FORWARD, POST, WEIGHT
from .reading import ALL, OUTPUT_LAYER, Coverage, Reading

Results = dict[tuple[str, str], Tensor]
"""(metric, layer) -> 0-D value."""


class Gathering:
    """The probes at work: a copy of each per layer, what they were fed, and which of them failed."""

    def __init__(self, probes: Mapping[str, Probe], strict: bool) -> None:
        self.probes, self.strict = dict(probes), strict
        self._failed: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything gathered; a probe that failed stays off."""
        self._copies: dict[tuple[str, str], Probe] = {}
        self._fed: Counter[tuple[str, str]] = Counter()
        self._metrics = {name: tuple(getattr(probe, "metrics", (name,))) for name, probe in self.probes.items()}
        self._update_signals()

    def _update_signals(self) -> None:
        working = (probe.signals for name, probe in self.probes.items() if name not in self._failed)
        self.signals: frozenset[str] = frozenset().union(*working)
        """What the probes that work want to see."""

    def feed(self, layer: str, signal: str, rows: Tensor) -> None:
        """Give every probe that wants ``signal`` its rows of one layer."""
        if not len(rows):
            return
        for name, prototype in self.probes.items():
            if name in self._failed or signal not in prototype.signals:
                continue
            try:
                probe = self._copies.get((name, layer))
                if probe is None:
                    probe = self._copies[name, layer] = copy.deepcopy(prototype)
                    probe.reset()
                with torch.no_grad():
                    getattr(probe, signal)(rows)
                self._fed[name, layer] += 1
            except Exception as error:
                self._disable(name, error)

    def _disable(self, probe: str, error: Exception) -> None:
        if self.strict:
            note(error, f"raised by the probe {probe}")
            raise error
        self._failed[probe] = f"the probe failed: {type(error).__name__}: {error}"
        self._update_signals()
        warnings.warn(f"probe {probe!r} failed and is off from now on: {error!r}", RuntimeWarning, stacklevel=3)

    # -- results -------------------------------------------------------------------------------------------------------

    def reading(self, wiring: Wiring, layers: list[Layer], num_passes: int, group: Any = None) -> Reading:
        """Return the results on ``layers``; ``group``: the processes that share the batch, all of which must call."""
        results, scores = self._compute(self._copies if group is None else combined(self._copies, group))
        values = self._tabulate(_to_host(results), layers)
        return Reading(
            values=values,
            scores={name: by_layer for name, by_layer in scores.items() if name not in self._failed},
            num_neurons={layer.name: layer.num_neurons for layer in layers},
            coverage=self._coverage(wiring, {layer.name for layer in layers}, values),
            num_passes=num_passes,
        )

    def _compute(self, copies: Mapping[tuple[str, str], Probe]) -> tuple[Results, dict[str, dict[str, Tensor]]]:
        results: Results = {}
        scores: dict[str, dict[str, Tensor]] = {n: {} for n, p in self.probes.items() if p.per_neuron}
        for (name, layer), probe in copies.items():
            if name in self._failed:
                continue
            try:
                with torch.no_grad():
                    value = probe.compute()
                    parts = value if isinstance(value, dict) else {name: value}
                    if probe.per_neuron:
                        scores[name][layer] = probe.scores().cpu()
                self._metrics[name] = tuple(parts)
                results |= {(metric, layer): part for metric, part in parts.items()}
            except Exception as error:
                self._disable(name, error)
        failed = {metric for name in self._failed for metric in self._metrics[name]}
        return {key: value for key, value in results.items() if key[0] not in failed}, scores

    def _tabulate(self, results: dict[tuple[str, str], float], layers: list[Layer]) -> dict[str, dict[str, float]]:
        """Arrange values by metric and layer, NaN where there is none, and add the value of the network."""
        values: dict[str, dict[str, float]] = {}
        for probe, prototype in self.probes.items():
            measured = [layer for layer in layers if (probe, layer.name) in self._fed and probe not in self._failed]
            weights = {layer.name: layer.num_neurons if prototype.per_neuron else 1 for layer in measured}
            for metric in self._metrics[probe]:
                found = {layer.name: results.get((metric, layer.name), torch.nan) for layer in layers}
                total = sum(weight * found[name] for name, weight in weights.items())
                values[metric] = {**found, ALL: total / sum(weights.values()) if weights else torch.nan}
        return values

    def _coverage(self, wiring: Wiring, selected: set[str], values: dict[str, dict[str, float]]) -> list[Coverage]:
        entries = []
        for layer in wiring.layers.values():
            for name, probe in self.probes.items():
                reason = self._why_not(layer, name, layer.name in selected)
                if not reason and any(v != v for v in (values[m][layer.name] for m in self._metrics[name])):
                    reason = probe.nan_reason
                entries.append(Coverage(layer.name, name, not reason, reason))
        for module, reason in _other_weights(wiring):
            entries.extend(Coverage(module, name, False, reason) for name in self.probes)
        return entries

    def _why_not(self, layer: Layer, probe: str, selected: bool) -> str:
        """Return why a probe has no data for a layer; empty if it has."""
        if layer.num_calls == 0:
            return "its forward was never called"
        if not selected:
            return OUTPUT_LAYER if layer.is_output else "not selected"
        if probe in self._failed:
            return self._failed[probe]
        if (probe, layer.name) in self._fed:
            return ""
        signals = self.probes[probe].signals
        if signals & {FORWARD, POST} and not layer.sites:
            return "; ".join(layer.unresolved) or "its activations are out of every module's sight"
        if POST in signals and all(site.replay for site in layer.sites.values()):
            return "its activation is a tensor that no module sees"
        weight = layer.module._parameters.get("weight")
        if WEIGHT in signals and (weight is None or not weight.requires_grad):
            return "its weight is frozen" if weight is not None else "its weight is computed, not a parameter"
        return "no gradient reached it" if signals - {FORWARD} else "it was not called in the measured passes"


def _other_weights(wiring: Wiring) -> Iterator[tuple[str, str]]:
    """Yield (module, reason) for matrices outside Linear and convolution layers: recurrent cells, bare parameters."""
    for name, module in wiring.modules.items():
        if name in wiring.layers or isinstance(module, (*NORMS, nn.Embedding, nn.EmbeddingBag)):
            continue
        own = [key for key, parameter in module._parameters.items() if parameter is not None and parameter.dim() > 1]
        if own:
            kind = type(module).__name__
            yield (
                name or "(model)",
                f"{kind}: {', '.join(own)} belong to no Linear or convolution, which alone are measured",
            )


def _to_host(results: Results) -> dict[tuple[str, str], float]:
    """Bring all results to the host with one copy per device."""
    by_device: defaultdict[torch.device, list[tuple[str, str]]] = defaultdict(list)
    for key, value in results.items():
        by_device[value.device].append(key)
    numbers: dict[tuple[str, str], float] = {}
    for keys in by_device.values():
        numbers.update(zip(keys, torch.stack([results[k].double() for k in keys]).tolist(), strict=True))
    return numbers
