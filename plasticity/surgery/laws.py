"""Distributions of initial weights, and which of them values were drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

ALPHA = 1e-4
"""Chance with which a layer's own distribution is taken for another one."""

SAMPLE = 1 << 16
"""At most this many weights of a layer are looked at."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut off at two standard deviations, as JAX and Keras draw it."""

GAINS = (1.0, math.sqrt(2), 5 / 3, 2.0, 0.5, 0.1, 0.01, 0.001)
"""Gains that a single orthogonal row may have: any row is orthogonal to no other, so only its norm can tell."""


@dataclass(frozen=True, eq=False)
class Law:
    """A distribution of weights.

    ``parameters``: constant (value), uniform (low, high), normal (mean, std), truncated (std; cut at two of them),
    orthogonal (gain), empirical (); ``values`` are what an empirical law draws from.
    """

    kind: Literal["constant", "uniform", "normal", "truncated", "orthogonal", "empirical"]
    parameters: tuple[float, ...] = ()
    values: Tensor | None = None

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a draw with the shape, dtype and device of ``like``: made on the CPU, so the same on every device."""
        wide = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        out = torch.empty(like.shape, dtype=wide, device="cpu")
        with torch.no_grad():
            match self.kind:
                case "constant":
                    out.fill_(self.parameters[0])
                case "uniform":
                    out.uniform_(*self.parameters, generator=generator)
                case "normal":
                    out.normal_(*self.parameters, generator=generator)
                case "truncated":
                    std = self.parameters[0]
                    nn.init.trunc_normal_(out, 0.0, std, -2 * std, 2 * std, generator=generator)
                case "orthogonal":
                    nn.init.orthogonal_(out, self.parameters[0], generator=generator)
                case "empirical":
                    assert self.values is not None
                    out = self.values[torch.randint(len(self.values), like.shape, generator=generator, device="cpu")]
        return out.to(like.device, like.dtype)

    def mean(self) -> float:
        """Return the mean of the distribution."""
        match self.kind:
            case "constant" | "normal":
                return self.parameters[0]
            case "uniform":
                return sum(self.parameters) / 2
            case "empirical":
                assert self.values is not None
                return float(self.values.double().mean())
        return 0.0

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function at ``x``, float64; of uniform, normal and truncated laws."""
        if self.kind == "uniform":
            low, high = self.parameters
            return ((x - low) / (high - low)).clamp(0, 1)
        if self.kind == "normal":
            mean, std = self.parameters
            return torch.special.ndtr((x - mean) / std)
        tail = 0.022750131948179195  # of a standard normal beyond -2
        return ((torch.special.ndtr(x / self.parameters[0]) - tail) / (1 - 2 * tail)).clamp(0, 1)

    def log_likelihood(self, x: Tensor, slack: float) -> float:
        """Return the log density of all of ``x``, -inf outside the support widened by the relative ``slack``."""
        if self.kind == "uniform":
            low, high = self.parameters
            room = slack * max(abs(low), abs(high))
            inside = bool(x[0] >= low - room) and bool(x[-1] <= high + room)
            return -len(x) * math.log(high - low) if inside else -math.inf
        mean, std = self.parameters if self.kind == "normal" else (0.0, self.parameters[0])
        if self.kind == "truncated" and float(x.abs().max()) > 2 * std * (1 + slack):
            return -math.inf
        mass = 0.95449973610364158 if self.kind == "truncated" else 1.0
        constant = math.log(std * mass) + 0.5 * math.log(2 * math.pi)
        return -len(x) * constant - 0.5 * float((x - mean).square().sum()) / std**2

    def __str__(self) -> str:
        match self.kind:
            case "uniform":
                low, high = self.parameters
                return f"uniform(±{high:.4g})" if low == -high else f"uniform({low:.4g} to {high:.4g})"
            case "normal":
                mean, std = self.parameters
                return f"normal(std {std:.3g})" if mean == 0 else f"normal(mean {mean:.3g}, std {std:.3g})"
            case "truncated":
                return f"truncated normal(std {self.parameters[0]:.3g}, cut at 2 std)"
            case "empirical":
                return f"empirical({0 if self.values is None else len(self.values)} values)"
        return f"{self.kind}({'gain ' if self.kind == 'orthogonal' else ''}{self.parameters[0]:.3g})"


def default_law(fan_in: int) -> Law:
    """Return what torch's own layers are initialised with, weights and biases."""
    # kaiming_uniform_(a=sqrt(5)) of torch's own layers: sqrt(6 / (1 + 5) / fan_in), not He's sqrt(6 / fan_in).
    return Law("uniform", (-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in)))


def constant_law(values: Tensor) -> Law | None:
    """Return a constant law for values that are all equal; of a single one only if it is a round number."""
    if values.numel() == 0:
        return Law("constant", (0.0,))
    first = values.detach().flatten()[0]
    round_number = torch.tensor(float(f"{float(first):.3g}"), dtype=values.dtype, device=values.device)
    alike = bool((values == first).all()) and (values.numel() > 1 or bool(round_number == first))
    return Law("constant", (float(f"{float(first):.8g}"),)) if alike else None


def orthogonal_law(weight: Tensor) -> Law | None:
    """Return an orthogonal law if the rows, or the columns where they are fewer, are orthogonal and of one norm."""
    matrix = weight.detach().flatten(1).double()
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = matrix @ matrix.T
    square = float(gram.diagonal().mean())
    if not math.isfinite(square) or square == 0:
        return None
    gain = math.sqrt(square)
    tolerance = max(1e-4, 8 * torch.finfo(weight.dtype).eps)
    if len(matrix) == 1:
        gain = min(GAINS, key=lambda g: abs(g - gain))
        return Law("orthogonal", (gain,)) if abs(square / gain**2 - 1) < tolerance / 10 else None
    off = gram / square - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return Law("orthogonal", (float(f"{gain:.5g}"),)) if float(off.abs().max()) < tolerance else None


def random_law(values: Tensor, fan_in: int, fan_out: int) -> Law:
    """Return torch's default if the values are compatible with it, else the most likely law that they are."""
    flat = values.detach().flatten().double().cpu()
    if not bool(flat.isfinite().all()):
        raise ValueError("cannot infer an initialiser from values that are not finite")
    sample = flat[:: -(-len(flat) // SAMPLE)]
    if len(sample) < len(flat):
        sample = torch.cat([sample, flat.min()[None], flat.max()[None]])
    sample = sample.sort().values
    slack = 4 * torch.finfo(values.dtype).eps
    default = default_law(fan_in)
    if default.log_likelihood(sample, slack) > -math.inf and _compatible(sample, default):
        return default
    scored = [(law.log_likelihood(sample, slack), law) for law in _named(fan_in, fan_out)]
    # A free parameter has to earn log(n), as in the Bayesian information criterion of a uniform's bound.
    scored += [(law.log_likelihood(sample, slack) - k * math.log(len(sample)), law) for k, law in _fitted(sample)]
    for score, law in sorted(scored, key=lambda pair: -pair[0]):
        if score > -math.inf and _compatible(sample, law):
            return law
    return Law("empirical", (), flat.to(torch.promote_types(values.dtype, torch.float32)))


def _compatible(x: Tensor, law: Law) -> bool:
    """True if a Kolmogorov-Smirnov test of the sorted values lets the law pass (Stephens' form of the statistic)."""
    n, cdf = len(x), law.cdf(x)
    rank = torch.arange(n, dtype=x.dtype, device=x.device)
    distance = float(torch.maximum(cdf - rank / n, (rank + 1) / n - cdf).max())
    return distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) < math.sqrt(-math.log(ALPHA / 2) / 2)


def _named(fan_in: int, fan_out: int) -> Iterable[Law]:
    """Yield the laws with names: LeCun, He and Xavier scales with usual gains, and usual fixed scales."""
    stds = {math.sqrt(v / f) for v in (1 / 3, 1, 2, 25 / 9) for f in (fan_in, fan_out, (fan_in + fan_out) / 2)}
    for std in stds:
        yield Law("truncated", (std / TRUNCATED_STD,))
        yield Law("uniform", (-std * math.sqrt(3), std * math.sqrt(3)))
    for std in stds | {1.0, 0.1, 0.05, 0.02, 0.01, 0.001}:
        yield Law("normal", (0.0, std))
        yield Law("truncated", (std,))
    for bound in (1.0, 0.1, 0.05, 0.01, 0.003, 0.001):
        yield Law("uniform", (-bound, bound))


def _fitted(x: Tensor) -> Iterable[tuple[int, Law]]:
    """Yield (number of free parameters, law) for fits to the sorted values, where these are not all equal."""
    n, low, high = len(x), float(x[0]), float(x[-1])
    if low == high:
        return
    bound = max(-low, high) * (n + 1) / n
    yield 1, Law("uniform", (-bound, bound))
    room = (high - low) / max(1, n - 1)
    yield 2, Law("uniform", (low - room, high + room))
    std, mean = float(x.square().mean().sqrt()), float(x.mean())
    yield 1, Law("normal", (0.0, std))
    yield 2, Law("normal", (mean, float(x.std())))
    yield 1, Law("truncated", (max(std / TRUNCATED_STD, bound / 2),))
