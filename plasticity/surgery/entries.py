"""The entries of a weight that lead into a neuron, and those that take it up, in linear layers and all convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plasticity.structure.layers import by_group, spread

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


def column_norms(module: nn.Module, weight: Tensor) -> Tensor:
    """Return the norm of all that leaves each input: (inputs,)."""
    view = by_group(module, weight).float()
    return view.square().sum([d for d in range(view.dim()) if d not in (0, 2)]).sqrt().flatten()
