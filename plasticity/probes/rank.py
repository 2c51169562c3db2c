"""The number of directions that a layer's features span: four ranks, from one decomposition.

``sigma``: (values,) singular values in descending order of a feature matrix (samples, features), not centred. A zero
matrix has rank 0 under every definition, and NaN has rank NaN: a sum that is not positive is returned as it is. No rank
can exceed the number of samples: keep it fixed when comparing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.value_types import checked

from .probe import Probe


def singular_values(features: Tensor) -> Tensor:
    """Return the singular values of ``features`` (samples, features), descending, float64; NaN where any is non-finite.

    Through the Gram matrix of the smaller side in float64, which costs a fraction of a decomposition and resolves
    values down to about 1e-7 of the largest; what is below its rounding error is set to 0. Features that are float64
    themselves are decomposed directly. Raises ValueError for an empty matrix.
    """
    if not features.numel():
        raise ValueError(f"no singular values of an empty feature matrix, shape {tuple(features.shape)}")
    if features.dtype == torch.float64:
        finite = features.isfinite().all()
        sigma = torch.linalg.svdvals(features.masked_fill(~finite, 0))  # which refuses others
    else:
        x = features.double()
        gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
        finite = gram.trace().isfinite()  # squares of float32 do not overflow
        squares = _eigenvalues(gram.masked_fill_(~finite, 0))
        noise = squares[0] * len(squares) * torch.finfo(torch.float64).eps
        sigma = squares.masked_fill(squares <= noise, 0).sqrt()
    return sigma.masked_fill(~finite, torch.nan)


def _eigenvalues(gram: Tensor) -> Tensor:
    """Return the eigenvalues, descending, at least 0; on the CPU where the device's solver does not converge."""
    try:
        found = torch.linalg.eigvalsh(gram)
    except torch.linalg.LinAlgError:
        found = torch.linalg.eigvalsh(gram.cpu()).to(gram.device)
    return found.flip(0).clamp_min(0)


def effective_rank(sigma: Tensor) -> Tensor:
    """Return exp of the entropy of the normalised singular values; in [1, values], 0 for a zero matrix.

    Source: Roy & Vetterli 2007, *The effective rank*, definition 1 (the distribution is over singular values, not over
    their squares).
    """
    total = sigma.sum()
    entropy = torch.special.entr(sigma / total).sum()
    return torch.where(total > 0, entropy.exp(), total)


def srank(sigma: Tensor, delta: float = 0.01) -> Tensor:
    """Return the number of leading singular values that hold a share 1 - ``delta`` of their sum.

    Source: Kumar et al. 2021 (arXiv 2010.14498), equation 1. Other libraries log this under the name stable rank.
    """
    total = sigma.sum()
    share = sigma.cumsum(0) / total
    # Rounding can leave the full sum below 1 - delta only when delta is 0: the last value then decides.
    count = 1 + (share[:-1] < 1 - delta).sum()
    return torch.where(total > 0, count, total)


def stable_rank(sigma: Tensor) -> Tensor:
    """Return the squared Frobenius norm over the squared spectral norm; in [1, values], 0 for a zero matrix."""
    return (sigma / sigma[0].clamp_min(torch.finfo(sigma.dtype).tiny)).square().sum()


def feature_rank(sigma: Tensor, num_samples: int, epsilon: float = 0.01) -> Tensor:
    """Return how many singular values of features / sqrt(samples) exceed ``epsilon``; depends on the features' scale.

    Source: Lyle et al. 2022 (arXiv 2204.09560), section 4.2.
    """
    return (sigma / num_samples**0.5 > epsilon).sum() + 0 * sigma.sum()


def pca_rank(sigma: Tensor, share: float = 0.99) -> Tensor:
    """Return the least number of directions that hold ``share`` of the sum of squares: of the variance, if centred.

    0 for a zero matrix. Source: Yang et al. 2020 (arXiv 1909.12255), *approximate rank*; at 0.99 in Lyle et al. and in
    SimBaV2's code.
    """
    squares = sigma.square()
    total = squares.sum()
    count = 1 + (squares.cumsum(0)[:-1] < share * total).sum()
    return torch.where(total > 0, count, total)


def numerical_rank(sigma: Tensor, shape: Sequence[int], precision: float = 2.0**-23) -> Tensor:
    """Return how many singular values exceed max(``shape``) * ``precision`` * the largest, as numpy's matrix_rank.

    ``precision``: the machine epsilon of the features, that of float32 by default. NaN where the bound is not below the
    largest value, as that of bfloat16 from 128 samples on: then rounding alone could make every direction.
    """
    count = (sigma > sigma[0] * max(shape) * precision).sum().to(sigma.dtype)
    return torch.where(sigma.isnan().any() | (max(shape) * precision >= 1), torch.nan, count)


RANKS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "effective_rank": lambda sigma, num_samples: effective_rank(sigma),
    "srank": lambda sigma, num_samples: srank(sigma),
    "stable_rank": lambda sigma, num_samples: stable_rank(sigma),
    "feature_rank": feature_rank,
}


ENOUGH = 2
"""Samples for each feature below which ranks are said to be those of the batch."""


def warn_of_few_samples(samples: int, features: int) -> None:
    """Say once that ranks are limited by the number of samples, or that there are fewer than two for each feature."""
    if samples < features:
        _warn("fewer samples than features; no rank can exceed their number: compare values of the same number only")
    elif samples < ENOUGH * features:
        _warn(f"fewer than {ENOUGH} samples a feature; such ranks are as much of the batch as of the network")


@cache  # once in a run, not once per layer and reading
def _warn(message: str) -> None:
    warnings.warn(f"Rank: {message}", RuntimeWarning, stacklevel=4)


class Features(Probe):
    """A probe of a layer's feature matrix on the samples of one step, by named metrics.

    ``metrics``: some of ``KNOWN``. At most ``max_samples`` rows are kept, the first ones seen.
    """

    KIND = "rank"
    COST = "rows"
    WORSE = "lower"
    KNOWN: ClassVar[tuple[str, ...]] = ()
    last_step_only = True  # features of many steps would cost memory, and a decomposition of them time
    nan_reason = "non-finite features"

    @checked
    def __init__(self, metrics: Sequence[str] = (), max_samples: int = 4096) -> None:
        if unknown := [m for m in metrics if m not in self.KNOWN]:
            raise ValueError(f"{type(self).__name__} knows {', '.join(self.KNOWN)}; got {', '.join(unknown)}")
        self.metrics, self.max_samples = tuple(metrics or self.KNOWN), max_samples
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self._rows: list[Tensor] = []
        self._num_samples = 0

    def on_forward(self, activations: Tensor) -> None:
        """Add rows of the feature matrix, (samples, neurons)."""
        room = self.max_samples - self._num_samples
        if room > 0:
            rows = activations[:room].clone()
            self._rows.append(rows)
            self._num_samples += len(rows)

    def features(self) -> Tensor:
        """Return the feature matrix, (samples, neurons); RuntimeError without data."""
        if not self._rows:
            raise RuntimeError(f"{type(self).__name__} has seen no data")
        return self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the layer computed the features."""
        dtype = self.activation_dtype
        return self._rows[0].dtype if dtype is None or not dtype.is_floating_point else dtype

    def details(self) -> dict[str, Any]:
        """Return the numbers of samples and features, and the precision of the features."""
        samples, neurons = self._num_samples, self._rows[0].shape[1]
        return {"samples": samples, "features": neurons, "dtype": str(self.dtype).removeprefix("torch.")}


class Rank(Features):
    """Number of directions that a layer's features span, by four ranks.

    Lower than the width is room lost, 1 is collapse. Sources: effective_rank, Roy & Vetterli 2007; srank, Kumar et al.
    2021 (arXiv 2010.14498); feature_rank, Lyle et al. 2022 (arXiv 2204.09560).

    ``metrics``: which of effective_rank, srank, stable_rank and feature_rank. At most ``max_samples`` rows are kept,
    the first ones seen. Warns once below two samples a feature, and once below one: no rank exceeds the samples.
    """

    SOURCE = "Roy & Vetterli 2007; Kumar et al. 2021; Lyle et al. 2022"
    KNOWN = tuple(RANKS)

    def compute(self) -> dict[str, Tensor]:
        """Return each rank by name, 0-D, float64."""
        features = self.features()
        samples, neurons = features.shape
        warn_of_few_samples(samples, neurons)
        sigma = singular_values(features)
        return {metric: RANKS[metric](sigma, samples) for metric in self.metrics}

    def details(self) -> dict[str, Any]:
        """Return samples, features, precision, and that features are not centred."""
        return {**super().details(), "centred": False}
