"""Hare and Tortoise: a fast network that goes back, now and then, to the running average of its own weights.

Lee et al. 2024, *Slow and Steady Wins the Race: Maintaining Plasticity with Hare and Tortoise Networks*,
arXiv 2406.02596.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from plasticity.callback import Context
from plasticity.value_types import require

from .anchors import Anchors
from .intervention import numbers_in
from .whole import RESET_SCHEDULE, WholeNetwork


@dataclass
class HareTortoise(WholeNetwork):
    """Set the weights back to their running average.

    After every step slow <- momentum * slow + (1 - momentum) * fast; at every application fast <- slow. The optimizer's
    state stays. Unlike a reset it keeps what was learned slowly.

    The paper predicts with the slow network; here the agent acts with the fast one, as it does without the method.
    Parameters that training added after the start have no average and stay.

    Compared with the authors' code (dojeon-ai/Hare-Tortoise), averages and the first reset agree to 2e-16. Then they
    part: after a reset fast and slow share memory there, so that the next step moves the average as far as the weights;
    here it moves by 1 - momentum of that, as in the paper. The code also averages buffers.
    """

    NAME: ClassVar[str] = "hare_tortoise"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {"paper": {**RESET_SCHEDULE, "momentum": 0.999, "clear": False, "sync_targets": False}}

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None; the schedule is that of ``reset``, the paper's depends on the task."""
    momentum: float | None = None
    """Share of the average that stays in one step, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("HareTortoise", {"momentum in [0, 1]": 0 <= (self.momentum or 0.0) <= 1}, self)
        self.slow = Anchors()

    def prepare(self, ctx: Context) -> None:
        """Begin the averages at the present weights."""
        super().prepare(ctx)
        self.slow = Anchors.at(self._networks)

    def parameters_added(self) -> int:
        """Return how many numbers the averages hold."""
        return numbers_in(self.slow)

    def follow_(self, network: str, parameters: Mapping[str, Tensor]) -> None:
        """Move the averages."""
        assert self.momentum is not None
        self.slow.follow_(network, parameters, 1 - self.momentum)

    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Copy the averages into the network."""
        known = {n: p for n, p in parameters.items() if self.slow.fits(network, n, p)}
        for name, parameter in known.items():
            parameter.copy_(self.slow[network][name])
        return {"tensors": len(known)}

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and the averages."""
        return {**super().state_dict(), "slow": self.slow.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.slow.load_state_dict(state["slow"], self._networks)
