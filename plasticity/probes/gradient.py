"""Gradients of a layer's weight: their size before clipping, their regularity by neuron, and their direction.

Of the weight alone, (neurons, inputs), summed over the backward passes of a step as ``.grad`` is; biases and the gains
of norms are not in it. With a window, of its last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plasticity.value_types import checked

from .firing import share_of
from .probe import NO_EARLIER, WEIGHT, WEIGHT_GRADIENT, Probe, Summand
from .weights import root_of_squares

EPSILON = 1e-8


class OfWeightGradients(Probe):
    """A probe of the gradient of a layer's weight."""

    KIND = "gradient"
    COST = "sums"
    last_step_only = True

    def sums(self) -> Mapping[str, Summand]:
        """Add up gradients with their signs, as ``.grad`` does."""
        return {WEIGHT_GRADIENT: torch.clone}

    def gradient(self) -> Tensor:
        """Return the gradient, (neurons, inputs), float64."""
        return self.total(WEIGHT_GRADIENT)


class GradientNorm(OfWeightGradients):
    """L2 norm of the gradient of a layer's weight, before clipping.

    Range [0, inf); of the network: of all layers. 0 is a layer that does not learn; a growing one announces
    instability. What agents log as ``grad_norm`` is of all parameters of an optimizer, and only where they clip.
    Source: Pascanu et al. 2013 (arXiv 1211.5063).
    """

    WORSE = "0, or growing"
    SOURCE = "Pascanu et al. 2013"

    def compute(self) -> Tensor:
        """Return the norm."""
        return self.gradient().norm()

    def of_network(self, values: Sequence[float], neurons: Sequence[int]) -> float:
        """Return the norm of all layers together."""
        return root_of_squares(values) if values else torch.nan


class ZeroGradients(OfWeightGradients):
    """Fraction of the entries of a weight's gradient that are about 0.

    Range [0, 1]; higher is worse. Below ``limit`` in magnitude. The JAX code of SWD logs this under the name GraMa
    (arXiv 2505.24061), which divides by the layer's mean: this one depends on the scale of the loss.
    """

    WORSE = "higher"
    SOURCE = "nnx / CleanRL-JAX"

    @checked
    def __init__(self, limit: float = 1e-8) -> None:
        if not limit > 0:
            raise ValueError(f"ZeroGradients needs a limit above 0, got {limit}")
        self.limit = float(limit)

    def compute(self) -> Tensor:
        """Return the fraction."""
        return share_of(self.gradient().abs() < self.limit, self.gradient())


def kurtosis(values: Tensor, precision: float = 2.0**-52) -> Tensor:
    """Return E[(x - mean)^4] / var^2 of a flat tensor, 0-D, at least 1; NaN where values differ by rounding at most.

    ``precision``: the machine epsilon of what the values were computed in.
    """
    centred = values - values.mean()
    noise = len(values) * precision * values.abs().max()
    ratio = centred.pow(4).mean() / centred.square().mean().square()
    return torch.where(centred.abs().max() > noise, ratio, torch.nan)


class GradientKurtosis(OfWeightGradients):
    """Kurtosis of the entries of a weight's gradient.

    Range [1, inf): 3 for normal entries, 1.8 for uniform ones; growing is worse: few weights get nearly all of the
    gradient. Not in excess of 3. That of the norms of single samples' gradients, which Garg et al. 2021 (arXiv
    2102.10264), section 3, estimate in PPO, is ``norm_kurtosis`` of the probe ``sample_gradients``.
    """

    WORSE = "growing"
    SOURCE = "Garg et al. 2021"
    nan_reason = "all entries are equal, or not finite"

    def compute(self) -> Tensor:
        """Return the kurtosis."""
        return kurtosis(self.gradient().flatten())


class UnitUpdates(Probe):
    """Fraction of neurons with a relative gradient unlike their layer's: RUA.

    Range [0, 1]; higher is worse. The score is the mean over backward passes of ||dL/dW_row|| / ||W_row||, divided by
    the layer's mean. ``rua`` counts neurons below 0.25, which stagnate; ``rua_volatile`` those above 3. Of the
    gradient, not of the step: what the optimizer makes of it is not in it. Over a window it is a mean over time.
    Source: KNIFE (arXiv 2606.25335).
    """

    KIND = "gradient"
    COST = "sums"
    WORSE = "higher"
    SOURCE = "KNIFE 2026"
    per_neuron = True

    @checked
    def __init__(self, side: str = "stagnant", limit: float | None = None) -> None:
        limits = {"stagnant": 0.25, "volatile": 3.0}
        if side not in limits:
            raise ValueError(f"UnitUpdates knows the sides {', '.join(limits)}; got {side!r}")
        self.side, self.limit = side, limits[side] if limit is None else float(limit)

    def sums(self) -> Mapping[str, Summand]:
        """Add up the norms of rows over backward passes, and take the weight at the end."""
        return {WEIGHT_GRADIENT: lambda gradient: gradient.norm(dim=1), WEIGHT: lambda weight: weight.norm(dim=1)}

    def relative(self) -> Tensor:
        """Return the mean ||dL/dW_row|| / ||W_row|| of each neuron, (neurons,)."""
        norms = self.total(WEIGHT_GRADIENT) / self.num_samples(WEIGHT_GRADIENT)
        return norms / (self.total(WEIGHT) + EPSILON)

    def scores(self) -> Tensor:
        """Return the relative gradient of each neuron over the layer's mean, (neurons,); 0 in a layer without any."""
        relative = self.relative()
        return relative / torch.where(relative.mean() == 0, 1, relative.mean())

    def compute(self) -> Tensor:
        """Return the fraction of neurons beyond the limit."""
        scores = self.scores()
        return share_of(scores < self.limit if self.side == "stagnant" else scores > self.limit, scores)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two tensors of one shape, 0-D, in [-1, 1]; NaN where one is 0."""
    return ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)


class StepCosine(OfWeightGradients):
    """Cosine of the gradient with that of the last reading.

    Range [-1, 1]. With ``every`` 1, of consecutive steps: near 0 is noise, below 0 is oscillation. Farther apart it
    tells whether the direction lasts. NaN where a gradient is 0. Source: Yu et al. 2020 (arXiv 2001.06782), for
    conflict.
    """

    WORSE = "below 0"
    SOURCE = "Yu et al. 2020"
    nan_reason = "a gradient is 0 or not finite"

    def why_not(self) -> str:
        """Return that there is no earlier gradient of this shape."""
        return NO_EARLIER if self.memory is None or self.memory.shape != self.gradient().shape else ""

    def compute(self) -> Tensor:
        """Return the cosine."""
        return cosine(self.gradient(), self.memory.double())

    def remember(self) -> Tensor:
        """Return the gradient, float32."""
        return self.gradient().float()
