"""The magnitude of a signal per neuron, relative to its layer: the one formula behind dormancy and GraMa."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from plasticity.value_types import checked

from .probe import Probe, Summand

EXACT_ROWS = 1 << 16
"""Up to so many rows are summed in float32: relative errors of 1e-7 by torch, 1e-6 by a compiled loop, where float64
costs three times as much. Sums over passes are float64."""


def magnitude_sums(rows: Tensor) -> Tensor:
    """Return the sum of |rows| (samples, neurons) over samples, (neurons,)."""
    return rows.abs().sum(0, dtype=torch.float64 if rows.shape[0] > EXACT_ROWS else None)


def normalised_scores(magnitudes: Tensor) -> Tensor:
    """Divide each neuron's mean magnitude by the layer's mean.

    ``magnitudes``: (neurons,), not negative. Returns (neurons,) with mean 1, in [0, neurons]. A layer whose magnitudes
    are all 0 scores 0 (no epsilon in the denominator, which would call layers with tiny signals dormant); any
    non-finite magnitude makes every score NaN. Source: Sokar et al. 2023 (arXiv 2302.12902), equation 1.
    """
    mean = magnitudes.mean()
    # 0 divided by the least number is 0; the last term is NaN where the mean is not finite.
    return magnitudes / mean.clamp_min(torch.finfo(mean.dtype).tiny) + 0 * mean


def inactive_fraction(scores: Tensor, threshold: float) -> Tensor:
    """Return the fraction of neurons with a score of at most ``threshold``; NaN where any score is not finite."""
    return (scores <= threshold).to(scores.dtype).mean() + 0 * scores.sum()


class Activity(Probe):
    """Fraction of neurons whose mean magnitude of a signal is at most ``threshold`` times the layer's mean.

    The mean is over all samples, each counting once; it is normalised once, at the end.
    """

    per_neuron = True

    @checked
    def __init__(self, signal: str, threshold: float) -> None:
        if not threshold >= 0:
            raise ValueError(f"{type(self).__name__} needs a threshold of at least 0, got {threshold}")
        self.signal, self.threshold = signal, float(threshold)

    def sums(self) -> Mapping[str, Summand]:
        """Add up the magnitudes of one signal over samples."""
        return {self.signal: magnitude_sums}

    def magnitudes(self) -> Tensor:
        """Return the mean magnitude of each neuron, (neurons,), before normalisation."""
        return self.total(self.signal) / self.num_samples(self.signal)

    def scores(self) -> Tensor:
        """Return each neuron's magnitude relative to its layer, (neurons,); see :func:`normalised_scores`."""
        return normalised_scores(self.magnitudes())

    def compute(self) -> Tensor:
        """Return the fraction of inactive neurons, in [0, 1]."""
        return inactive_fraction(self.scores(), self.threshold)
