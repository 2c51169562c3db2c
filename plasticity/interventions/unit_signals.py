"""Signals of single neurons that methods look at every step: means over a batch, or the rows themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from plasticity.probes import Probe
from plasticity.probes.probe import FORWARD, Summand


class UnitMoments(NamedTuple):
    """A layer's neurons over the samples of one step, each (neurons,) float64 on the host."""

    magnitude: Tensor
    """Mean |h| of the activation h."""
    mean: Tensor
    """Mean h."""
    firing: Tensor
    """Share of the samples with h > 0."""
    num_samples: int
    """Samples; positions of a convolution count."""


def moment_sums(rows: Tensor) -> Tensor:
    """Return the sums of |h|, of h and of h > 0 over samples, (3, neurons), of activations (samples, neurons)."""
    return torch.stack([rows.abs().sum(0), rows.sum(0), (rows > 0).sum(0).to(rows.dtype)])


class MomentsProbe(Probe):
    """Means of activations per neuron, summed inside compiled updates."""

    per_neuron = True

    def sums(self) -> Mapping[str, Summand]:
        """Add up |h|, h and h > 0."""
        return {FORWARD: moment_sums}

    def compute(self) -> Tensor:
        """Return the mean magnitude of the layer."""
        return self.total(FORWARD)[0].mean() / self.num_samples(FORWARD)

    def scores(self) -> Tensor:
        """Return magnitude, mean, firing share and the number of samples, (4, neurons)."""
        total, num = self.total(FORWARD), self.num_samples(FORWARD)
        return torch.cat([total / num, torch.full_like(total[:1], num)])


def unit_moments(scores: Tensor) -> UnitMoments:
    """Return what :meth:`MomentsProbe.scores` holds."""
    magnitude, mean, firing, num = scores.double()
    return UnitMoments(magnitude, mean, firing, int(num[0]))


class RowsProbe(Probe):
    """Activations h, or dL/dh, of every sample of a step: rows, as no sum stands for them."""

    per_neuron = True

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def compute(self) -> Tensor:
        """Return the mean of all rows."""
        return torch.cat(self.rows).mean()

    def scores(self) -> Tensor:
        """Return the rows, (samples, neurons)."""
        return torch.cat(self.rows)

    def reset(self) -> None:
        """Forget the rows."""
        super().reset()
        self.rows = []


class ActivationRows(RowsProbe):
    """Activations of every sample, (samples, neurons)."""

    def on_forward(self, activations: Tensor) -> None:
        """Keep a copy."""
        self.rows.append(activations.clone())


class GradientRows(RowsProbe):
    """dL/d(activation) of every sample, (samples, neurons)."""

    def on_activation_gradient(self, gradients: Tensor) -> None:
        """Keep a copy."""
        self.rows.append(gradients.clone())
