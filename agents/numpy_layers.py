"""Layers as functions of arrays on their parameters' own memory, and as rows of the programs that C++ runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import native
from .activations import CReLU, Fourier, Hadamard, IntervalDropout, RandomSmoothLeaky, SmoothLeaky

Array = np.ndarray
Function = Callable[[Array], Array]
NumpyLayer = tuple[Array, Array, list[Function]]
"""A Linear layer on views of its parameters, (inputs, outputs) and (1, outputs), and what follows it."""
ZERO = np.zeros((), np.float32)  # numpy takes an array faster than a number


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a Linear layer with a number of the bias for each output, and no subclass."""
    if type(module) is not nn.Linear or not has_own_parameters(module) or module.bias is None:
        return False
    return module.weight.dim() == 2 and module.bias.shape == module.weight.shape[:1]


def has_own_parameters(module: Any) -> bool:
    """Return whether weight and bias are parameters or None: what else is put there may be of any type and shape."""
    return all(name in module._parameters for name in ("weight", "bias") if hasattr(module, name))


def has_numbers(module: Any) -> bool:
    """Return whether the slope or eps of a layer is a number; of an RMSNorm None, too."""
    number = getattr(module, "eps", getattr(module, "negative_slope", 0.0))
    return isinstance(number, (float, int)) or (number is None and type(module) is nn.RMSNorm)


def is_numpy_ready(parameter: Tensor) -> bool:
    """Return whether numpy can look at a parameter."""
    return parameter.dtype is torch.float32 and parameter.is_cpu


def numpy_layer(linear: Any) -> NumpyLayer:
    """Return a Linear layer, with nothing behind it yet."""
    return linear.weight.detach().numpy().T, linear.bias.detach().numpy()[None], []  # one row is added the fastest


def numpy_norm(norm: Any) -> Function:
    """Return a LayerNorm or RMSNorm; writes into what it gets."""
    weight, bias = (None if one is None else one.detach().numpy() for one in (norm.weight, getattr(norm, "bias", None)))
    centred, eps = type(norm) is nn.LayerNorm, eps_of(norm)

    def apply(x: Array) -> Array:
        if centred:
            x -= x.mean(-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + eps)
        if weight is not None:
            x *= weight
        if bias is not None:
            x += bias
        return x

    return apply


def eps_of(norm: Any) -> float:
    """Return what a norm adds to the mean square."""
    return torch.finfo(torch.float32).eps if norm.eps is None else norm.eps


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without an overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def leaky(x: Array, slope: Any) -> Array:
    """Multiply the numbers below 0 by a slope, in place."""
    return np.multiply(x, slope, out=x, where=x < ZERO)


def smooth_leaky(module: Any) -> Function:
    """Return a SmoothLeaky, or the mean of a random one."""
    return lambda x: x * (module.slope + (1 - module.slope) * sigmoid(module.steepness * x))


# Layer -> its function, of the module: without gradients, and it may write into what it gets.
NUMPY_FUNCTIONS: dict[type[nn.Module], Callable[[Any], Function]] = {
    nn.Identity: lambda _: lambda x: x,
    nn.LayerNorm: numpy_norm,
    nn.RMSNorm: numpy_norm,
    nn.ReLU: lambda _: lambda x: np.maximum(x, ZERO, out=x),
    nn.LeakyReLU: lambda module: lambda x: leaky(x, module.negative_slope),
    nn.Tanh: lambda _: lambda x: np.tanh(x, out=x),
    nn.SiLU: lambda _: lambda x: x * sigmoid(x),
    CReLU: lambda _: lambda x: np.maximum(np.concatenate([x, -x], 1), ZERO),
    Fourier: lambda _: lambda x: np.concatenate([np.sin(x), np.cos(x)], 1),
    Hadamard: lambda _: lambda x: np.multiply(*np.split(np.tanh(x), 2, 1)),
    SmoothLeaky: smooth_leaky,
    RandomSmoothLeaky: smooth_leaky,
    IntervalDropout: lambda module: lambda x: np.where(x > ZERO, module.keep * x, (1 - module.keep) * x),
}


def numpy_function(layer: Any, width: int) -> Function | None:
    """Return a layer behind `width` features as a function; None where it is not known, or has another width."""
    shapes = getattr(layer, "normalized_shape", (width,)), *(parameter.shape for parameter in layer.parameters())
    if type(layer) not in NUMPY_FUNCTIONS or any(shape != (width,) for shape in shapes):
        return None
    if not has_own_parameters(layer) or not has_numbers(layer):
        return None
    return None if type(layer) is Hadamard and width % 2 else NUMPY_FUNCTIONS[type(layer)](layer)


def compiled_layer(layer: Any, width: int | None) -> tuple | None:
    """Return a layer behind `width` features as `native.forward` reads it; None if it does not know it, or cannot."""
    outputs, inputs = layer.weight.shape if is_linear(layer) else (width, width)
    known = type(layer) in native.COMPILED_LAYERS and width in (None, inputs)
    if not known or not all(parameter.is_contiguous() for parameter in layer.parameters()):
        return None
    kind, parameters = native.COMPILED_LAYERS.index(type(layer)), map(layer._parameters.get, ("weight", "bias"))
    number = eps_of(layer) if hasattr(layer, "eps") else getattr(layer, "negative_slope", 0.0)
    return kind, *(0 if one is None else one.data_ptr() for one in parameters), inputs, outputs, number
