"""Feature norm: keep the features small.

A penalty that several toolkits have, after the observation that features grow as plasticity is lost (Lyle et al. 2023,
*Understanding plasticity in neural networks*, arXiv 2303.01486). Code: Felix-Zhenghao/rigorous-plasticity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from .feature_penalty import FeaturePenalty


def feature_norm(features: Tensor, reduce: str = "sum") -> Tensor:
    """Return the mean over samples of ||h||^2, or of its mean over features; features (samples, features)."""
    squares = features.square()
    return (squares.sum(1) if reduce == "sum" else squares.mean(1)).mean()


@dataclass
class FeatureNormPenalty(FeaturePenalty):
    """Keep the features in front of the output layers small.

    Adds coef * mean over samples ||h||^2 to the loss, h the input of the output layers.

    Defaults: coef 1e-3 is ours; nothing is published. ``reduce="mean"`` divides by the number of features, so that one
    coefficient serves several widths. Compared with Felix-Zhenghao/rigorous-plasticity, a testbed by others, ten steps
    of Adam for both: the weights are the same to the bit.
    """

    NAME: ClassVar[str] = "feature_norm"

    coef: float = 1e-3
    """Weight of the penalty; 0 switches it off."""
    reduce: Literal["sum", "mean"] = "sum"
    """Reduction of the squares over features."""

    def penalty(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        """Return the penalty on the update's own batch."""
        return feature_norm(self.features(name, networks[name], batch), self.reduce)
