"""The layers of SimbaV2: features, and rows of weights, of length 1 (Lee et al. 2025, arXiv 2502.15280).

After DAVIAN-Robotics/SimbaV2. The features are divided by their length in every pass; the rows begin at length 1, and
the method `hyperspherical` brings them back to it after every step of the optimizer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

SHIFT = 3.0
"""Constant that is joined to the input before it is divided by its length, which else would be lost."""


class UnitLinear(nn.Linear):
    """A Linear layer, orthogonal at first, its rows of length 1; without bias, or with one that begins at 0."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool = False) -> None:
        super().__init__(num_inputs, num_outputs, bias)
        with torch.no_grad():
            nn.init.orthogonal_(self.weight)
            self.weight.copy_(normalize(self.weight, dim=1))
            if bias:
                self.bias.zero_()


class Scaler(nn.Module):
    """x times trained scales, `start` at first, kept as numbers of size `size`: that decides how fast they move."""

    def __init__(self, dim: int, start: float, size: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), size))
        self.factor = start / size

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale * self.factor)


class Unit(nn.Module):
    """x / ||x||, along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=-1)


class Shifted(nn.Module):
    """cat([x, 3])."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.full_like(x[..., :1], SHIFT)], -1)


class Interpolated(nn.Module):
    """x + a (f(x) - x) of length 1, f its layers and a trained, 1 / (blocks + 1) at first."""

    def __init__(self, width: int, num_blocks: int) -> None:
        super().__init__()
        wide = 4 * width
        size = math.sqrt(2 / wide)
        self.inner = nn.Sequential(
            UnitLinear(width, wide), Scaler(wide, size, size), nn.ReLU(), UnitLinear(wide, width), Unit()
        )
        self.rate = Scaler(width, 1 / (num_blocks + 1), 1 / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x + self.rate(self.inner(x) - x), dim=-1)


def simba2_layers(num_inputs: int, width: int, num_blocks: int) -> nn.Sequential:
    """Return the trunk: the shifted input of length 1, an embedding, and blocks of four times the width inside."""
    size = math.sqrt(2 / width)
    first = (Shifted(), Unit(), UnitLinear(num_inputs + 1, width), Scaler(width, size, size), Unit())
    return nn.Sequential(*first, *(Interpolated(width, num_blocks) for _ in range(num_blocks)))


def simba2_output(width: int, num_outputs: int) -> list[nn.Module]:
    """Return the output layers: one as wide as the features, learned scales, and the outputs with a bias."""
    return [UnitLinear(width, width), Scaler(width, 1.0, 1.0), UnitLinear(width, num_outputs, bias=True)]
