"""The random teacher at other learning rates: a network that is only badly scaled learns at one of them."""

from __future__ import annotations

import inspect

from torch import Tensor
from torch.optim import Optimizer

from .comparison import Comparison, Size, compare
from .trainee import rate_of
from .trials import RESIDUAL, Trials

AT_OTHER_RATES = Size(teachers=2, fresh=4)
"""The fits at each other rate."""


def at_other_rates(trials: Trials) -> dict[float, Comparison]:
    """Compare at a tenth and ten times the rate and at the default one; raises OutOfTime.

    Asked where the aged network is slower at its own rate, or fresh ones learn nothing at it.
    """
    own = rate_of(trials.patient.optimizer)
    usual = float(trials.patient.optimizer.defaults.get("lr", 1e-3)) or 1e-3
    default = default_rate(trials.patient.optimizer)
    grid = {own / 10, own * 10, default} if own else {usual, default}
    return {rate: compare(trials, RESIDUAL, AT_OTHER_RATES, rate) for rate in sorted(grid - {own, 0.0})}


def default_rate(optimizer: Optimizer) -> float:
    """Return the rate that the optimizer's class has by default, 1e-3 where it has none."""
    parameter = inspect.signature(type(optimizer).__init__).parameters.get("lr")
    value = None if parameter is None else parameter.default
    return float(value) if isinstance(value, (int, float, Tensor)) and float(value) > 0 else 1e-3
