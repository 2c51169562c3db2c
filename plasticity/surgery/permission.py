"""Neurons that cannot be recycled, and why: all that feeds and takes up a neuron is edited, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from plasticity.structure.layers import Consumer, Layer
from plasticity.structure.partners import partners, sum_refusal
from plasticity.structure.slices import Slice
from plasticity.structure.wirings import Wiring

from .stores import store_of

Outgoing = Literal["zero", "keep", "small"]


def refusals(wired: Wiring, layer: str, outgoing: Outgoing = "zero") -> str | None:
    """Return why the neurons of ``layer`` cannot be recycled, None if they can; KeyError for an unknown layer.

    Never: output layers, layers that were not called, frozen weights, weights computed from others (parametrizations,
    weight norm, pruning) or not used as they are, weights that are the same tensor as another one's or used outside of
    their layer. Unless ``outgoing`` is "keep": neurons added to a residual stream or with consumers that could not be
    traced, whose columns are not known; consumers that are frozen, computed, tied or used elsewhere; columns that carry
    something else in another call of the consumer; modules that have not run yet and may be consumers. Neurons that
    make units with those of other layers (factors of a gate, summands before one activation) need all of this of these
    layers, too, and that no neuron is in several units.
    """
    found = wired.layers[layer]
    if reason := _refusal(wired, found, outgoing):
        return reason
    for other in sorted(partners(wired, found) - {layer}):
        if reason := _refusal(wired, wired.layers[other], outgoing):
            return f"{layer} makes units together with {other}, and {reason}"
    return sum_refusal(wired, found)


def _refusal(wired: Wiring, found: Layer, outgoing: Outgoing) -> str | None:
    if found.num_calls == 0:
        return f"{found.name} was never called"
    if found.is_output:
        return f"the neurons of {found.name} are an output of the model"
    reason = _unfit(wired, found.name, ("weight", "bias"))
    return reason if reason or outgoing == "keep" else _columns_refusal(wired, found)


def _columns_refusal(wired: Wiring, layer: Layer) -> str | None:
    if layer.writes_to_stream or any(c.summed for c in layer.consumers):
        return f'{layer.name} writes to a residual stream and has no columns of its own; outgoing="keep" can be done'
    if layer.unresolved:
        return f'not all that {layer.name} feeds is known ({"; ".join(layer.unresolved)}); outgoing="keep" can be done'
    if not layer.consumers:
        return f"no layer consumes the neurons of {layer.name}"
    if waiting := wired.may_consume(layer):
        return f'{", ".join(waiting)} did not run yet and may take up {layer.name}; outgoing="keep" can be done'
    if wired.unfollowed:
        return f'passes went ways that could not be traced, and may take up {layer.name}; outgoing="keep" can be done'
    reasons = (_unfit(wired, c.layer, ("weight",)) or _shared_columns(wired, layer, c) for c in layer.consumers)
    return next((reason for reason in reasons if reason), None)


def _shared_columns(wired: Wiring, layer: Layer, consumer: Consumer) -> str | None:
    """Say which columns of the consumer carry something besides the layer's neurons, in one pass.

    Parts of the same units do not count, nor what the columns carry in other passes: see :func:`_kept_columns`.
    """
    name = consumer.layer
    for way in wired.ways:
        here = way.layers.get(layer.name)
        if here is None or not any(consumer.same_as(c) for c in here.consumers):
            continue
        if way.layers[name].num_calls > here.num_calls:
            return f"{name} is called more often than {layer.name}: in other calls its columns carry something else"
        for other, theirs in way.producers.get(name, ()):
            both = (consumer.columns >= 0) & (theirs.columns >= 0)
            if other is here:
                both &= consumer.columns != theirs.columns
            if bool(both.any()) and not consumer.shares(theirs):
                return f"columns of {name} that carry {layer.name} carry {other.name} in another call"
    return None


def _unfit(wired: Wiring, layer: str, keys: Sequence[str]) -> str | None:
    """Say which parameter of the layer cannot be edited on its own."""
    module = wired.layers[layer].module
    if wired.layers[layer].adapter:
        return f"{layer} has an adapter, whose weights add to its own"
    if wired.layers[layer].borrowed_by:
        return f"the weights of {layer} are also taken by {wired.layers[layer].borrowed_by}, outside of it"
    if wired.layers[layer].besides:
        return f"{layer} computes with {wired.layers[layer].besides}"
    for key in keys:
        name, store = _name(layer, module, key), store_of(module, key)
        if store is None and not isinstance(module, Slice) and key not in module._parameters:
            return f"{name} is computed from other parameters (a parametrization, weight norm or pruning)"
        if store is None and isinstance(module, Slice) and len(module.bias_keys) > 1:
            return f"which of {', '.join(module.bias_keys)} is the bias of {layer} is not known"
        if store is None:
            continue
        if not store.parameter.requires_grad:
            return f"{name} is frozen (requires_grad is False)"
        start = store.parameter.data_ptr()
        others = [other for other, p in _named_parameters(wired) if other != name and p.data_ptr() == start]
        if others and store.parameter.numel():
            return f"{name} is tied: the same tensor as {', '.join(others)}"
    return None


def _name(layer: str, module: nn.Module, key: str) -> str:
    """Return the name of the parameter in which the weight or bias of a layer is kept."""
    if not isinstance(module, Slice):
        return f"{layer}.{key}".removeprefix(".")
    host = layer.removesuffix(f"{module.key}.{module.index}")
    return f"{host}{module.key if key == 'weight' else next(iter(module.bias_keys), '')}"


def _named_parameters(wired: Wiring) -> Iterator[tuple[str, Tensor]]:
    modules = wired.modules or {name: layer.module for name, layer in wired.layers.items()}
    for name, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{name}.{key}".removeprefix("."), parameter
