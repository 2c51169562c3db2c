"""The wiring of a model: its layers as all passes show them that were traced, and the ways that these passes took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

from torch import nn

from plasticity.isolation import is_scripted, named_modules

from .layers import Consumer, Layer, neuron_axis, num_inputs, num_neurons, union
from .sites import Event
from .slices import Slice

EventPair = tuple[Event | None, Event | None]
"""Two events in a row; None before the first and after the last."""


@dataclass(frozen=True)
class Way:
    """One traced pass: the modules that began and ended, in order, and the layers as this pass alone shows them."""

    events: tuple[Event, ...]
    layers: dict[str, Layer]
    used: frozenset[str]
    """The modules that were called, or whose parameters were used."""
    empty: frozenset[str] = frozenset()
    """The modules that were called without samples."""
    hosts: frozenset[str] = frozenset()
    """The modules in which functions took up weights of layers, without a call of these layers."""
    places: frozenset[str] = frozenset()
    """The names of the events of such functions: layers, and parameters that several layers are slices of."""
    recalled: bool = False
    """True if a run before this one traced it: its layers have no sites until it is traced again."""

    @cached_property
    def producers(self) -> dict[str, list[tuple[Layer, Consumer]]]:
        """Layer -> the layers that feed it in this pass, with the columns they feed."""
        found: dict[str, list[tuple[Layer, Consumer]]] = {}
        for layer in self.layers.values():
            for consumer in layer.consumers:
                found.setdefault(consumer.layer, []).append((layer, consumer))
        return found

    def among(self, kept: set[str]) -> Way:
        """Return the way as a recalled one, of the layers of which the module is among ``kept``."""
        names = {name for name in self.layers if name in kept or host_of(self.layers[name]) in kept}
        layers = {}
        for name in names:
            old = self.layers[name]
            consumers = [consumer for consumer in old.consumers if consumer.layer in names]
            norms = [norm for norm in old.norms if norm.module in kept]
            layers[name] = replace(old, consumers=consumers, norms=norms, sites=[], inputs=[], own=None)
        sets = {key: getattr(self, key) & (kept | names) for key in ("used", "empty", "hosts", "places")}
        events = tuple(event for event in self.events if event[0] in kept | self.places)
        return Way(events, {name: layers[name] for name in self.layers if name in names}, **sets, recalled=True)


def host_of(layer: Layer) -> str | None:
    """Return the module that owns the parameter of which a layer is a slice; None for other layers."""
    if not isinstance(layer.module, Slice):
        return None
    return layer.name.removesuffix(f".{layer.module.key}.{layer.module.index}")


def steps(events: Iterable[Event]) -> set[EventPair]:
    """Return the steps from each event to the next."""
    return set(pairwise([None, *events, None]))


@dataclass
class Wiring:
    """The weight layers of a model by name, in the order in which they were first called."""

    layers: dict[str, Layer]
    """Every layer with the consumers, norms and sites that it has in any pass that was traced."""
    modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    """Every module of the model by name: where norms and tied weights are found."""
    ways: tuple[Way, ...] = field(default=(), repr=False)
    """The passes that were traced, also by the run that this one resumes."""
    unfollowed: bool = False
    """True if the model also takes ways that were not traced, because it takes too many."""
    _parts: list[tuple[dict, dict]] = field(default_factory=list, init=False, repr=False, compare=False)
    """The parts of every module, as they are now and as they were when the wiring fitted: spares names and walks."""

    @classmethod
    def of(cls, ways: tuple[Way, ...], modules: dict[str, nn.Module], unfollowed: bool = False) -> Wiring:
        """Return the wiring that several passes show together."""
        called = [name for way in ways for name, layer in way.layers.items() if layer.num_calls]
        names = dict.fromkeys([*called, *(name for way in ways for name in way.layers)])
        layers = {n: union([way.layers[n] for way in ways if n in way.layers]) for n in names}
        return cls(layers, modules, ways, unfollowed)

    @property
    def hidden(self) -> list[Layer]:
        """The layers whose neurons are hidden units."""
        return [layer for layer in self.layers.values() if layer.is_hidden]

    @property
    def traced(self) -> list[Way]:
        """The ways that this run has traced itself."""
        return [way for way in self.ways if not way.recalled]

    @property
    def resized(self) -> bool:
        """True if a layer has another number of neurons now, as pruning and growing leave it."""
        return any(la.rows is None and la.num_neurons != num_neurons(la.module) for la in self.layers.values())

    def ran_before_only(self, layer: Layer) -> bool:
        """Return whether a layer, or the one that it is a part of, ran only in the run that this one resumes."""
        name = layer.name if layer.rows is None else layer.name.rpartition(".")[0]
        return not any(name in way.layers and way.layers[name].num_calls for way in self.traced)

    @property
    def hosts(self) -> frozenset[str]:
        """The modules in which functions took up weights of layers, without a call of these layers."""
        return frozenset().union(*(way.hosts for way in self.ways))

    @property
    def places(self) -> frozenset[str]:
        """The names of the events of such functions."""
        return frozenset().union(*(way.places for way in self.ways))

    @property
    def uncalled(self) -> set[str]:
        """The modules that were called in no pass that was traced."""
        scripted = {name for name, module in self.modules.items() if is_scripted(module)}
        return self.modules.keys() - scripted - {name for way in self.traced for name, _ in way.events}

    def why_not_called(self, layer: str) -> str:
        """Return why a layer that ran in no pass did not."""
        if any(layer in way.empty for way in self.ways):
            return "it was called without samples"
        if any(layer in way.used for way in self.ways):
            return "its weight was used, but its forward was never called"
        return "its forward was never called"

    def may_consume(self, layer: Layer) -> list[str]:
        """Return the modules that took part in no traced pass and could take up the layer's neurons if they did.

        These are modules with parameters of their own; of Linear and convolution layers those that have enough inputs.
        """
        used = {name for way in self.ways for name in way.used}
        inside = tuple(f"{name}." for name, found in self.layers.items() if found.adapter)
        own = {name: module for name, module in self.modules.items() if len(module._parameters)}
        idle = {name: m for name, m in own.items() if name not in used and not name.startswith(inside)}
        return [name for name, m in idle.items() if neuron_axis(m) is None or num_inputs(m) >= layer.num_neurons]

    def joined(self, other: Wiring) -> Wiring:
        """Return the wiring that the passes of both show together; a new trace takes the place of a recalled way."""
        ways = list(self.ways)
        for way in other.ways:
            same = (i for i, old in enumerate(ways) if old.recalled and old.events == way.events)
            place = next(same, len(ways))
            ways[place : place + 1] = [way]
        return Wiring.of(tuple(ways), self.modules, self.unfollowed or other.unfollowed)

    def survived(self, modules: dict[str, nn.Module]) -> Wiring:
        """Return what is known of the layers that are still in place after some modules were replaced by others.

        A layer keeps the consumers that it had in earlier passes; of its way through new modules a new trace tells.
        Of layers that were resized nothing is known any more.
        """
        if self.resized:
            return Wiring.of((), modules, self.unfollowed)
        ways = (way.among({name for name, m in modules.items() if self.modules.get(name) is m}) for way in self.ways)
        return Wiring.of(tuple(way for way in ways if way.layers), modules, self.unfollowed)

    def fits(self, model: nn.Module) -> bool:
        """Return whether the model still consists of the modules that were traced: True if these are not known."""
        if not self.modules:
            return True
        if self.resized:
            return False
        if self._parts and self._parts[0][0] is model._modules and all(now == then for now, then in self._parts):
            return True
        found = named_modules(model)
        same = found.keys() == self.modules.keys() and all(found[n] is m for n, m in self.modules.items())
        self._parts = [(m._modules, {**m._modules}) for m in model.modules()] if same else []
        return same

    def producers(self, consumer: str) -> list[tuple[Layer, Consumer]]:
        """Return the layers that feed ``consumer``, with the columns they feed."""
        return [(p, c) for p in self.layers.values() for c in p.consumers if c.layer == consumer]

    def __str__(self) -> str:
        rows = [("layer", "neurons", "activation", "feeds", "remarks")]
        for layer in self.layers.values():
            feeds = ", ".join(dict.fromkeys(c.layer for c in layer.consumers)) or "-"
            remarks = "; ".join(layer.remarks)
            rows.append((layer.name, str(layer.num_neurons), layer.activation or "-", feeds, remarks))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
