"""Second implementations in numpy and scipy, written from the papers' definitions and nothing else."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor

Array = np.ndarray

PROBED = ("dormancy", "grama", "grama_weight", "grama_linear", "grama_post", "rank")
"""The probes that tests of monitors attach: every signal of passes, with definitions for all of them here."""


def rows(tensor: Tensor, axis: int = -1) -> Array:
    """Return a tensor as (samples, neurons) in float64; ``axis`` is where the neurons lie."""
    array = tensor.detach().double().numpy(force=True)
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def scores(samples: Array) -> Array:
    """Return E|x_i| over the layer's mean of it, neuron by neuron; 0 everywhere for a layer that is 0 everywhere."""
    magnitudes = [float(np.mean([abs(value) for value in samples[:, i]])) for i in range(samples.shape[1])]
    mean = sum(magnitudes) / len(magnitudes)
    return np.array([0.0 if mean == 0 else m / mean for m in magnitudes])


def fraction(values: Array, tau: float) -> float:
    """Return the share of neurons whose score is at most tau."""
    return sum(1 for v in values if v <= tau) / len(values)


def weight_scores(gradient: Tensor) -> Array:
    """Return the scores of the incoming-weight gradient, (neurons, ...), as the released code of GraMa has it."""
    return scores(np.abs(gradient.detach().double().flatten(1).numpy(force=True)).mean(1)[None])


def ranks(features: Array) -> dict[str, float]:
    """Return the four ranks of a feature matrix (samples, features)."""
    sigma = scipy.linalg.svdvals(features)
    if sigma[0] == 0:
        return dict.fromkeys(("effective_rank", "srank", "stable_rank", "feature_rank"), 0.0)
    shares = np.cumsum(sigma) / sigma.sum()
    return {
        "effective_rank": float(np.exp(scipy.stats.entropy(sigma / sigma.sum()))),
        "srank": float(next(k for k in range(1, len(sigma) + 1) if shares[k - 1] >= 0.99 - 1e-12)),
        "stable_rank": float(np.linalg.norm(features, "fro") ** 2 / np.linalg.norm(features, 2) ** 2),
        "feature_rank": float((scipy.linalg.svdvals(features / np.sqrt(len(features))) > 0.01).sum()),
    }


def matrix(sigma: list[float], samples: int, seed: int = 0) -> Tensor:
    """Return a float64 matrix (samples, values) with these singular values."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(n: int, k: int) -> Tensor:
        drawn = torch.randn(n, k, generator=generator, dtype=torch.float64, device="cpu")
        return torch.linalg.qr(drawn)[0].to(torch.get_default_device())

    k = len(sigma)
    return orthonormal(samples, k) * torch.tensor(sigma, dtype=torch.float64) @ orthonormal(k, k).T
