"""Ranks of features under their other definitions: squared or not, centred or not, each under a name of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .rank import (
    Features,
    effective_rank,
    numerical_rank,
    pca_rank,
    singular_values,
    srank,
    stable_rank,
    warn_of_few_samples,
)

DEFINITIONS: dict[str, tuple[bool, Callable[[Tensor], Tensor] | None]] = {
    "pca_rank": (True, pca_rank),
    "pca_rank_uncentred": (False, pca_rank),
    "numerical_rank": (False, None),
    "numerical_rank_centred": (True, None),
    "effective_rank_centred": (True, effective_rank),
    "effective_rank_covariance": (True, lambda sigma: effective_rank(sigma.square())),
    "effective_rank_squares": (False, lambda sigma: effective_rank(sigma.square())),
    "srank_centred": (True, srank),
    "stable_rank_centred": (True, stable_rank),
}
"""Name -> whether features are centred, and the rank of singular values; None: it also depends on shape and dtype."""


class Spectrum(Features):
    """Ranks of a layer's features by nine more definitions; lower is worse.

    ``metrics``: of ``pca_rank`` (directions with 99 % of the variance), ``numerical_rank`` (numpy's matrix_rank),
    ``effective_rank`` of singular values or of their squares (``squares``; ``covariance`` where centred), ``srank`` and
    ``stable_rank``, centred or not by name. At most ``max_samples`` rows, the first ones. Warns once below two samples
    a feature. Sources: Yang et al. 2020 (arXiv 1909.12255); Roy & Vetterli 2007.
    """

    SOURCE = "Yang et al. 2020; Roy & Vetterli 2007"
    KNOWN = tuple(DEFINITIONS)
    nan_reason = "non-finite features, or too many samples or features for a numerical rank in this dtype"

    def compute(self) -> dict[str, Tensor]:
        """Return each rank by name, 0-D, float64."""
        features = self.features()
        warn_of_few_samples(*features.shape)
        wanted = {DEFINITIONS[metric][0] for metric in self.metrics}
        sigma = {centred: singular_values(centre(features) if centred else features) for centred in wanted}
        epsilon = torch.finfo(self.dtype).eps
        ranks = {}
        for metric in self.metrics:
            centred, rank = DEFINITIONS[metric]
            values = sigma[centred]
            ranks[metric] = numerical_rank(values, features.shape, epsilon) if rank is None else rank(values)
        return ranks

    def details(self) -> dict[str, Any]:
        """Return samples, features, precision, and which metrics are of centred features."""
        return {**super().details(), "centred": [metric for metric in self.metrics if DEFINITIONS[metric][0]]}


class FeatureNorm(Features):
    """Mean norm of a layer's feature vectors, and mean variance of features.

    Range [0, inf). ``feature_norm``: growing is worse, 0 is a dead layer; ``feature_variance`` near 0: all samples look
    alike. Source: logged by Lee et al. 2024 (SimBa, arXiv 2410.09754), Plasticine and CLAIRE.
    """

    WORSE = "norm growing, variance near 0"
    SOURCE = "Lee et al. 2024"
    KNOWN = ("feature_norm", "feature_variance")

    def compute(self) -> dict[str, Tensor]:
        """Return both."""
        features = self.features().double()
        values = {"feature_norm": features.norm(dim=1).mean(), "feature_variance": features.var(0, correction=0).mean()}
        return {name: values[name] for name in self.metrics}


def centre(features: Tensor) -> Tensor:
    """Return the features without their mean, in their own precision."""
    wide = features.double()
    return (wide - wide.mean(0)).to(features.dtype)
