"""Ways through a model as plain data, for checkpoints: a resumed run knows every consumer that a layer ever had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .functional import slices_of
from .layers import Consumer, Layer, Norm, neuron_axis, num_inputs, num_neurons, weight_layers_of
from .slices import Slice
from .wirings import Way, Wiring

COPIED = ("num_calls", "activation", "gated", "is_output", "writes_to_stream", "borrowed_by", "besides")
"""Attributes of a layer that are saved as they are."""


def as_data(wired: Wiring) -> dict[str, Any]:
    """Return the ways of a wiring as plain values and tensors, without the sites: these a new trace shows."""
    return {"unfollowed": wired.unfollowed, "ways": [_of_way(way) for way in wired.ways]}


def _of_way(way: Way) -> dict[str, Any]:
    return {
        "events": [list(event) for event in way.events],
        "layers": {name: _of_layer(layer) for name, layer in way.layers.items()},
        **{key: sorted(getattr(way, key)) for key in ("used", "empty", "hosts", "places")},
    }


def _of_layer(layer: Layer) -> dict[str, Any]:
    return {
        **{key: getattr(layer, key) for key in COPIED},
        "num_neurons": layer.num_neurons,
        "neurons_last": getattr(layer.module, "neurons_last", None),
        "consumers": [[c.layer, _short(c.columns), c.summed, c.product, c.joined] for c in layer.consumers],
        "norms": [[norm.module, _short(norm.entries), norm.before] for norm in layer.norms],
        "unresolved": [*layer.unresolved],
        "parts": [part.rows for part in layer.parts],
    }


def _short(columns: Tensor) -> Tensor | int:
    """Return the length where each column carries the neuron of its own number, as most do."""
    return len(columns) if torch.equal(columns, _long(len(columns))) else columns


def _long(columns: Tensor | int) -> Tensor:
    return columns.cpu() if isinstance(columns, Tensor) else torch.arange(columns, device="cpu")


def recalled(data: Mapping[str, Any], modules: dict[str, nn.Module]) -> Wiring | None:
    """Return the wiring that the saved ways show together; None where they are those of another network."""
    ways = [_way(saved, modules) for saved in data["ways"]]
    if not ways or any(way is None for way in ways):
        return None
    return Wiring.of(tuple(cast(list[Way], ways)), modules, data["unfollowed"])


def _way(saved: Mapping[str, Any], modules: dict[str, nn.Module]) -> Way | None:
    own, slices = weight_layers_of(modules), {*slices_of(modules)}
    layers: dict[str, Layer] = {}
    for name, data in saved["layers"].items():
        module = own.get(name) or (_slice(name, data["neurons_last"], modules) if name in slices else None)
        if module is None or num_neurons(module) != data["num_neurons"]:
            return None
        adapter = name in own and module is not modules[name]
        layers[name] = _layer(Layer(name, module, cast(int, neuron_axis(module)), data["num_neurons"], adapter), data)
    if not all(_fits(consumer, layers) for layer in layers.values() for consumer in layer.consumers):
        return None
    if not all(norm.module in modules for layer in layers.values() for norm in layer.norms):
        return None
    sets = {key: frozenset(saved[key]) for key in ("used", "empty", "hosts", "places")}
    events: Sequence[Any] = [tuple(event) for event in saved["events"]]
    if not {name for name, _ in events} <= modules.keys() | sets["places"]:
        return None
    return Way(tuple(events), layers, **sets, recalled=True)


def _slice(name: str, neurons_last: bool, modules: Mapping[str, nn.Module]) -> nn.Module:
    parameter, _, index = name.rpartition(".")
    host, _, key = parameter.rpartition(".")
    return Slice(modules[host], key, int(index), neurons_last)


def _layer(layer: Layer, data: Mapping[str, Any]) -> Layer:
    for key in COPIED:
        setattr(layer, key, data.get(key, getattr(layer, key)))
    layer.consumers = [Consumer(name, _long(columns), *flags) for name, columns, *flags in data["consumers"]]
    layer.norms = [Norm(name, _long(entries), before) for name, entries, before in data["norms"]]
    layer.unresolved = [*data["unresolved"]]
    rows: list[Tensor] = [part.cpu() for part in data["parts"]]
    layer.parts = layer.divided(rows)
    return layer


def _fits(consumer: Consumer, layers: Mapping[str, Layer]) -> bool:
    found = layers.get(consumer.layer)
    return found is not None and len(consumer.columns) == num_inputs(found.module)
