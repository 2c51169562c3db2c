"""Activations that keep networks plastic, beside those of PyTorch: plain modules, seen by hooks.

Those that make another number of features than they get say so: `expansion`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
    """slope x + (1 - slope) x sigmoid(c x / p): a leaky ReLU without a kink, 0 at 0.

    Lillo & Cheney 2025, arXiv 2509.22562, equation 1, with the values of their figure: slope 0.1, p 3, c 5. The slope
    is that of the far negative side; the derivative falls to 0.01 on the way (at -1.4). Their code
    (lute47lillo/activations_plasticity) was not to be had.
    """

    def __init__(self, slope: float = 0.1, p: float = 3.0, c: float = 5.0) -> None:
        super().__init__()
        self.slope, self.steepness = slope, c / p

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x + (1 - self.slope) * self.bend(x)

    def bend(self, x: Tensor) -> Tensor:
        """Return the smooth ReLU, x sigmoid(c x / p)."""
        return x * torch.sigmoid(self.steepness * x)


class RandomSmoothLeaky(SmoothLeaky):
    """A `SmoothLeaky` whose slope is drawn evenly between two bounds, anew for every entry of every pass.

    Where no gradient is taken (acting, targets) the slope is their mean. Source: as for `SmoothLeaky`, whose authors
    draw it so, too; the bounds are those of the randomized leaky ReLU (Xu et al. 2015, arXiv 1505.00853). Random
    numbers are PyTorch's global ones, which checkpoints keep.
    """

    def __init__(self, low: float = 1 / 8, high: float = 1 / 3, p: float = 3.0, c: float = 5.0) -> None:
        super().__init__((low + high) / 2, p, c)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        slope = self.low + (self.high - self.low) * torch.rand_like(x)
        return slope * x + (1 - slope) * self.bend(x)


class IntervalDropout(nn.Module):
    """AID with two intervals: each unit is a ReLU with probability `keep`, else its mirror image, -relu(-x).

    Where no gradient is taken (acting, targets) it is the mean of that, keep x or (1 - keep) x, a leaky ReLU (Park et
    al. 2025, arXiv 2502.01342, algorithm 2). No code was released. Random numbers are PyTorch's global ones, which
    checkpoints keep.
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
    keep plasticity in RL. It begins as a leaky ReLU. Compared with the released code (k4ntz/activation-functions,
    version A), ten steps of Adam on the coefficients: equal to 2e-8. Its first coefficients are a later fit of the same
    function, 0.05 apart at most.
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
