"""Feed one copy of each probe per layer, and turn what they say into a reading."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.callback import note
from plasticity.isolation import map_tensors
from plasticity.probes import Probe
from plasticity.probes.probe import FORWARD, POST, WEIGHT
from plasticity.structure.layers import NORMS, Layer, Wiring

from .distributed import combined
from .hooks import Entry, Seen
from .reading import ALL, OUTPUT_LAYER, Coverage, Reading

Key = tuple[str, str]
"""A probe or metric, and a layer."""
Results = dict[Key, Tensor]
"""(metric, layer) -> 0-D value."""
Values = dict[str, dict[str, float]]
"""Metric -> layer -> value."""


Plan = tuple[Entry, ...]
"""What the tensors of a pass show."""
MANY, MANY_NUMBERS = 64, 1 << 16
"""After so many passes, or numbers, what they show is added up: many at once cost a fraction."""


class Sums:
    """Sums over passes, in float64, of the tensors of one plan."""

    def __init__(self) -> None:
        self.times = 0
        self._totals: list[Tensor] | None = None
        self._waiting: list[list[Tensor]] = []
        self._many = 0

    def add(self, tensors: list[Tensor]) -> None:
        """Add what one pass shows."""
        self.times += 1
        self._waiting.append(tensors)
        if not self._many:
            self._many = max(1, min(MANY, MANY_NUMBERS // sum(map(Tensor.numel, tensors))))
        if len(self._waiting) >= self._many:
            self.totals()

    def totals(self) -> list[Tensor]:
        """Return the sums."""
        if self._waiting:
            sums = [torch.stack(parts).sum(0, dtype=torch.float64) for parts in zip(*self._waiting, strict=True)]
            self._totals = sums if self._totals is None else [a + b for a, b in zip(self._totals, sums, strict=True)]
            self._waiting = []
        assert self._totals is not None
        return self._totals

    def state_dict(self) -> dict[str, Any]:
        """Return all there is; what waits is added later, for the same bits."""
        return {"times": self.times, "totals": self._totals, "waiting": self._waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.times, self._totals, self._waiting = state["times"], state["totals"], list(state["waiting"])


class Gathering:
    """The probes at work: a copy of each per layer, what they were fed, and which of them failed.

    ``deferred``: what passes show is pending until :meth:`commit`.
    """

    def __init__(self, probes: Mapping[str, Probe], strict: bool, deferred: bool = False) -> None:
        self.probes, self.strict, self.deferred = dict(probes), strict, deferred
        self._spare = False
        self._failed: dict[str, str] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything gathered; a probe that failed stays off."""
        self._copies: dict[Key, Probe] = {}
        """The probes that were fed rows."""
        self._sums: defaultdict[Plan, Sums] = defaultdict(Sums)
        self.num_passes = 0
        self._metrics = {name: tuple(getattr(probe, "metrics", (name,))) for name, probe in self.probes.items()}
        self._choose()
        self.drop()

    def leave_out(self, spare: bool) -> None:
        """Leave out, or take in again, the probes that look at a window's last step only."""
        self._spare = spare
        self._choose()

    def _choose(self) -> None:
        self.working = [
            name
            for name, probe in self.probes.items()
            if name not in self._failed and not (self._spare and probe.last_step_only)
        ]
        """The probes that look at what comes."""
        self._wanting: defaultdict[str, list[tuple[str, Probe, bool]]] = defaultdict(list)
        for name in self.working:
            probe = self.probes[name]
            for signal in probe.signals:
                self._wanting[signal].append((name, probe, probe.reduces(signal)))
        self.signals = frozenset(self._wanting)
        """What these probes want to see."""

    # -- what passes show ----------------------------------------------------------------------------------------------

    def look(self, layer: str, signal: str, rows: Tensor) -> Seen:
        """Return what every probe that wants ``signal`` takes from the rows of one layer; it may be traced."""
        seen: Seen = []
        num_samples = rows.shape[0]
        for name, probe, reduces in self._wanting.get(signal, ()) if num_samples else ():
            try:
                tensor = probe.reduce(signal, rows) if reduces else rows
                seen.append((Entry(name, layer, signal, num_samples, reduces), tensor))
            except Exception as error:
                self._disable(name, error)
        return seen

    def take(self, seen: Iterable[tuple[Entry, Tensor]]) -> None:
        """Take in what a pass shows."""
        for entry, tensor in seen:
            if entry.reduced:
                self._plan.append(entry)
                self._tensors.append(tensor)
            else:
                self._rows.append((entry, tensor))
        if not self.deferred:
            self.commit()

    def take_passes(self, num_passes: int, plan: Plan, reduced: list[Tensor], rows: Seen) -> None:
        """Count passes and take in all that they show."""
        self._pending_passes += num_passes
        self._whole.append((plan, reduced))
        self.take(rows)

    def count(self) -> None:
        """Count a pass."""
        self._pending_passes += 1
        if not self.deferred:
            self.commit()

    def drop(self) -> None:
        """Forget what is pending."""
        self._plan: list[Entry] = []
        self._tensors: list[Tensor] = []
        self._whole: list[tuple[Plan, list[Tensor]]] = []
        self._rows: Seen = []
        self._pending_passes = 0

    def commit(self) -> None:
        """Give the probes what is pending."""
        whole, rows = [*self._whole, (tuple(self._plan), self._tensors)], self._rows
        self.num_passes += self._pending_passes
        self.drop()
        for plan, tensors in whole:
            if plan:
                self._sums[plan].add(tensors)
        for entry, tensor in rows:
            self._feed(entry, tensor)

    def _feed(self, entry: Entry, rows: Tensor) -> None:
        if entry.probe in self._failed:
            return
        try:
            probe = self._copies.get((entry.probe, entry.layer))
            if probe is None:
                probe = self._copies[entry.probe, entry.layer] = self._new(entry.probe)
            with torch.no_grad():
                getattr(probe, entry.signal)(rows)
        except Exception as error:
            self._disable(entry.probe, error)

    def _new(self, name: str) -> Probe:
        probe = copy.deepcopy(self.probes[name])
        probe.reset()
        return probe

    def fed(self) -> dict[Key, Probe]:
        """Return the probes with all they were given, by probe and layer."""
        found: dict[Key, Probe] = {}
        for plan, sums in self._sums.items():
            for entry, total in zip(plan, sums.totals(), strict=True):
                if entry.probe in self._failed:
                    continue
                key = entry.probe, entry.layer
                try:
                    if key not in found:
                        found[key] = copy.deepcopy(self._copies[key]) if key in self._copies else self._new(entry.probe)
                    found[key].add(entry.signal, total, entry.num_samples * sums.times)
                except Exception as error:
                    self._disable(entry.probe, error)
        return {**found, **{key: probe for key, probe in self._copies.items() if key not in found}}

    def state_dict(self) -> dict[str, Any]:
        """Return what was given to the probes, without what is pending."""
        state = {
            "num_passes": self.num_passes,
            "sums": [
                {"plan": [list(entry) for entry in plan], **sums.state_dict()} for plan, sums in self._sums.items()
            ],
            "probes": [[*key, probe.state_dict()] for key, probe in self._copies.items()],
        }
        return map_tensors(state, torch.clone)

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None) -> None:
        """Go on from :meth:`state_dict`, on a device."""
        self.reset()
        state = map_tensors(state, lambda tensor: tensor.to(device, copy=True))
        self.num_passes = state["num_passes"]
        for part in state["sums"]:
            self._sums[tuple(Entry(*entry) for entry in part["plan"])].load_state_dict(part)
        for name, layer, saved in state["probes"]:
            self._copies[name, layer] = self._new(name)
            self._copies[name, layer].load_state_dict(saved)

    def _disable(self, probe: str, error: Exception) -> None:
        if self.strict:
            note(error, f"raised by the probe {probe}")
            raise error
        self._failed[probe] = f"the probe failed: {type(error).__name__}: {error}"
        self._choose()
        warnings.warn(f"probe {probe!r} failed and is off from now on: {error!r}", RuntimeWarning, stacklevel=3)

    # -- results -------------------------------------------------------------------------------------------------------

    def reading(self, wiring: Wiring, layers: list[Layer], group: Any = None) -> Reading:
        """Return the results on ``layers``; ``group``: the processes that share the batch, all of which must call."""
        fed = self.fed()
        results, scores = self._compute(fed if group is None else combined(fed, group))
        values = self._tabulate(_to_host(results), layers, fed)
        return Reading(
            values=values,
            scores={name: by_layer for name, by_layer in scores.items() if name not in self._failed},
            num_neurons={layer.name: layer.num_neurons for layer in layers},
            coverage=self._coverage(wiring, {layer.name for layer in layers}, values, fed),
            num_passes=self.num_passes,
        )

    def _compute(self, copies: Mapping[Key, Probe]) -> tuple[Results, dict[str, dict[str, Tensor]]]:
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

    def _tabulate(self, results: Mapping[Key, float], layers: list[Layer], fed: Container[Key]) -> Values:
        """Arrange values by metric and layer, NaN where there is none, and add the value of the network."""
        values: Values = {}
        for probe, prototype in self.probes.items():
            measured = [layer for layer in layers if (probe, layer.name) in fed and probe not in self._failed]
            weights = {layer.name: layer.num_neurons if prototype.per_neuron else 1 for layer in measured}
            for metric in self._metrics[probe]:
                found = {layer.name: results.get((metric, layer.name), torch.nan) for layer in layers}
                total = sum(weight * found[name] for name, weight in weights.items())
                values[metric] = {**found, ALL: total / sum(weights.values()) if weights else torch.nan}
        return values

    def _coverage(self, wiring: Wiring, selected: set[str], values: Values, fed: Container[Key]) -> list[Coverage]:
        entries = []
        for layer in wiring.layers.values():
            for name, probe in self.probes.items():
                reason = self._why_not(layer, name, layer.name in selected, (name, layer.name) in fed)
                if not reason and any(v != v for v in (values[m][layer.name] for m in self._metrics[name])):
                    reason = probe.nan_reason
                entries.append(Coverage(layer.name, name, not reason, reason))
        for module, reason in _other_weights(wiring):
            entries.extend(Coverage(module, name, False, reason) for name in self.probes)
        return entries

    def _why_not(self, layer: Layer, probe: str, selected: bool, fed: bool) -> str:
        """Return why a probe has no data for a layer; empty if it has."""
        if layer.num_calls == 0:
            return "its forward was never called"
        if not selected:
            return OUTPUT_LAYER if layer.is_output else "not selected"
        if probe in self._failed:
            return self._failed[probe]
        if fed:
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
