"""The entries of a weight that lead into a neuron, and those that take it up, in linear layers and all convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plasticity.structure.layers import inputs_first

from .initialisers import weight_of


def incoming_entries(module: nn.Module, neurons: Tensor) -> Tensor:
    """Return which entries of the weight lead into the neurons: bool (neurons,) -> bool, shape of the weight."""
    where = torch.zeros_like(weight_of(module), dtype=torch.bool)
    view = by_group(module, where)
    view |= spread(view, neurons, 1)
    return where


def outgoing_entries(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return which entries of a consumer's weight take up its inputs: bool (inputs,) -> bool, shape of the weight."""
    where = torch.zeros_like(weight_of(module), dtype=torch.bool)
    view = by_group(module, where)
    view |= spread(view, inputs, 2)
    return where


def by_group(module: nn.Module, weight: Tensor) -> Tensor:
    """View a tensor of the weight's shape as (groups, neurons of the group, inputs of the group, *kernel)."""
    grouped = weight.unflatten(0, (getattr(module, "groups", 1), -1))
    return grouped.transpose(1, 2) if inputs_first(module) else grouped


def spread(view: Tensor, vector: Tensor, dim: int) -> Tensor:
    """Spread a vector over the groups and dimension ``dim`` of a view by groups, so that it broadcasts."""
    shape = [len(view)] + [1] * (view.dim() - 1)
    shape[dim] = view.shape[dim]
    return vector.to(view.device).view(shape)


def column_norms(module: nn.Module, weight: Tensor) -> Tensor:
    """Return the norm of all that leaves each input: (inputs,)."""
    view = by_group(module, weight).float()
    return view.square().sum([d for d in range(view.dim()) if d not in (0, 2)]).sqrt().flatten()
