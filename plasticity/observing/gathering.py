"""Copies of each probe, one per layer: the data they are given, and the reading that they make of it."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plasticity.callback import note
from plasticity.isolation import map_tensors
from plasticity.probes import Probe
from plasticity.probes.probe import WEIGHT, WEIGHT_BEFORE, Summand, num_samples_in
from plasticity.structure.layers import WIDE, Layer, current_weight, precise
from plasticity.structure.wirings import Wiring

from .distributed import Processes
from .hooks import Parts, Recipient, Recording, Seen
from .reading import Reading
from .readout import Key, Readout, State
from .sums import Sums, Total, unpacked

Results = dict[Key, Tensor]
"""(metric, layer) -> 0-D value."""


class Computed(NamedTuple):
    """The results of probes, on their device, and what they say besides."""

    values: Results
    scores: dict[str, dict[str, Tensor]]
    details: dict[str, dict[str, dict[str, Any]]]
    why_not: dict[Key, str]


class Gathering:
    """A copy of each probe per layer, the data that they were given, and the probes that failed.

    ``deferred``: data of passes are pending until :meth:`commit`. ``recycled`` returns layer -> the neurons that were
    recycled last; it is asked at the first data after :meth:`reset`.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        strict: bool,
        deferred: bool = False,
        recycled: Callable[[], Mapping[str, Sequence[int]]] = dict,
    ) -> None:
        self.probes, self.strict, self.deferred, self.recycled = dict(probes), strict, deferred, recycled
        self._signals = {name: probe.signals for name, probe in self.probes.items()}
        self._spare = False
        self._failed: dict[str, str] = {}
        self._readout: Readout | None = None
        self.memory: dict[Key, Any] = {}
        """(probe, layer) -> its memory of earlier readings."""
        self.dtypes: dict[str, torch.dtype] = {}
        """Layer -> the dtype of its activations in the last pass, before they were widened."""
        self._remembered: dict[Key, Any] = {}
        """The same of the last reading, until it is over."""
        self._totals: dict[Parts, Total] = {}
        """The sums that graphs add to."""
        self._choose()
        self.reset()

    def reset(self) -> None:
        """Forget everything gathered; a probe that failed stays off, and what was read last becomes memory."""
        self.memory.update(self._remembered)
        self._remembered = {}
        self._before: dict[str, Tensor] = {}
        """Layer -> its weight at the start of the window."""
        self._steps = 0
        self.hidden: set[str] = set()
        """Layers that ran where their values are wrapped."""
        self._recycled: Mapping[str, Sequence[int]] | None = None
        """Layer -> the neurons that were recycled last before these data; None before the first."""
        self._copies: dict[Key, Probe] = {}
        """The probes that were fed rows."""
        self._arrived: defaultdict[Key, set[str]] = defaultdict(set)
        """The signals of these rows."""
        self._sums: defaultdict[tuple[Recipient, ...], Sums] = defaultdict(Sums)
        """The sums of eager passes."""
        self._parts: Parts | None = None
        """The parts of the last vector that a graph added up."""
        for total in self._totals.values():
            total.clear()
        self.num_passes = 0
        self._metrics = {name: tuple(getattr(probe, "metrics", (name,))) for name, probe in self.probes.items()}
        self.drop()

    def leave_out(self, spare: bool) -> bool:
        """Leave out, or take in again, the probes that look at a window's last step only; return if that is new."""
        if spare == self._spare:
            return False
        self._spare = spare
        self._choose()
        return True

    def _choose(self) -> None:
        self.working = [
            name
            for name, probe in self.probes.items()
            if name not in self._failed and not (self._spare and probe.last_step_only)
        ]
        """The probes that look at what comes."""
        self._wanting: defaultdict[str, list[tuple[str, Summand | None]]] = defaultdict(list)
        """Signal -> probes that use it, with the function of its rows that is summed; None: they take the rows."""
        for name in self.working:
            probe = self.probes[name]
            for signal in self._signals[name]:
                self._wanting[signal].append((name, None if probe.takes_rows(signal) else probe.sums()[signal]))
        self.signals = frozenset(self._wanting) - {WEIGHT, WEIGHT_BEFORE}
        """The signals to observe in passes."""

    def begin(self, layers: Iterable[Layer]) -> None:
        """Keep the weights of layers at the start of a window, for the probes that compare them."""
        for layer in layers if WEIGHT_BEFORE in self._wanting else ():
            weight = current_weight(layer.module)
            if weight is not None and layer.name not in self._before:
                self._before[layer.name] = layer.of_weight(precise(weight.detach())).clone()

    # -- data of passes ----------------------------------------------------------------------------------------------

    def look(self, layer: str, signal: str, rows: Tensor) -> Seen:
        """Return a tensor for every probe that uses ``signal``, from the rows of one layer; may be traced."""
        seen: Seen = []
        for name, summand in self._wanting.get(signal, ()) if rows.shape[0] else ():
            try:
                tensor = rows if summand is None else _summed(summand, rows)
                entry = Recipient(name, layer, signal, num_samples_in(signal, rows), summand is not None)
                seen.append((entry, tensor))
            except Exception as error:
                self._disable(name, error)
        return seen

    def take(self, seen: Iterable[tuple[Recipient, Tensor]]) -> None:
        """Take in the tensors of a pass."""
        self.pending = True
        if self._recycled is None:
            self._recycled = self.recycled()
        for entry, tensor in seen:
            if entry.reduced:
                self._entries.append(entry)
                self._tensors.append(tensor)
            else:
                self._rows.append((entry, tensor))
        if not self.deferred:
            self.commit()

    def take_recorded(self, plan: Recording, tensors: Sequence[Tensor]) -> None:
        """Take in what a graph computed for a recording; its sums are never pending, for its step is taken."""
        if plan.parts is not self._parts:
            self._parts = plan.parts
            self._steps += 1
        self.num_passes += plan.num_passes
        if plan.total is not None:
            plan.total.times += 1
        if plan.rows_at or self._recycled is None:
            self.take([(entry, tensors[i]) for entry, i in plan.rows_at])

    def total_of(self, parts: Parts, device: torch.device) -> Total:
        """Return the sums that graphs add to for some parts, always the same."""
        if parts not in self._totals:
            self._totals[parts] = Total(sum(shape.numel() for shape in parts[1]), device)
        total = self._totals[parts]
        total.vector = total.vector.to(device)
        return total

    @property
    def num_pending(self) -> int:
        """How many passes are pending."""
        return self._pending_passes

    def count(self) -> None:
        """Count a pass."""
        self.pending = True
        self._pending_passes += 1
        if not self.deferred:
            self.commit()

    def drop(self) -> None:
        """Forget all pending data."""
        self.pending = False
        """True if :meth:`commit` has something to do."""
        self._entries: list[Recipient] = []
        self._tensors: list[Tensor] = []
        self._rows: Seen = []
        self._pending_passes = 0

    def commit(self) -> None:
        """Give the probes all pending data."""
        self._steps += 1
        entries, tensors, rows = tuple(self._entries), self._tensors, self._rows
        self.num_passes += self._pending_passes
        self.drop()
        if entries:
            self._sums[entries].add(self._fitting(entries, tensors))
        for entry, tensor in rows:
            self._feed(entry, tensor)

    def _fitting(self, entries: tuple[Recipient, ...], tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors to add; a probe whose sum has another shape than before is off from now on."""
        for i, shape in self._sums[entries].misfits(tensors):
            found = tuple(tensors[i].shape)
            tensors = [*tensors[:i], tensors[i].new_full(shape, torch.nan, dtype=torch.float64), *tensors[i + 1 :]]
            error = ValueError(f"sums() gave the shape {found} after {tuple(shape)}; it must not depend on the pass")
            self._disable(entries[i].probe, error)
        return tensors

    def _feed(self, entry: Recipient, rows: Tensor) -> None:
        if entry.probe in self._failed:
            return
        try:
            probe = self._copies.get((entry.probe, entry.layer))
            if probe is None:
                probe = self._copies[entry.probe, entry.layer] = self._new(entry.probe)
            with torch.no_grad():
                getattr(probe, entry.signal)(rows)
            self._arrived[entry.probe, entry.layer].add(entry.signal)
        except Exception as error:
            self._disable(entry.probe, error)

    def _new(self, name: str) -> Probe:
        probe = self.probes[name]
        twin = copy.deepcopy(probe) if any(map(probe.takes_rows, probe.signals)) else copy.copy(probe)
        twin.reset()
        return twin

    @property
    def _summed_up(self) -> list[tuple[Parts, Sums | Total]]:
        """Sums of eager passes, and those of graphs."""
        eager = [((entries, ()), sums) for entries, sums in self._sums.items()]
        return [*eager, *((parts, total) for parts, total in self._totals.items() if total.times)]

    def fed(self) -> dict[Key, Probe]:
        """Return the probes with all they were given, by probe and layer."""
        found: dict[Key, Probe] = {}
        for (entries, shapes), sums in self._summed_up:
            totals = unpacked(sums.totals()[0], shapes) if shapes else sums.totals()
            for entry, total in zip(entries, totals, strict=True):
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
        """Return the data given to the probes, without pending ones."""
        state = {
            "num_passes": self.num_passes,
            "sums": [
                {"plan": [list(entry) for entry in entries], "shapes": [*map(list, shapes)], **sums.state_dict()}
                for (entries, shapes), sums in self._summed_up
            ],
            "probes": [[*key, probe.state_dict()] for key, probe in self._copies.items()],
            "arrived": [[*key, sorted(signals)] for key, signals in self._arrived.items()],
        }
        if narrow := {la: str(d).removeprefix("torch.") for la, d in self.dtypes.items() if d not in WIDE}:
            state["dtypes"] = narrow
        if self._before:
            state |= {"before": self._before, "steps": self._steps}
        if self._recycled:
            state["recycled"] = self._recycled
        return map_tensors(state, torch.clone)

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None) -> None:
        """Go on from :meth:`state_dict`, on a device."""
        self.reset()
        state = map_tensors(state, lambda tensor: tensor.to(device, copy=True))
        self.num_passes = state["num_passes"]
        self._before, self._steps = dict(state.get("before", {})), state.get("steps", 0)
        self.dtypes |= {layer: getattr(torch, name) for layer, name in state.get("dtypes", {}).items()}
        self._recycled = state.get("recycled") or ({} if self.num_passes else None)
        for part in state["sums"]:
            entries = tuple(Recipient(*entry) for entry in part["plan"])
            shapes = tuple(map(torch.Size, part.get("shapes", ())))
            one = (part["totals"] or part["waiting"][0])[0]
            (self.total_of((entries, shapes), one.device) if shapes else self._sums[entries]).load_state_dict(part)
        for name, layer, saved in state["probes"]:
            self._copies[name, layer] = self._new(name)
            self._copies[name, layer].load_state_dict(saved)
            self._arrived[name, layer] = {*self._signals[name]}  # all, in runs of 0.1.0
        for name, layer, signals in state.get("arrived", ()):
            self._arrived[name, layer] = {*signals}

    def remembered(self) -> list[list[Any]]:
        """Return what probes remember, for a checkpoint: probe, layer and memory each."""
        kept = {**self.memory, **self._remembered}
        return map_tensors([[*key, memory] for key, memory in kept.items()], torch.clone)

    def remember(self, state: Iterable[Sequence[Any]], device: torch.device | None) -> None:
        """Go on from :meth:`remembered`."""
        state = map_tensors(list(state), lambda tensor: tensor.to(device, copy=True))
        self.memory = {(probe, layer): memory for probe, layer, memory in state}
        self._remembered = {}

    def _disable(self, probe: str, error: Exception) -> None:
        if self.strict:
            note(error, f"raised by the probe {probe}")
            raise error
        self._failed[probe] = f"the probe failed: {type(error).__name__}: {error}"
        self._choose()
        warnings.warn(f"probe {probe!r} failed and is off from now on: {error!r}", RuntimeWarning, stacklevel=3)

    # -- results -------------------------------------------------------------------------------------------------------

    def reading(self, wiring: Wiring, layers: list[Layer], processes: Processes | None = None) -> Reading:
        """Return the results on ``layers``, of all ``processes``, each of which must call."""
        if self._readout is None or not self._readout.is_of(wiring, layers):
            self._readout = Readout(wiring, layers, self.probes)
        readout, fed, missing = self._readout, self.fed(), self._missing(layers)
        copies = fed if processes is None else processes.combined(fed)
        self._weigh(copies, missing, layers)
        complete = {key: probe for key, probe in copies.items() if not missing[key]}
        found = self._compute(complete, readout.activations)
        state = State(self._metrics, self._failed, missing, found.why_not, self.hidden)
        values = readout.tabulate(_to_host(found.values), complete.keys() - found.why_not.keys(), state)
        return Reading(
            values=values,
            scores={name: by_layer for name, by_layer in found.scores.items() if name not in self._failed},
            num_neurons={**readout.num_neurons},
            coverage=readout.coverage(values, state),
            num_passes=self.num_passes,
            projections=readout.projections,
            num_units=readout.num_units,
            details={name: by_layer for name, by_layer in found.details.items() if by_layer},
        )

    def _missing(self, layers: list[Layer]) -> dict[Key, set[str]]:
        """Return the signals that have not arrived, by probe and layer."""
        missing = {(name, la.name): {*signals} for name, signals in self._signals.items() for la in layers}
        for key, signals in self._arrived.items():
            missing.setdefault(key, {*self._signals[key[0]]}).difference_update(signals)
        for (entries, _), _ in self._summed_up:
            for entry in entries:
                key = entry.probe, entry.layer
                missing.setdefault(key, {*self._signals[entry.probe]}).discard(entry.signal)
        return missing

    def _weigh(self, copies: dict[Key, Probe], missing: dict[Key, set[str]], layers: list[Layer]) -> None:
        """Give weights to the probes that use them, which become copies: a weight counts for one reading only."""
        for layer in layers if self._wanting.keys() & {WEIGHT, WEIGHT_BEFORE} else ():
            weight = current_weight(layer.module)
            now = None if weight is None else layer.of_weight(precise(weight.detach()))
            before = self._before.get(layer.name) if self.deferred and self._steps else None
            for signal, rows in ((WEIGHT, now), (WEIGHT_BEFORE, before)):
                for name in [name for name, _ in self._wanting.get(signal, ()) if rows is not None]:
                    self._show(copies, (name, layer.name), signal, rows)
                    missing[name, layer.name].discard(signal)

    def _show(self, copies: dict[Key, Probe], key: Key, signal: str, rows: Any) -> None:
        """Give rows to a copy of a probe."""
        if key[0] in self._failed:
            return
        try:
            copies[key] = copy.deepcopy(copies[key]) if key in copies else self._new(key[0])
            with torch.no_grad():
                getattr(copies[key], signal)(rows)
        except Exception as error:
            self._disable(key[0], error)

    @torch.no_grad()
    def _compute(self, copies: Mapping[Key, Probe], activations: Mapping[str, str | None]) -> Computed:
        """Return the results of the probes that have one, and what else they say."""
        found = Computed({}, {n: {} for n, p in self.probes.items() if p.per_neuron}, {n: {} for n in self.probes}, {})
        recycled = self._recycled or {}
        for (name, layer), probe in copies.items():
            if name in self._failed:
                continue
            known = {
                "activation": activations.get(layer),
                "activation_dtype": self.dtypes.get(layer),
                "memory": self.memory.get((name, layer)),
                "recycled": recycled.get(layer, ()),
                "scores": cache(probe.scores),  # several methods ask for them
            }
            vars(probe).update(known)
            try:
                self._ask(probe, name, layer, found)
            except Exception as error:
                self._disable(name, error)
            finally:
                for attribute in known:
                    del vars(probe)[attribute]
        failed = {metric for name in self._failed for metric in self._metrics[name]}
        return found._replace(values={key: value for key, value in found.values.items() if key[0] not in failed})

    def _ask(self, probe: Probe, name: str, layer: str, found: Computed) -> None:
        """Add what a probe says of a layer."""
        if (memory := probe.remember()) is not None:
            self._remembered[name, layer] = map_tensors(memory, torch.clone)
        if reason := probe.why_not():
            found.why_not[name, layer] = reason
            return
        value = probe.compute()
        parts = value if isinstance(value, dict) else {name: value}
        _require_numbers(parts)
        if probe.per_neuron:
            found.scores[name][layer] = probe.scores().cpu()
        if details := probe.details():
            found.details[name][layer] = details
        self._metrics[name] = tuple(parts)
        found.values.update({(metric, layer): part for metric, part in parts.items()})


def _summed(function: Summand, rows: Tensor) -> Tensor:
    """Return the function of rows, in memory of its own: rows may be overwritten before they are added."""
    value = function(rows)
    if not isinstance(value, Tensor):
        raise TypeError(f"sums() must name functions that return tensors, got {type(value).__name__}")
    return value.clone() if value.untyped_storage()._cdata == rows.untyped_storage()._cdata else value


def _require_numbers(results: Mapping[str, Any]) -> None:
    """Raise TypeError unless all results are tensors of one number."""
    for name, value in results.items():
        if not isinstance(value, Tensor) or value.dim():
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"compute() must return 0-D tensors, got {found} for {name}")


def _to_host(results: Results) -> dict[tuple[str, str], float]:
    """Bring all results to the host with one copy per device."""
    by_device: defaultdict[torch.device, list[tuple[str, str]]] = defaultdict(list)
    for key, value in results.items():
        by_device[value.device].append(key)
    numbers: dict[tuple[str, str], float] = {}
    for keys in by_device.values():
        numbers.update(zip(keys, torch.stack([results[k].double() for k in keys]).tolist(), strict=True))
    return numbers
