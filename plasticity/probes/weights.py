"""Weights of a layer: their size, how far they went, their spectrum, and how much of them changed at all.

Of the weight alone, (neurons, inputs); biases and the gains of norms are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from plasticity.value_types import checked

from .probe import NO_EARLIER, WEIGHT, WEIGHT_BEFORE, WEIGHT_GRADIENT, Probe, Summand
from .rank import singular_values, stable_rank


class OfWeights(Probe):
    """A probe of the weight as it is when the reading is taken."""

    KIND = "weights"
    COST = "weights"

    def sums(self) -> Mapping[str, Summand]:
        """Take the weight."""
        return {WEIGHT: torch.clone}

    def weight(self) -> Tensor:
        """Return the weight, (neurons, inputs), float64."""
        return self.total(WEIGHT)


class Changed(OfWeights):
    """A probe of the weight now and before the optimizer steps of the window: the real step, whatever made it."""

    def sums(self) -> Mapping[str, Summand]:
        """Take both."""
        return {WEIGHT: torch.clone, WEIGHT_BEFORE: torch.clone}

    def step(self) -> Tensor:
        """Return the change of the weight, (neurons, inputs)."""
        return self.weight() - self.total(WEIGHT_BEFORE)


def rms(values: Tensor) -> Tensor:
    """Return the root mean square, 0-D."""
    return values.square().mean().sqrt()


def root_of_squares(values: Sequence[float]) -> float:
    """Return the norm of a network from those of its layers."""
    return math.sqrt(sum(value**2 for value in values))


class WeightMagnitude(OfWeights):
    """Mean |w| and root mean square of a layer's weights.

    Range [0, inf); growing is worse. Source: Dohare et al. 2024 (mean; Nature 632), Lyle et al. 2024 (norm; arXiv
    2402.18762). The sum of squares, the norm and the mean go by one name in other tools.
    """

    WORSE = "growing"
    SOURCE = "Dohare et al. 2024"
    metrics = ("weight_mean", "weight_rms")

    def compute(self) -> dict[str, Tensor]:
        """Return both."""
        return {"weight_mean": self.weight().abs().mean(), "weight_rms": rms(self.weight())}


class WeightSpectrum(OfWeights):
    """Stable rank of the weight, and its distance from an isometry.

    ``weight_stable_rank``: ||W||_F^2 / sigma_1^2, in [1, min(neurons, inputs)]; lower is worse. ``weight_isometry``:
    ||c W^T W - 1||_F^2 on the smaller side, with c such that the mean squared singular value is 1: DfI, 0 for a scaled
    isometry, in [0, m (m - 1)] for m singular values; higher is worse. Source: Han et al. 2026 (FIRE,
    ICLR); stable rank, Rudelson & Vershynin 2007 (arXiv math/0503442).
    """

    WORSE = "rank lower, distance higher"
    SOURCE = "Han et al. 2026"
    metrics = ("weight_stable_rank", "weight_isometry")

    def compute(self) -> dict[str, Tensor]:
        """Return both, from one decomposition."""
        sigma = singular_values(self.weight())
        squares = sigma.square()
        scaled = squares / torch.where(squares.mean() == 0, 1, squares.mean())
        return {"weight_stable_rank": stable_rank(sigma), "weight_isometry": (scaled - 1).square().sum()}


class Distance(Changed):
    """Root mean square distance of the weight from an earlier one.

    Range [0, inf). ``since``: ``start``, the weight before the first step that was watched; ``reading``, that of the
    last reading. A recycled or reset layer is compared with what it was before. Source: Lyle et al. 2024 (arXiv
    2402.18762).
    """

    WORSE = "from the start: growing; between readings: near 0"
    SOURCE = "Lyle et al. 2024"

    @checked
    def __init__(self, since: str = "start") -> None:
        if since not in ("start", "reading"):
            raise ValueError(f"Distance knows since 'start' and 'reading', got {since!r}")
        self.since = since

    def earlier(self) -> Tensor | None:
        """Return the weight to compare with, None without one of this shape."""
        if self.memory is not None and self.memory.shape == self.weight().shape:
            return self.memory
        return self.total(WEIGHT_BEFORE) if self.since == "start" else None

    def why_not(self) -> str:
        """Return that there is no earlier weight."""
        return NO_EARLIER if self.earlier() is None else ""

    def compute(self) -> Tensor:
        """Return the distance."""
        weight, earlier = self.weight(), self.earlier()
        assert earlier is not None  # why_not says so
        return rms(weight - earlier)

    def remember(self) -> Tensor | None:
        """Return the weight to compare with next."""
        return self.earlier() if self.since == "start" else self.weight()


class UpdateRatio(Changed):
    """Norm of the real step of the optimizer over that of the weight.

    Range [0, inf). ``update_ratio``: ||w_after - w_before|| / ||w_before||, after optimizer, clipping, decay and
    projections. About 1e-3 is usual; much less is a layer that hardly moves. Over a window of k steps: of their sum.
    Source: Lee et al. 2025 (SimBaV2, arXiv 2502.15280), who log ||g|| / ||w|| under the name effective learning rate,
    which ignores what the optimizer makes of g.
    """

    WORSE = "lower; far above 1e-2 is unstable"
    SOURCE = "Lee et al. 2025"
    nan_reason = "the weight was 0, or values are not finite"

    def compute(self) -> Tensor:
        """Return the ratio."""
        before = self.total(WEIGHT_BEFORE).norm()
        return torch.where(before == 0, torch.nan, self.step().norm() / before)


class EffectiveRate(Changed):
    """Length of the real step of the optimizer over that of the gradient.

    Range [0, inf): ||w_after - w_before|| / ||dL/dW||, the learning rate with which plain gradient descent would go as
    far; of gradient descent, its own. Falling while the gradient does not: the optimizer, a schedule or clipping holds
    the layer back. NaN without a gradient. Of a window, the sum of its steps over that of its gradients. Source: the
    effective step of Kingma & Ba 2015 (Adam, arXiv 1412.6980), section 2.1, of a whole weight and over its gradient.
    """

    WORSE = "falling, or growing, while update_ratio does not"
    SOURCE = "Kingma & Ba 2015"
    nan_reason = "its gradient was 0, or values are not finite"

    def sums(self) -> Mapping[str, Summand]:
        """Take the weights, and add up gradients as ``.grad`` does."""
        return {**super().sums(), WEIGHT_GRADIENT: torch.clone}

    def compute(self) -> Tensor:
        """Return the rate."""
        gradient = self.total(WEIGHT_GRADIENT).norm()
        return torch.where(gradient == 0, torch.nan, self.step().norm() / gradient)


class Unchanged(Changed):
    """Share of weights that a step left unchanged: to the bit, and in bfloat16.

    Of the steps of the window. ``unchanged``: w_after = w_before. ``unchanged_bf16``: equal once both are rounded to
    bfloat16: steps that training in bfloat16 without float32 copies would lose. Range [0, 1]; higher is worse. Frozen
    and pruned weights count. Source: updates that vanish by rounding, Micikevicius et al. 2018 (arXiv 1710.03740),
    section 3.1.
    """

    WORSE = "higher"
    SOURCE = "Micikevicius et al. 2018"
    metrics = ("unchanged", "unchanged_bf16")

    def compute(self) -> dict[str, Tensor]:
        """Return both."""
        now, before = self.weight(), self.total(WEIGHT_BEFORE)
        nan = torch.where((now.isfinite() & before.isfinite()).all(), 0, torch.nan)
        same = {"unchanged": now == before, "unchanged_bf16": now.bfloat16() == before.bfloat16()}
        return {name: equal.double().mean() + nan for name, equal in same.items()}

    def details(self) -> dict[str, Any]:
        """Return the number of weights."""
        return {"weights": self.weight().numel()}
