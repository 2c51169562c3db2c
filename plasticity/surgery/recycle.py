"""Neuron surgery: redraw single neurons, cut or shrink what they feed, and clear their optimizer state, exactly.

One engine for every method that touches neurons. Parameters are edited in place, so optimizers, hooks and compiled
graphs go on with the tensors they hold; everything that was not asked for stays bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.structure.layers import num_inputs
from plasticity.structure.partners import completed
from plasticity.structure.wirings import Wiring

from .entries import by_group, column_norms, incoming_entries, outgoing_entries, spread
from .initialisers import Initialiser, default_initialiser, weight_of
from .optimizer_state import StepCounter, SurgeryError, clear_state_, state_refusal
from .permission import Outgoing, refusals
from .stores import Store, store_of

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
    connections: Callable[[Tensor], Tensor | None] = lambda parameter: None,
    announce: Callable[[Mapping[Tensor, Tensor]], None] = lambda entries: None,
) -> dict[str, list[int]]:
    """Recycle the flagged neurons and return their indices by layer.

    ``masks``: layer name -> bool (neurons,). One after the other, each for all layers:

    - ``incoming``: rows of weight and bias are redrawn from the layer's own initialiser.
    - ``outgoing``: their columns in every consumer become 0 ("zero": Sokar et al. 2023), stay ("keep": the released
      ReGraMa), or get a random direction of norm :data:`SMALL` times the mean norm of the consumer's other columns
      ("small": behind a zero column a neuron has no gradient until the column has moved, so that a gradient score soon
      flags it again). Biases of consumers are never touched.
    - ``norms``: their entries in norms become gain 1, bias 0, running mean 0 and variance 1, but for entries that are
      frozen or that neurons left alone pass through too.
    - The edited entries of ``.grad`` become 0, with ``moments`` also those of optimizer states: :func:`clear_state_`.

    A unit that several layers write (a gate and what it multiplies, linears summed before one activation) is recycled
    whole, with the rows of all of them: :func:`completed`.

    Recycling neurons that are 0 on all inputs leaves the function as it is, except next to a LayerNorm, RMSNorm or
    GroupNorm, which tie neurons together by their statistics, and where the 0 arrives as something else, as behind
    ``relu(a(x)) + 1``: what the column made of that is gone, too. :func:`function_change` measures it. Target networks
    are left alone. Nothing is drawn if nothing is flagged. ``generator`` is one on the CPU. ``connections``: parameter
    -> those of its entries that no mask keeps at 0, None for all: "small" columns have their norm in these.
    ``announce`` is called last with parameter -> edited entries. Raises SurgeryError before
    anything is changed for whatever :func:`refusals` and :func:`state_refusal` name.
    """
    optimizers = list(optimizers)
    flagged = _flagged(wired, masks)
    _check(wired, flagged, initialisers if incoming else None, outgoing, step)
    rows = list(_rows(wired, flagged, initialisers)) if incoming else []
    cuts = list(_cuts(wired, flagged)) if outgoing != "keep" else []
    entries = list(_norm_entries(wired, flagged)) if norms else []
    touched = _merge([*rows, *cuts, *entries])
    for parameter in touched if moments else ():
        if reason := state_refusal(optimizers, parameter):
            raise SurgeryError(f"cannot recycle: {reason}")
    draws = [draw(generator) for *_, draw in rows]
    with torch.no_grad():
        for edit, fresh in zip(rows, draws, strict=True):
            edit.tensor.copy_(torch.where(edit.where, fresh.view_as(edit.tensor), edit.tensor))
        for edit in cuts:
            if outgoing == "small":
                exist = connections(edit.store.parameter)
                exist = None if exist is None else edit.store.of(exist)
                new = _small_columns(edit.what, edit.where, wired, initialisers, generator, exist)
                edit.tensor.copy_(torch.where(edit.where, new, edit.tensor))
            else:
                edit.tensor.masked_fill_(edit.where, 0)
        for edit in entries:
            edit.tensor.masked_fill_(edit.where, edit.what)
        for parameter, where in touched.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(where, 0)
            if moments:
                clear_state_(optimizers, parameter, where, step)
    announce(touched)
    return {name: mask.nonzero().flatten().tolist() for name, mask in flagged.items()}


class Edit(NamedTuple):
    """Entries of a tensor to change, bool of its shape, and what belongs to the change."""

    store: Store
    where: Tensor
    what: Any

    @property
    def tensor(self) -> Tensor:
        """The tensor, to be changed in place."""
        return self.store.of(self.store.parameter.detach())


def _kept_columns(wired: Wiring, flagged: Mapping[str, Tensor], consumer: str) -> Tensor:
    """Return the inputs of a consumer that stay, (inputs,) bool: they carry a neuron that stays in other passes."""
    size = num_inputs(wired.layers[consumer].module)
    kept = torch.zeros(size, dtype=torch.bool, device="cpu")
    for layer, theirs in wired.producers(consumer):
        stays = ~flagged.get(layer.name, _none_of(layer.num_neurons, kept))
        if not theirs.product:
            kept |= _carried(theirs.columns, stays)
    return kept


def _flagged(wired: Wiring, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks of whole units that flag anything, on the CPU, in the order of the wiring: draws follow it."""
    if unknown := [name for name in masks if name not in wired.layers]:
        raise SurgeryError(f"no layer is called {', '.join(unknown)}; there are {', '.join(wired.layers)}")
    flagged = {}
    for name in (name for name in wired.layers if name in masks):
        mask, num = masks[name].detach().cpu(), wired.layers[name].num_neurons
        if mask.dtype != torch.bool or mask.shape != (num,):
            raise SurgeryError(f"{name} needs a bool mask of shape ({num},); got {mask.dtype} {tuple(mask.shape)}")
        if bool(mask.any()):
            flagged[name] = mask
    return completed(wired, flagged)


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


def _rows(wired: Wiring, flagged: Mapping[str, Tensor], initialisers: Mapping[str, Initialiser]) -> Iterator[Edit]:
    """Yield the entries of weights and biases that belong to flagged neurons, and how to draw them."""
    for name, mask in flagged.items():
        module = wired.layers[name].module
        yield Edit(_weight_store(module), incoming_entries(module, mask), initialisers[name].weight)
        if (bias := store_of(module, "bias")) is not None:
            where = mask.to(bias.parameter.device).view_as(bias.of(bias.parameter))
            yield Edit(bias, where, initialisers[name].bias)


def _cuts(wired: Wiring, flagged: Mapping[str, Tensor]) -> Iterator[Edit]:
    """Yield the entries that take up flagged neurons, and no others in any pass, for every consumer, with its name."""
    cut: dict[str, Tensor] = {}
    for name, mask in flagged.items():
        for consumer in wired.layers[name].consumers:
            inputs = _carried(consumer.columns, mask)
            cut[consumer.layer] = cut[consumer.layer] | inputs if consumer.layer in cut else inputs
    for name, inputs in cut.items():
        module = wired.layers[name].module
        inputs &= ~_kept_columns(wired, flagged, name)
        yield Edit(_weight_store(module), outgoing_entries(module, inputs), name)


def _weight_store(module: nn.Module) -> Store:
    return store_of(module, "weight") or Store(weight_of(module))


def _carried(columns: Tensor, mask: Tensor) -> Tensor:
    return (columns >= 0) & mask[columns.clamp(min=0)]


def _norm_entries(wired: Wiring, flagged: Mapping[str, Tensor]) -> Iterator[Edit]:
    """Yield entries of the gains, biases and running statistics of norms, with their new value."""
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
                yield Edit(Store(tensor), where.to(tensor.device).expand(tensor.shape), value)


def _none_of(num_neurons: int, like: Tensor) -> Tensor:
    return torch.zeros(num_neurons, dtype=torch.bool, device=like.device)


def _merge(edits: Iterable[Edit]) -> dict[Tensor, Tensor]:
    """Return parameter -> the entries that any edit changes, of its shape."""
    merged: dict[Tensor, Tensor] = {}
    for store, where, _ in edits:
        if store.parameter not in merged:
            merged[store.parameter] = torch.zeros_like(store.parameter, dtype=torch.bool)
        store.of(merged[store.parameter]).logical_or_(where)
    return merged


def _small_columns(
    layer: str,
    where: Tensor,
    wired: Wiring,
    initialisers: Mapping[str, Initialiser],
    generator: torch.Generator,
    exist: Tensor | None,
) -> Tensor:
    """Return random columns for the whole weight of ``layer``, each of :data:`SMALL` times the norm of a live one.

    Live are the columns outside ``where``; if there is none, a fresh draw of the weight tells the norm. ``exist``: the
    entries that are not masked, of the weight's shape; None for all.
    """
    module = wired.layers[layer].module
    weight = weight_of(module)
    live = column_norms(module, weight)[column_norms(module, where) == 0]
    if not len(live):
        initialiser = initialisers.get(layer) or default_initialiser(module)
        live = column_norms(module, initialiser.weight(generator))
    noise = torch.randn(weight.shape, generator=generator, device="cpu")
    if exist is not None:
        noise.masked_fill_(~exist.cpu().view_as(noise), 0)
    scales = SMALL * live.mean().cpu() / column_norms(module, noise).clamp_min(1e-12)
    view = by_group(module, noise)
    view *= spread(view, scales, 2)
    return noise.to(weight.device, weight.dtype)
