"""The places at which a running model is looked at: which modules are hooked, and whose neurons are seen where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from plasticity.probes.probe import FORWARD, LINEAR, POST, PRE, PREACTIVATION, WEIGHT_GRADIENT
from plasticity.structure.layers import Layer
from plasticity.structure.sites import Event, Site
from plasticity.structure.wirings import EventPair, Wiring, steps

ACTIVATION, INPUT, OUTPUT = "activation", "input", "output"
"""Kinds of sights: the activations of a layer, the input of its activation, and the output of the layer itself."""


@dataclass(frozen=True)
class Hooked:
    """The modules whose begin or end is noticed."""

    begun: frozenset[str]
    ended: frozenset[str]

    def noticed(self, events: Iterable[Event]) -> list[Event]:
        """Return the events that are noticed."""
        return [(name, side) for name, side in events if name in (self.begun if side == "input" else self.ended)]

    def steps(self, wired: Wiring) -> set[EventPair]:
        """Return the steps of all traced passes, from one noticed event to the next."""
        return set().union(*(steps(self.noticed(way.events)) for way in wired.traced))


class Sight(NamedTuple):
    """One site of a layer, as it is found in a pass."""

    layer: Layer
    kind: str
    site: Site
    since: list[Event]
    """The noticed events that lead to it."""


class Sights:
    """The sights of some layers for some signals.

    A site holds where the events that lead from the layer to it recur, whatever else runs in a pass: of a model with
    experts, or with layers that are skipped at random, few passes have to be traced.
    """

    def __init__(
        self, wired: Wiring, layers: Sequence[Layer], signals: frozenset[str], hooked: Hooked | None = None
    ) -> None:
        self._made_of = wired, list(layers), signals
        found = [(layer, kind, site) for layer in layers for kind, site in _wanted(layer, signals)]
        self.hooked = hooked or _hooked(wired, [site for _, _, site in found])
        self.steps = self.hooked.steps(wired)
        """The steps from one noticed event to the next that traced passes took."""
        self._at: defaultdict[Event, list[Sight]] = defaultdict(list)
        for layer, kind, site in found:
            if since := self.hooked.noticed(site.since):
                self._at[site.event].append(Sight(layer, kind, site, since))

    def are_of(self, wired: Wiring, layers: Sequence[Layer], signals: frozenset[str]) -> bool:
        """Return whether these are the sights of just this."""
        known, of, shown = self._made_of
        return known is wired and shown == signals and list(map(id, of)) == list(map(id, layers))

    def seen(self, events: list[Event]) -> list[tuple[Sight, int]]:
        """Return what is seen at the last of the events of a pass, with the position where the layer's call ended."""
        found = []
        for sight in self._at.get(events[-1], ()):
            length = len(sight.since)
            if length == 1 or events[-length:] == sight.since:
                found.append((sight, len(events) - length))
        return found


def _wanted(layer: Layer, signals: frozenset[str]) -> Iterator[tuple[str, Site]]:
    """Yield the sites of a layer that show one of the signals."""
    if signals & {FORWARD, POST}:
        yield from ((ACTIVATION, site) for site in layer.sites)
    if signals & {PRE, WEIGHT_GRADIENT}:
        yield from ((INPUT, site) for site in layer.inputs)
    # A weight's gradient is looked at where one reaches the layer.
    if signals & {PREACTIVATION, LINEAR} or (WEIGHT_GRADIENT in signals and not layer.inputs):
        yield OUTPUT, layer.own or Site(((layer.name, "output"),), 0, layer.axis, layer.num_neurons)


def _hooked(wired: Wiring, sites: Iterable[Site]) -> Hooked:
    """Return the modules to hook: those of the sites, and those that tell one way through the model from another."""
    events = [site.event for site in sites]
    begun = {name for name, side in events if side == "input"} | wired.uncalled | wired.places
    ended = {name for name, side in events if side == "output"} | {*wired.layers} | wired.uncalled | wired.places
    return Hooked(frozenset(begun), frozenset(ended))


def modules_at(hooked: Hooked, modules: dict[str, nn.Module]) -> dict[Event, nn.Module]:
    """Return the module of every event that is noticed; calls of functions have none."""
    begun = {(name, "input"): modules[name] for name in sorted(hooked.begun) if name in modules}
    ended = {(name, "output"): modules[name] for name in sorted(hooked.ended) if name in modules}
    return {**begun, **ended}  # type: ignore[dict-item]
