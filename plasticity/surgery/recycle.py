"""Neuron surgery: redraw single neurons, cut or shrink what they feed, and clear their optimizer state, exactly.

One engine for every method that touches neurons. Parameters are edited in place, so optimizers, hooks and compiled
graphs go on with the tensors they hold; everything that was not asked for stays bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.structure.layers import Consumer, Layer, Slice, num_inputs
from plasticity.structure.wirings import Wiring

from .entries import by_group, column_norms, incoming_entries, outgoing_entries, spread
from .initialisers import Initialiser, bias_of, default_initialiser, weight_of
from .optimizer_state import StepCounter, SurgeryError, clear_state_, state_refusal

Outgoing = Literal["zero", "keep", "small"]

SMALL = 0.02
"""Norm of a "small" outgoing column relative to the mean of the columns that stay (from AgileRL's ReGraMa)."""


def recycle_(
    wired: Wiring,
    masks: Mapping[str, Tensor],
    optimizers: Iterable[Optimizer] = (),
    *,
    initialisers: Mapping[str, Initialiser],
    generator: torch.Generator,
    incoming: bool = True,
    outgoing: Outgoing = "zero",
    moments: bool = True,
    step: StepCounter = "keep",
    norms: bool = True,
    announce: Callable[[Mapping[Tensor, Tensor]], None] = lambda entries: None,
) -> dict[str, list[int]]:
    """Recycle the flagged neurons and return their indices by layer.

    ``masks``: layer name -> bool (neurons,). One after the other, each for all layers:

    - ``incoming``: rows of weight and bias are redrawn from the layer's own initialiser.
    - ``outgoing``: their columns in every consumer become 0 ("zero": Sokar et al. 2023), stay ("keep": the released
      ReGraMa), or get a random direction of norm :data:`SMALL` times the mean norm of the consumer's other columns
      ("small": behind a zero column a neuron has no gradient until the column has moved, so that a gradient score soon
      flags it again). Biases of consumers are never touched. Of neurons that are multiplied with others (a gate) it is
      the column of the product: nothing else takes it up.
    - ``norms``: their entries in norms become gain 1, bias 0, running mean 0 and variance 1, but for entries that are
      frozen or that neurons left alone pass through too.
    - The edited entries of ``.grad`` become 0, with ``moments`` also those of optimizer states: :func:`clear_state_`.

    Recycling neurons that are 0 on all inputs leaves the function as it is, except next to a LayerNorm, RMSNorm or
    GroupNorm: these tie neurons together by their statistics. :func:`function_change` measures it. Target networks
    are left alone. Nothing is drawn if nothing is flagged. ``generator`` is one on the CPU. ``announce`` is called last
    with parameter -> edited entries. Raises SurgeryError before
    anything is changed for whatever :func:`refusals` and :func:`state_refusal` name.
    """
    optimizers = list(optimizers)
    flagged = _flagged(wired, masks)
    _check(wired, flagged, initialisers if incoming else None, outgoing, step)
    rows = list(_rows(wired, flagged, initialisers)) if incoming else []
    cuts = list(_cuts(wired, flagged)) if outgoing != "keep" else []
    entries = list(_norm_entries(wired, flagged)) if norms else []
    touched = _merge([edit[:2] for edit in [*rows, *cuts, *entries]])
    for parameter in touched if moments else ():
        if reason := state_refusal(optimizers, parameter):
            raise SurgeryError(f"cannot recycle: {reason}")
    draws = [draw(generator) for _, _, draw in rows]
    with torch.no_grad():
        for (tensor, where, _), fresh in zip(rows, draws, strict=True):
            tensor.copy_(torch.where(where, fresh, tensor))
        for tensor, where, name in cuts:
            new = (
                _small_columns(name, where, wired, initialisers, generator)
                if outgoing == "small"
                else torch.zeros_like(tensor)
            )
            tensor.copy_(torch.where(where, new, tensor))
        for tensor, where, value in entries:
            tensor.masked_fill_(where, value)
        for parameter, where in touched.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(where, 0)
            if moments:
                clear_state_(optimizers, parameter, where, step)
    announce(touched)
    return {name: mask.nonzero().flatten().tolist() for name, mask in flagged.items()}


def refusals(wired: Wiring, layer: str, outgoing: Outgoing = "zero") -> str | None:
    """Return why the neurons of ``layer`` cannot be recycled, None if they can; KeyError for an unknown layer.

    Never: output layers, layers that were not called, frozen weights, weights computed from others (parametrizations,
    weight norm, pruning), weights that are the same tensor as another one's. Unless ``outgoing`` is "keep": neurons
    added to a residual stream or with consumers that could not be traced, whose columns are not known; consumers that
    are frozen, computed or tied; columns that carry something else in another call of the consumer; modules that have
    not run yet and may be consumers.
    """
    found = wired.layers[layer]
    if found.num_calls == 0:
        return f"{layer} was never called"
    if found.is_output:
        return f"the neurons of {layer} are an output of the model"
    reason = _unfit(wired, layer, ("weight", "bias"))
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

    Factors of one product do not count, nor what the columns carry in other passes: see :func:`_kept_columns`.
    """
    name = consumer.layer
    for layers in (way.layers for way in wired.ways):
        here = layers[layer.name]
        if not any(consumer.same_as(c) for c in here.consumers):
            continue
        if layers[name].num_calls > here.num_calls:
            return f"{name} is called more often than {layer.name}: in other calls its columns carry something else"
        for other, theirs in ((o, c) for o in layers.values() for c in o.consumers if c.layer == name):
            both = (consumer.columns >= 0) & (theirs.columns >= 0)
            if other is here:
                both &= consumer.columns != theirs.columns
            if bool(both.any()) and not (consumer.product and theirs.product):
                return f"columns of {name} that carry {layer.name} carry {other.name} in another call"
    return None


def _kept_columns(wired: Wiring, flagged: Mapping[str, Tensor], consumer: str) -> Tensor:
    """Return the inputs of a consumer that stay, (inputs,) bool: they carry a neuron that stays in other passes."""
    size = num_inputs(wired.layers[consumer].module)
    kept = torch.zeros(size, dtype=torch.bool, device="cpu")
    for layer, theirs in wired.producers(consumer):
        stays = ~flagged.get(layer.name, _none_of(layer.num_neurons, kept))
        if not theirs.product:
            kept |= _carried(theirs.columns, stays)
    return kept


def _unfit(wired: Wiring, layer: str, keys: Sequence[str]) -> str | None:
    """Say which parameter of the layer cannot be edited on its own."""
    module = wired.layers[layer].module
    if wired.layers[layer].adapter:
        return f"{layer} has an adapter, whose weights add to its own"
    if isinstance(module, Slice):
        return f"{layer} is a slice of a parameter that several layers share"
    for key in keys:
        name = f"{layer}.{key}".removeprefix(".")
        if key not in module._parameters:
            return f"{name} is computed from other parameters (a parametrization, weight norm or pruning)"
        parameter = module._parameters[key]
        if parameter is None:
            continue
        if not parameter.requires_grad:
            return f"{name} is frozen (requires_grad is False)"
        others = [n for n, p in _named_parameters(wired) if n != name and p.data_ptr() == parameter.data_ptr()]
        if others and parameter.numel():
            return f"{name} is tied: the same tensor as {', '.join(others)}"
    return None


def _named_parameters(wired: Wiring) -> Iterator[tuple[str, Tensor]]:
    modules = wired.modules or {name: layer.module for name, layer in wired.layers.items()}
    for name, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{name}.{key}".removeprefix("."), parameter


def _flagged(wired: Wiring, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks that flag anything, on the CPU and in the order of the wiring: draws follow it."""
    if unknown := [name for name in masks if name not in wired.layers]:
        raise SurgeryError(f"no layer is called {', '.join(unknown)}; there are {', '.join(wired.layers)}")
    flagged = {}
    for name in (name for name in wired.layers if name in masks):
        mask, num = masks[name].detach().cpu(), wired.layers[name].num_neurons
        if mask.dtype != torch.bool or mask.shape != (num,):
            raise SurgeryError(f"{name} needs a bool mask of shape ({num},); got {mask.dtype} {tuple(mask.shape)}")
        if bool(mask.any()):
            flagged[name] = mask
    return flagged


def _check(
    wired: Wiring,
    flagged: Iterable[str],
    initialisers: Mapping[str, Initialiser] | None,
    outgoing: Outgoing,
    step: StepCounter,
) -> None:
    if outgoing not in ("zero", "keep", "small") or step not in ("keep", "zero"):
        raise SurgeryError(f"outgoing is zero, keep or small, and step keep or zero; got {outgoing!r} and {step!r}")
    for name in flagged:
        if reason := refusals(wired, name, outgoing):
            raise SurgeryError(f"cannot recycle: {reason}")
        if initialisers is not None and name not in initialisers:
            raise SurgeryError(f"{name} has no initialiser; recorded are {', '.join(initialisers) or 'none'}")


def _rows(
    wired: Wiring, flagged: Mapping[str, Tensor], initialisers: Mapping[str, Initialiser]
) -> Iterator[tuple[Tensor, Tensor, Callable[[torch.Generator], Any]]]:
    """Yield (parameter, entries that belong to flagged neurons, how to draw it) for weights and biases."""
    for name, mask in flagged.items():
        module, bias = wired.layers[name].module, bias_of(wired.layers[name].module)
        yield weight_of(module), incoming_entries(module, mask), initialisers[name].weight
        if bias is not None:
            yield bias, mask.to(bias.device), initialisers[name].bias


def _cuts(wired: Wiring, flagged: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield (weight, entries that take up flagged neurons and no others in any pass, layer) for every consumer."""
    cut: dict[str, Tensor] = {}
    for name, mask in flagged.items():
        for consumer in wired.layers[name].consumers:
            inputs = _carried(consumer.columns, mask)
            cut[consumer.layer] = cut[consumer.layer] | inputs if consumer.layer in cut else inputs
    for name, inputs in cut.items():
        module = wired.layers[name].module
        inputs &= ~_kept_columns(wired, flagged, name)
        yield weight_of(module), outgoing_entries(module, inputs), name


def _carried(columns: Tensor, mask: Tensor) -> Tensor:
    return (columns >= 0) & mask[columns.clamp(min=0)]


def _norm_entries(wired: Wiring, flagged: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield (tensor, entries, value) for the gains, biases and running statistics of norms."""
    for name in dict.fromkeys(norm.module for layer in flagged for norm in wired.layers[layer].norms):
        if name not in wired.modules:
            raise SurgeryError(f"the wiring does not hold the norm {name}; norms=False leaves it alone")
        module = wired.modules[name]
        passing = [(layer, n.entries) for layer in wired.layers.values() for n in layer.norms if n.module == name]
        where = torch.zeros_like(passing[0][1], dtype=torch.bool)
        masks = [(entries, flagged.get(layer.name, _none_of(layer.num_neurons, entries))) for layer, entries in passing]
        for entries, mask in masks:
            where |= _carried(entries, mask)
        for entries, mask in masks:
            where &= ~_carried(entries, ~mask)
        for key, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            tensor = getattr(module, key, None)
            if tensor is not None and not (isinstance(tensor, nn.Parameter) and not tensor.requires_grad):
                yield tensor, where.to(tensor.device).expand(tensor.shape), value


def _none_of(num_neurons: int, like: Tensor) -> Tensor:
    return torch.zeros(num_neurons, dtype=torch.bool, device=like.device)


def _merge(pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[Tensor, Tensor]:
    merged: dict[Tensor, Tensor] = {}
    for tensor, where in pairs:
        merged[tensor] = merged[tensor] | where if tensor in merged else where
    return merged


def _small_columns(
    layer: str, where: Tensor, wired: Wiring, initialisers: Mapping[str, Initialiser], generator: torch.Generator
) -> Tensor:
    """Return random columns for the whole weight of ``layer``, each of :data:`SMALL` times the norm of a live one.

    Live are the columns outside ``where``; if there is none, a fresh draw of the weight tells the norm.
    """
    module = wired.layers[layer].module
    weight = weight_of(module)
    live = column_norms(module, weight)[column_norms(module, where) == 0]
    if not len(live):
        initialiser = initialisers.get(layer) or default_initialiser(module)
        live = column_norms(module, initialiser.weight(generator))
    noise = torch.randn(weight.shape, generator=generator, device="cpu")
    scales = SMALL * live.mean().cpu() / column_norms(module, noise)
    view = by_group(module, noise)
    view *= spread(view, scales, 2)
    return noise.to(weight.device, weight.dtype)
