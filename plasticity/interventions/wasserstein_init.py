"""Wasserstein init: keep the distribution of a layer's weights, not every weight.

Lewandowski, Tanaka, Schuurmans & Machado 2023, *Directions of Curvature as an Explanation for Loss of Plasticity*,
arXiv 2312.00246, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .l2_init import TowardsInitial


@dataclass
class WassersteinInit(TowardsInitial):
    """Keep the distribution of every tensor's weights near its first one.

    The sorted weights are pulled towards the first ones, sorted: coef * sum (sort(theta) - sort(theta0))^2 is added to
    the loss, tensor by tensor. That is the squared Wasserstein-2 distance of the two empirical distributions, times the
    number of entries. A weight may go anywhere as long as another one takes its place, so less is held back than by
    L2 Init.

    Defaults: coef 1e-2, that of L2 Init. Differences: wechu/parseval_reg divides by the number of entries of each
    tensor; with that undone, ten steps of Adam are the same as with its code (by others than the authors) to 1e-16.
    Source: Lewandowski et al. 2023, arXiv 2312.00246.
    """

    NAME: ClassVar[str] = "wasserstein_init"

    def distance(self, now: Tensor, first: Tensor) -> Tensor:
        """Return the sum over the entries of one parameter, in order of size."""
        return (now.flatten().sort().values - first.flatten().sort().values).square().sum()
