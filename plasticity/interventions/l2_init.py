"""L2 Init: pull the weights to where they began.

Kumar, Marklund & Van Roy 2023, *Maintaining Plasticity in Continual Learning via Regenerative Regularization*,
arXiv 2308.11958. Code: skumar9876/L2_Init.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .intervention import numbers_in
from .shrink_perturb import norm_parameters
from .weight_penalty import WeightPenalty, total, trained


@dataclass
class TowardsInitial(WeightPenalty):
    """A penalty on the distance of every parameter from its first value, which checkpoints keep."""

    norms: bool = True
    """Count gains and biases of norms too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.initial: dict[str, dict[str, Tensor]] = {}

    def begin(self, name: str, network: nn.Module) -> None:
        """Keep the parameters as they are now."""
        left_out = set() if self.norms else norm_parameters(network)
        self.initial[name] = {n: p.detach().clone() for n, p in trained(network).items() if n not in left_out}

    def penalty(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over all parameters that there were at the start; a head added later has no first value."""
        pairs = [(parameters[n], first) for n, first in self.initial[name].items() if n in parameters]
        return total([self.distance(now, first) for now, first in pairs], parameters)

    def distance(self, now: Tensor, first: Tensor) -> Tensor:
        """Return the penalty, 0-D, of one parameter and its first value."""
        raise NotImplementedError

    def parameters_added(self) -> int:
        """Return how many first values are kept."""
        return numbers_in(self.initial)

    def state_dict(self) -> dict[str, Any]:
        """Return the first values, too."""
        return {**super().state_dict(), "initial": {name: dict(found) for name, found in self.initial.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`: the first values are those of the run's beginning."""
        super().load_state_dict(state)
        for name, saved in state["initial"].items():
            kept = self.initial[name]
            self.initial[name] = {n: value.to(next(iter(kept.values()), value).device) for n, value in saved.items()}


@dataclass
class L2Init(TowardsInitial):
    """Pull every parameter towards its first value.

    Adds coef / 2 * sum (theta - theta0)^2 to the loss. Weights that no gradient holds go back to where learning was
    easy; weight decay would take them to 0, where units die.

    Defaults: coef 1e-2, from the paper, which tunes 1e-5 to 1e-2; norms are regularised too, as in its code.
    ``huber`` and ``l1`` replace the square by ``F.huber_loss`` (delta 1) and |theta - theta0|, as the code offers.
    Differences: wechu/parseval_reg has no half and divides by the number of entries of each tensor, which is another
    scale of coef. Compared with the authors' code, ten steps of Adam for each of the three powers: the same weights.
    Source: Kumar et al. 2023, arXiv 2308.11958, equation 2.
    """

    NAME: ClassVar[str] = "l2_init"

    power: Literal["l2", "huber", "l1"] = "l2"
    """How the distance of an entry counts: half its square, half its square up to 1 and then linear, or itself."""

    def distance(self, now: Tensor, first: Tensor) -> Tensor:
        """Return the sum over the entries of one parameter."""
        if self.power == "l1":
            return (now - first).abs().sum()
        if self.power == "huber":
            return F.huber_loss(now, first, reduction="sum")
        return 0.5 * (now - first).square().sum()
