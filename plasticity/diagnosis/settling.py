"""Settling: an optimizer gets to know a lesson before the weights may move, so that its momentum is no fault of theirs.

Any change of lesson costs a few updates, in which momentum turns; that is no loss of plasticity. What stays, such as
second moments that are far too large, is.
"""

from __future__ import annotations

from torch import nn

from .comparison import Comparison, Size, changed, compare
from .trainee import Trainee
from .trials import AGED, Trials

SETTLING = 20
"""Updates at rate 0 in which an optimizer gets to know a lesson; of a momentum of 0.9, an eighth is left after them."""
SETTLED = "settled"
"""Name of the networks whose optimizer has."""


def settles(trials: Trials, comparison: Comparison) -> bool:
    """Return whether a network that is slower is as fast as fresh ones once its optimizer knows the lesson.

    An Adam without a past makes larger first steps. So a network that comes at least half of the way to the fresh ones
    is compared with them once more, with their optimizers settled, too. Raises OutOfTime.
    """
    if not trials.patient.optimizer.state:
        return False
    alone = changed(trials, comparison, f"{AGED} {SETTLED}", _settle)
    if comparison.suffices(alone) or comparison.closes(alone).value < 0.5:
        return comparison.suffices(alone)
    size = Size(len(comparison.aged), len(comparison.fresh))
    return not compare(trials, comparison.lesson, size, comparison.rate, _settle, SETTLED).is_slower


def _settle(trainee: Trainee, _: nn.Module) -> None:
    trainee.settling = SETTLING
