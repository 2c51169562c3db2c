"""Composite units: a neuron that keeps what it said, beside one that learns anew in its place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plasticity.structure.layers import Untraced


def linear_map(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a Linear layer or convolution makes of ``x`` with another weight and bias; no hook is called."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)  # type: ignore[operator]


class Retained(Untraced):
    """Frozen parts of composite units: rows of a layer as they were, and copies of the rows that came in their place.

    h <- h_before + (h - h_copy) where ``composite`` (neurons,) is true: exactly h_before at first, as h = h_copy.
    """

    composite: Tensor
    before: Tensor
    copy: Tensor
    before_bias: Tensor | None
    copy_bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        self.register_buffer("composite", torch.zeros(len(weight), dtype=torch.bool, device=weight.device))
        for name in ("before", "copy"):
            self.register_buffer(name, torch.zeros_like(weight))
            self.register_buffer(f"{name}_bias", None if bias is None else torch.zeros_like(bias))

    def forward(self, h: Tensor, x: Tensor, layer: nn.Module, activation: nn.Module) -> Tensor:
        """Return the activations of the units; ``h``: the layer's own, of the input ``x``."""
        before = activation.forward(linear_map(layer, x, self.before, self.before_bias))
        copy = activation.forward(linear_map(layer, x, self.copy, self.copy_bias))
        composite = self.composite if isinstance(layer, nn.Linear) else self.composite.view(-1, *[1] * (x.dim() - 2))
        return torch.where(composite, before + (h - copy), h)

    def keep_(self, name: str, layer: nn.Module, mask: Tensor) -> None:
        """Copy the rows ``mask`` (neurons,) of a layer into ``before`` or ``copy``."""
        for key, part in (("weight", name), ("bias", f"{name}_bias")):
            if (own := layer._parameters[key]) is not None:
                getattr(self, part)[mask] = own.detach()[mask]


class CompositeUnits(nn.Module):
    """A layer and its activation, with units that may become composite."""

    def __init__(self, layer: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.layer, self.activation, self.retained = layer, activation, Retained(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activations of the units."""
        return self.retained(self.activation(self.layer(x)), x, self.layer, self.activation)

    def original_name(self, path: str, name: str) -> str:
        """Return what a parameter of the layer was called before its units could be composite."""
        return f"{path}.{name.removeprefix(f'{path}.').removeprefix('layer.')}".removeprefix(".")

    def cancel_(self) -> None:
        """Let no unit be composite."""
        self.retained.composite.zero_()


def is_elementwise(module: nn.Module) -> bool:
    """Return whether a module without weights acts on every entry by itself, and draws no random numbers."""
    if any(True for _ in module.children()) or module._parameters or module._buffers:
        return False
    x = torch.linspace(-3, 3, 1000, device="cpu")[None]  # the ends of vectors may round in their own way
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            one, other = module.forward(x.clone()), module.forward(x.flip(1)).flip(1)
        except Exception:  # it takes something else
            return False
    return isinstance(one, Tensor) and one.shape == x.shape and torch.allclose(one, other, 1e-6, 1e-7)


def composable(network: nn.Module) -> Iterator[tuple[nn.Sequential, str, str]]:
    """Yield (sequence, layer, activation): Linear layers and convolutions with an elementwise activation behind them.

    Layers with a computed or shared weight are left out, and those with a norm before the activation: its statistics
    tie neurons together.
    """
    for sequence in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        names = list(sequence._modules)
        for layer, activation in pairwise(names):
            first, second = sequence._modules[layer], sequence._modules[activation]
            kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
            if type(first) in kinds and "weight" in first._parameters and second is not None and is_elementwise(second):
                yield sequence, layer, activation


def compose_(network: nn.Module) -> list[CompositeUnits]:
    """Put :class:`CompositeUnits` in the place of every layer and activation that allow it; return all that there are.

    A network that training goes on with has them already.
    """
    for sequence, layer, activation in list(composable(network)):
        units = CompositeUnits(sequence._modules[layer], sequence._modules[activation])  # type: ignore[arg-type]
        sequence._modules[layer] = units
        del sequence._modules[activation]
    return [module for module in network.modules() if isinstance(module, CompositeUnits)]
