"""A few rows through a small network without modules: one observation costs microseconds, a module call ten times that.

Linear layers and simple activations are computed by numpy on the parameters' own memory, so that every change of a
weight in place is seen. The results equal the module's up to the last bits of float32, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

MAX_ROWS = 4  # beyond, torch's products are the faster ones

ACTIVATIONS: dict[type[nn.Module], Callable[[np.ndarray], np.ndarray]] = {
    nn.ReLU: lambda x: np.maximum(x, 0, out=x),
    nn.Tanh: lambda x: np.tanh(x, out=x),
    nn.Identity: lambda x: x,
}


class FewRows:
    """``module(x)`` for an nn.Sequential on the CPU, where that can be done by numpy; None where it cannot.

    It cannot where there are layers other than Linear and ACTIVATIONS, parameters that are not float32, more than
    MAX_ROWS rows, or hooks that have to see the pass; a hook that rides on training passes (`gradient.Ride`) ignores
    passes without gradients anyway. What replaces a module or a parameter is noticed.
    """

    def __init__(self, network: nn.Module, module: nn.Sequential) -> None:
        self.network, self.module = network, module
        self._layers: list[Layer] | None = None
        self._children: list[nn.Module] = []
        self._hooks: list[dict] = []

    def __call__(self, x: Tensor) -> Tensor | None:
        """Return the output for rows (few, features) float32 on the CPU, without gradients."""
        if x.dim() != 2 or len(x) > MAX_ROWS or x.dtype != torch.float32 or x.device.type != "cpu":
            return None
        children = self.module._modules
        if len(children) != len(self._children) or any(a is not b for a, b in zip(children.values(), self._children)):  # noqa: B905
            self._read()
        if self._layers is None or (any(self._hooks) and not self._only_rides()):
            return None
        y = x.numpy()
        try:
            for layer in self._layers:
                y = layer(y)
        except Unknown:
            return None
        return torch.from_numpy(y)

    def _read(self) -> None:
        """Take in which modules there are now."""
        self._children = [child for child in self.module._modules.values() if child is not None]
        modules = self.network.modules()
        self._hooks = [hooks for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)]
        known = all(type(child) is nn.Linear or type(child) in ACTIVATIONS for child in self._children)
        # An activation in front would write into the input.
        known = known and bool(self._children) and type(self._children[0]) is nn.Linear
        self._layers = [Layer(child) for child in self._children] if known else None

    def _only_rides(self) -> bool:
        hooks = (hook for hooks in self._hooks for hook in hooks.values())
        return all(getattr(hook, "ride", None) is not None for hook in hooks)


class Unknown(Exception):
    """A parameter is not float32 on the CPU."""


class Layer:
    """One Linear layer or activation, on numpy views that are renewed when a parameter is another one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.activation = ACTIVATIONS.get(type(module))
        self._seen: tuple[int, int] | None = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.activation is not None:
            return self.activation(x)
        weight, bias = self.module._parameters["weight"], self.module._parameters["bias"]
        assert weight is not None
        seen = (weight.data_ptr(), 0 if bias is None else bias.data_ptr())
        if seen != self._seen:
            if weight.dtype != torch.float32 or weight.device.type != "cpu":
                raise Unknown
            self._seen, self.weight = seen, weight.detach().numpy().T
            self.bias = None if bias is None else bias.detach().numpy()
        y = x @ self.weight
        if self.bias is not None:
            y += self.bias
        return y
