"""Activations that keep networks plastic, beside those of PyTorch: plain modules, seen by hooks.

Those that make another number of features than they get say so: `expansion`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CReLU(nn.Module):
    """cat([relu(x), relu(-x)]) along axis 1: twice as many features (Abbas et al. 2023, arXiv 2303.07507)."""

    expansion = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(x), torch.relu(-x)], 1)


class Fourier(nn.Module):
    """cat([sin(x), cos(x)]) along axis 1: twice as many features.

    Deep Fourier features: one of the two is always nearly linear in x (Lewandowski et al. 2024, arXiv 2410.20634). The
    paper halves the neurons, so that the widths stay; here `hidden` says how many there are.
    """

    expansion = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.sin(x), torch.cos(x)], 1)


class Hadamard(nn.Module):
    """tanh(a) * tanh(b), a and b the two halves of x along axis 1: half as many features.

    Hadamard representations: a unit saturates only where both of its factors do (Kooi et al. 2024, arXiv 2406.09079).
    """

    expansion = 0.5

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return torch.tanh(one) * torch.tanh(other)


class SmoothLeaky(nn.Module):
    """slope x + (1 - slope) (softplus(beta x) - log 2) / beta: a leaky ReLU without a kink, 0 at 0.

    Its derivative, slope + (1 - slope) sigmoid(beta x), is smooth and never below `slope`: the two properties that
    Lillo & Cheney 2025, arXiv 2509.22562, find to matter. The formula is ours, theirs differs.
    """

    def __init__(self, slope: float = 0.1, beta: float = 5.0) -> None:
        super().__init__()
        self.slope, self.beta = slope, beta

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + (1 - self.slope) * self.bend(x)

    def bend(self, x: Tensor) -> Tensor:
        """Return the smooth ReLU, (softplus(beta x) - log 2) / beta."""
        return (F.softplus(self.beta * x, threshold=50.0) - math.log(2)) / self.beta


class RandomSmoothLeaky(SmoothLeaky):
    """A `SmoothLeaky` whose slope is drawn evenly between two bounds, anew for every entry of every pass.

    Where no gradient is taken (acting, targets) the slope is their mean, as in the randomized leaky ReLU, whose bounds
    these are (Xu et al. 2015, arXiv 1505.00853). After Lillo & Cheney 2025, whose formula differs. Random numbers are
    PyTorch's global ones, which checkpoints keep.
    """

    def __init__(self, low: float = 1 / 8, high: float = 1 / 3, beta: float = 5.0) -> None:
        super().__init__((low + high) / 2, beta)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        slope = self.low + (self.high - self.low) * torch.rand_like(x)
        return slope * x + (1 - slope) * self.bend(x)


class IntervalDropout(nn.Module):
    """AID with two intervals: each unit is a ReLU with probability `keep`, else its mirror image, -relu(-x).

    Where no gradient is taken (acting, targets) it is the mean of that, keep x or (1 - keep) x, a leaky ReLU (Park et
    al. 2025, arXiv 2502.01342). Random numbers are PyTorch's global ones, which checkpoints keep.
    """

    def __init__(self, keep: float = 0.9) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        positive, negative = torch.relu(x), torch.relu(-x)
        if not torch.is_grad_enabled():
            return self.keep * positive - (1 - self.keep) * negative
        is_relu = torch.rand_like(x) < self.keep
        return torch.where(is_relu, positive, -negative)


# Of leaky ReLU on [-3, 3], fitted by Molina et al. 2019, table 2 of the appendix: checked by a test.
NUMERATOR = (0.02996348, 0.61690165, 2.37539147, 3.06608078, 1.52474449, 0.25281987)
DENOMINATOR = (1.19160814, 4.40811795, 0.91111034, 0.34885983)


class Rational(nn.Module):
    """Sum of a_i x^i, i to 5, over 1 + sum of |b_j x^j|, j from 1 to 4; ten trained coefficients for the whole layer.

    Pade activation units (Molina et al. 2019, arXiv 1907.06732), which Delfosse et al. 2024, arXiv 2102.09407, find to
    keep plasticity in RL. It begins as a leaky ReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numerator = nn.Parameter(torch.tensor(NUMERATOR))
        self.denominator = nn.Parameter(torch.tensor(DENOMINATOR))

    def forward(self, x: Tensor) -> Tensor:
        above, below = torch.zeros_like(x), torch.zeros_like(x)
        for coefficient in self.numerator.flip(0):
            above = above * x + coefficient
        size = x.abs()
        for coefficient in self.denominator.abs().flip(0):
            below = (below + coefficient) * size
        return above / (1 + below)
