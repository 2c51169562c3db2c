"""The weights of single neurons: how large they are on both sides, and edits that spread a neuron's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from plasticity.structure.layers import Consumer, Layer, precise, weight_rows
from plasticity.structure.wirings import Wiring

from .entries import by_group, spread
from .initialisers import bias_of, weight_of

Reduction = Literal["mean", "sum"]


def incoming_magnitude(layer: Layer) -> Tensor:
    """Return the mean |incoming weight| of every neuron, (neurons,) float64 on the CPU."""
    return weight_rows(layer.module, precise(weight_of(layer.module).detach().abs())).mean(1).double().cpu()


def outgoing_magnitude(wired: Wiring, layer: Layer, reduction: Reduction = "mean") -> Tensor:
    """Return the mean, or the sum, of |outgoing weights| of every neuron, over all consumers, (neurons,) float64.

    0 for neurons that no column is known to carry.
    """
    total, number = torch.zeros(2, layer.num_neurons + 1, dtype=torch.float64, device="cpu")
    for consumer in layer.consumers:
        weight = weight_of(wired.layers[consumer.layer].module).detach()
        sums, columns = _per_input(wired, consumer, weight.abs()), consumer.columns.cpu() % len(total)
        total.index_add_(0, columns, sums)  # what is nobody's, -1, is the last
        number.index_add_(0, columns, torch.full_like(sums, weight.numel() / len(sums)))
    return (total if reduction == "sum" else total / number.clamp_min(1))[:-1]


@torch.no_grad()
def scale_rows_(layer: Layer, mask: Tensor, scale: float) -> None:
    """Scale the incoming weights of flagged neurons to ``scale`` times the mean norm of those of the others, in place.

    ``mask``: (neurons,) bool. Weights that are all 0 stay, and so does a layer without others.
    """
    view = by_group(layer.module, weight_of(layer.module).detach())
    norms = view.square().sum([d for d in range(view.dim()) if d > 1]).sqrt().flatten()
    flagged = mask.to(norms.device)
    if bool(flagged.all()):
        return
    wanted = scale * norms[~flagged].mean() / norms
    view *= spread(view, torch.where(flagged & (norms > 0), wanted, 1.0), 1)


@torch.no_grad()
def transfer_to_biases_(wired: Wiring, masks: Mapping[str, Tensor], means: Mapping[str, Tensor]) -> list[str]:
    """Add to the biases of consumers what flagged neurons give them on average; return consumers that have no bias.

    ``masks``: layer -> bool (neurons,). ``means``: layer -> mean activation of each neuron, (neurons,). Call it before
    the columns are cut: bias += W[:, i] * mean_i, summed over a kernel. The consumers' outputs then keep their means;
    not exactly at the borders of a padded convolution, nor behind a norm. Of a unit that several layers write, the mean
    counts once. Source: Dohare et al. 2024, algorithm 1.
    """
    given: dict[str, Tensor] = {}
    for name, mask in masks.items():
        lost = torch.where(mask.cpu(), means[name].double().cpu(), 0.0)
        for consumer in wired.layers[name].consumers:
            columns = consumer.columns.cpu()
            before = given.get(consumer.layer, torch.zeros(len(columns), dtype=torch.float64, device="cpu"))
            given[consumer.layer] = torch.where(
                (columns >= 0) & mask.cpu()[columns.clamp(min=0)], lost[columns.clamp(min=0)], before
            )
    without = []
    for name, values in given.items():
        module = wired.layers[name].module
        bias = bias_of(module)
        if bias is None:
            without.append(name)
            continue
        view = by_group(module, weight_of(module)).double().cpu()  # (groups, neurons, inputs, *kernel)
        outputs = torch.einsum("goi,gi->go", view.flatten(3).sum(3) if view.dim() > 3 else view, _grouped(values, view))
        bias += outputs.flatten().to(bias.device, bias.dtype)
    return without


@torch.no_grad()
def scale_columns_(wired: Wiring, layer: Layer, factors: Tensor) -> None:
    """Multiply the outgoing weights of every neuron by its factor, (neurons,)."""
    for consumer in layer.consumers:
        module = wired.layers[consumer.layer].module
        columns = consumer.columns.cpu()
        scale = torch.where(columns >= 0, factors.double().cpu()[columns.clamp(min=0)], 1.0)
        view = by_group(module, weight_of(module))
        view *= spread(view, scale.to(view.dtype), 2)


def _per_input(wired: Wiring, consumer: Consumer, weight: Tensor) -> Tensor:
    """Return the sum over all that leaves each input of a consumer, (inputs,) float64 on the CPU."""
    view = by_group(wired.layers[consumer.layer].module, precise(weight))
    return view.sum([d for d in range(view.dim()) if d not in (0, 2)]).flatten().double().cpu()


def _grouped(vector: Tensor, view: Tensor) -> Tensor:
    """Return a vector over inputs as (groups, inputs of the group)."""
    return vector.view(len(view), -1)
