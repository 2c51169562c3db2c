"""Intervals: of a mean over teachers, of what another fresh network would do, and of a share of a gap.

Student's t throughout (Student 1908); the prediction interval of one more draw is that of Geisser 1993,
*Predictive Inference*, chapter 2: mean +- t s sqrt(1 + 1/n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95
"""Level of all intervals."""
_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 0.975 quantile of Student's t with 1, 2, 3, ... degrees of freedom."""


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, form: str = ".2g") -> str:
        """Return ``value [low, high]``."""
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def t_quantile(degrees: int) -> float:
    """Return the 0.975 quantile of Student's t; beyond 30 degrees of freedom that of the normal distribution."""
    if degrees < 1:
        return math.inf
    return _QUANTILES[degrees - 1] if degrees <= len(_QUANTILES) else 1.960


def of_mean(values: Sequence[float]) -> Estimate:
    """Return the mean and its confidence interval; unbounded with a single value."""
    return _around(values, 1 / len(values))


def of_next(values: Sequence[float]) -> Estimate:
    """Return the mean and the interval in which one more draw from the same distribution would lie."""
    return _around(values, 1 + 1 / len(values))


def of_next_amount(values: Sequence[float]) -> Estimate:
    """Return the same of amounts, which are never below 0: on a logarithmic scale where the interval would reach there.

    So it does where amounts are small for how much they differ; where one of them is 0, it stays as it is.
    """
    found = of_next(values)
    if found.low > 0 or min(values) <= 0 or len(values) < 2:
        return found
    _, low, high = of_next([math.log(value) for value in values])
    return Estimate(found.value, math.exp(low), math.exp(min(high, 700)))


def _around(values: Sequence[float], factor: float) -> Estimate:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = t_quantile(len(values) - 1) * _deviation(values) * math.sqrt(factor)
    return Estimate(mean, mean - half, mean + half)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def of_ratio(parts: Sequence[float], wholes: Sequence[float]) -> Estimate:
    """Return sum(parts) / sum(wholes) with the interval of a ratio estimate over pairs (Cochran 1977, equation 6.13).

    NaN where the wholes add up to 0.
    """
    total = sum(wholes)
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan)
    ratio = sum(parts) / total
    rest = [part - ratio * whole for part, whole in zip(parts, wholes, strict=True)]
    if len(rest) < 2:
        return Estimate(ratio, -math.inf, math.inf)
    error = math.sqrt(sum(r * r for r in rest) / (len(rest) - 1)) * math.sqrt(len(rest)) / abs(total)
    half = t_quantile(len(rest) - 1) * error
    return Estimate(ratio, ratio - half, ratio + half)
