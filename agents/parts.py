"""Parts of bodies: activations, norms and blocks, all modules that hooks see, and their initial weights."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .activations import CReLU, Fourier, Hadamard, IntervalDropout, RandomSmoothLeaky, Rational, SmoothLeaky
from .choices import pick


class Residual(nn.Sequential):
    """x + f(x), f its modules in order."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class MultiSkip(nn.Module):
    """Layers that each get the first input beside the output of the one before: h <- f(cat([h, x]))."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layers[0](x)
        for layer in self.layers[1:]:
            h = layer(torch.cat([h, x], -1))
        return h


class OverChannels(nn.Module):
    """A norm of the last axis, applied to the channels of (batch, channels, height, width) at every position.

    So flax normalises images by default. Dividing by statistics of a whole map instead would tie all positions.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Scale(nn.Module):
    """Scale uint8 images to [0, 1]; images of floats pass unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.is_floating_point() else x / 255


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "leaky_relu_0.1": partial(nn.LeakyReLU, 0.1),
    "crelu": CReLU,
    "prelu": nn.PReLU,
    "smooth_leaky": SmoothLeaky,
    "random_smooth_leaky": RandomSmoothLeaky,
    "aid": IntervalDropout,
    "rational": Rational,
    "fourier": Fourier,
    "hadamard": Hadamard,
}
"""Name -> a new activation. One that has another number of features than its input says so: `expansion`."""
NORMS: dict[str, Callable[[int], nn.Module] | None] = {"none": None, "layer": nn.LayerNorm, "rms": nn.RMSNorm}
"""Name -> a new norm of the last axis, for so many features; None: no module."""


def expansion(activation: nn.Module) -> float:
    """Return how many features an activation makes of one."""
    return getattr(activation, "expansion", 1)


def activated(norm: str, activation: str, width: int, image: bool = False) -> tuple[list[nn.Module], int]:
    """Return norm and activation behind a layer of `width` neurons or channels, and their number of features."""
    make_norm, module = pick(NORMS, norm, "norm"), pick(ACTIVATIONS, activation, "activation")()
    modules = [module] if make_norm is None else [make_norm(width), module]
    if image and make_norm is not None:
        modules[0] = OverChannels(modules[0])
    features = width * expansion(module)
    if features != int(features):
        raise ValueError(f"{activation} makes one feature of two neurons; an odd number of them, {width}, does not do")
    return modules, int(features)


def linear(num_inputs: int, width: int, initialise: Callable[[Tensor], object]) -> nn.Linear:
    """Return a layer with weights of `initialise` and biases of 0."""
    layer = nn.Linear(num_inputs, width)
    initialise(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def he_truncated_(weight: Tensor) -> Tensor:
    """Draw from a normal of variance 2 / inputs, cut at two standard deviations: `he_normal` of JAX."""
    std = math.sqrt(2 / weight.shape[1]) / 0.87962566103423978  # the cut leaves this share of the standard deviation
    return nn.init.trunc_normal_(weight, 0.0, std, -2 * std, 2 * std)
