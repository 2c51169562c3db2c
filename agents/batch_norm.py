"""Batch renormalisation whose running statistics move when the agent says so, not in a forward pass.

Ioffe 2017, *Batch Renormalization*, arXiv 1702.03275, with the numbers of CrossQ's released code (adityab/CrossQ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOMENTUM, EPSILON = 0.01, 1e-3
PLAIN_UPDATES = 100_000
"""Updates of the running statistics in which it is plain batch normalisation."""
MAX_RATIO, MAX_SHIFT = 3.0, 5.0


class BatchRenorm(nn.BatchNorm1d):
    """(x - mean) / sqrt(var + eps) with the running statistics; with those of the batch where `batch_statistics` says.

    Forward passes change nothing, in training mode too, so that a loss stays a function of its inputs. After
    `PLAIN_UPDATES` updates the result is corrected towards the running statistics: times r, plus d, both without
    gradient, r = std / running std within [1/3, 3], d = (mean - running mean) / running std within [-5, 5]. The
    variance is the biased one of the authors' flax; stable-baselines3-contrib takes the unbiased one. The authors' code
    has eps in another place once it corrects: 0.004 in outputs of size 1, 3e-6 with an eps of 1e-8.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=EPSILON, momentum=MOMENTUM)
        self.seen: dict[nn.Module, Tensor] | None = None
        """Where the statistics of a batch go, mean and var in one; None for a pass with the running ones."""

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is None:
            normed = (x - self.running_mean) * (self.running_var + self.eps).rsqrt()
        else:
            var, mean = torch.var_mean(x, 0, correction=0)
            self.seen[self] = torch.cat([mean.detach(), var.detach()])
            ratio, shift = self._corrections(mean.detach(), var.detach())
            normed = (x - mean) * (var + self.eps).rsqrt() * ratio + shift
        return normed * self.weight + self.bias

    def _corrections(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        late, running = self.num_batches_tracked >= PLAIN_UPDATES, (self.running_var + self.eps).sqrt()
        ratio = ((var + self.eps).sqrt() / running).clamp(1 / MAX_RATIO, MAX_RATIO)
        shift = ((mean - self.running_mean) / running).clamp(-MAX_SHIFT, MAX_SHIFT)
        return torch.where(late, ratio, 1.0), torch.where(late, shift, 0.0)

    @torch.no_grad()
    def follow_(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(var, MOMENTUM)
        self.num_batches_tracked += 1


def batch_norms(networks: Iterable[nn.Module]) -> list[BatchRenorm]:
    """Return the batch norms of networks, in order."""
    return [module for network in networks for module in network.modules() if isinstance(module, BatchRenorm)]


@contextmanager
def batch_statistics(networks: Sequence[nn.Module]) -> Iterator[Callable[[], Tensor]]:
    """Within, normalise by the statistics of the batch; what is yielded returns them side by side, for `follow`.

    What looks at a pass may run a network once more: the last pass counts.
    """
    norms, seen = batch_norms(networks), dict[nn.Module, Tensor]()
    for norm in norms:
        norm.seen = seen
    try:
        yield lambda: torch.cat([seen[norm] for norm in norms])
    finally:
        for norm in norms:
            norm.seen = None


def follow(networks: Sequence[nn.Module], statistics: Tensor) -> None:
    """Move the running statistics of networks towards those of their last pass."""
    norms = batch_norms(networks)
    for norm, found in zip(norms, statistics.split([2 * norm.num_features for norm in norms]), strict=True):
        norm.follow_(*found.chunk(2))
