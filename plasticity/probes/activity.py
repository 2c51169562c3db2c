"""How strongly each neuron takes part, relative to its layer: the one formula behind dormancy and GraMa."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .probe import Probe

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
    scores = torch.where(mean == 0, torch.zeros_like(magnitudes), magnitudes / mean)
    return torch.where(mean.isfinite(), scores, torch.full_like(scores, torch.nan))


def inactive_fraction(scores: Tensor, threshold: float) -> Tensor:
    """Return the fraction of neurons with a score of at most ``threshold``; NaN where any score is NaN."""
    fraction = (scores <= threshold).to(scores.dtype).mean()
    return torch.where(scores.isnan().any(), torch.full_like(fraction, torch.nan), fraction)


class Activity(Probe):
    """Fraction of neurons whose mean magnitude of a signal is at most ``threshold`` times the layer's mean.

    The mean is over all samples since :meth:`reset`, each sample counting once; it is normalised once, at the end.
    """

    per_neuron = True

    def __init__(self, signal: str, threshold: float) -> None:
        if not threshold >= 0:
            raise ValueError(f"{type(self).__name__} needs a threshold of at least 0, got {threshold}")
        self.signal, self.threshold = signal, float(threshold)
        self.reset()

    @property
    def signals(self) -> frozenset[str]:
        """The one signal that is gathered."""
        return frozenset([self.signal])

    def reset(self) -> None:
        """Forget all samples."""
        self._total: Tensor | None = None
        self._num_samples = 0

    def on_forward(self, activations: Tensor) -> None:
        """Add samples, (samples, neurons)."""
        self._add(activations)

    def on_backward(self, gradients: Tensor) -> None:
        """Add samples, (samples, neurons)."""
        self._add(gradients)

    def on_activation_gradient(self, gradients: Tensor) -> None:
        """Add samples, (samples, neurons)."""
        self._add(gradients)

    def _add(self, rows: Tensor) -> None:
        if not len(rows):
            raise ValueError(f"{type(self).__name__} needs at least one sample")
        self.add(self.signal, self.reduce(self.signal, rows), len(rows))

    def reduce(self, signal: str, rows: Tensor) -> Tensor:
        """Return the sums of magnitudes, (neurons,)."""
        return magnitude_sums(rows)

    def add(self, signal: str, total: Tensor, num_samples: int) -> None:
        """Add sums of magnitudes, (neurons,), over ``num_samples``."""
        # float64: sums over many passes lose the small ones in float32.
        total = total.double()
        self._total = total if self._total is None else self._total + total
        self._num_samples += num_samples

    def combine(self, add: Callable[[Tensor], Tensor]) -> None:
        """Add what the other processes have gathered."""
        if self._total is not None:
            self._num_samples = int(add(torch.tensor(self._num_samples, device=self._total.device)))
            self._total = add(self._total)

    def magnitudes(self) -> Tensor:
        """Return the mean magnitude of each neuron, (neurons,), before normalisation."""
        if self._total is None:
            raise RuntimeError(f"{type(self).__name__} has seen no data")
        return self._total / self._num_samples

    def scores(self) -> Tensor:
        """Return each neuron's magnitude relative to its layer, (neurons,); see :func:`normalised_scores`."""
        return normalised_scores(self.magnitudes())

    def compute(self) -> Tensor:
        """Return the fraction of inactive neurons, in [0, 1]."""
        return inactive_fraction(self.scores(), self.threshold)
