"""The random teacher at other learning rates: a network that is only badly scaled learns at one of them."""

from __future__ import annotations

import inspect
from itertools import count, takewhile

from torch import Tensor
from torch.optim import Optimizer

from .comparison import Comparison, Size, compare
from .trainee import rate_of
from .trials import RESIDUAL, Trials

AT_OTHER_RATES = Size(teachers=2, fresh=4)
"""The fits at each other rate."""
HIGHEST = 1.0
"""Rate up to which one is looked for that teaches."""


def at_other_rates(trials: Trials) -> dict[float, Comparison]:
    """Compare at a tenth and ten times the rate and at the default one; raises OutOfTime.

    Asked where the aged network is slower at its own rate.
    """
    own, default = rate_of(trials.patient.optimizer), default_rate(trials.patient.optimizer)
    grid = {own / 10, own * 10, default}
    return {rate: compare(trials, RESIDUAL, AT_OTHER_RATES, rate) for rate in sorted(grid - {own, 0.0})}


def at_a_rate_that_teaches(trials: Trials) -> dict[float, Comparison]:
    """Compare at other rates, up to the first at which fresh networks learn enough; raises OutOfTime.

    Asked where they learn next to nothing at the own rate. The rate with which the optimizer began comes first, then
    its default one, tenfold higher ones up to 1 (than the own, where that is below), and a tenth of the own.
    """
    optimizer = trials.patient.optimizer
    own, begun, default = rate_of(optimizer), float(optimizer.defaults.get("lr", 0.0)), default_rate(optimizer)
    start = max(own, default) if own < HIGHEST else default
    higher = takewhile(lambda rate: rate <= HIGHEST, (start * 10**times for times in count(1)))
    found: dict[float, Comparison] = {}
    for rate in (begun, default, *higher, own / 10):
        if rate not in (own, 0.0, *found):
            found[rate] = compare(trials, RESIDUAL, AT_OTHER_RATES, rate)
            if found[rate].fresh_learn_enough:
                break
    return found


def default_rate(optimizer: Optimizer) -> float:
    """Return the rate that the optimizer's class has by default, 1e-3 where it has none."""
    parameter = inspect.signature(type(optimizer).__init__).parameters.get("lr")
    value = None if parameter is None else parameter.default
    return float(value) if isinstance(value, (int, float, Tensor)) and float(value) > 0 else 1e-3
