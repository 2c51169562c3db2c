"""Optimizer reset: forget what was gathered for a loss that is gone.

AdamRel: Ellis et al. 2024, *Adam on Local Time: Addressing Nonstationarity in RL with Relative Adam Timesteps*,
arXiv 2412.17113. Whole resets: Asadi et al. 2023, *Resetting the Optimizer in Deep RL*, arXiv 2306.17833.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from plasticity.callback import Context
from plasticity.structure.optimizers import all_parameters
from plasticity.surgery.optimizer_state import clear_state_, forget_, restart_

from .scheduled import Scheduled


@dataclass
class OptimizerReset(Scheduled):
    """Let optimizers start anew; weights stay.

    ``adamrel``: the step counter goes to 0 before the first update on every rollout, the moments stay. Adam then
    corrects old moments as if they were young: the first step after it is (1 - beta_2)^0.5 / (1 - beta_1) = 0.32 times
    as long (betas 0.9, 0.999), and the length comes back. ``full``: moments and counter, every 200 000 environment
    steps. Asadi et al. reset at each change of the target network; pass its period as ``every``, clock ``updates``.

    The authors' code of AdamRel was not to be had; twelve steps beside another's in PyTorch (itto4869/cleanrl_exp) are
    equal to the bit. An optimizer without a step counter is left as it is by ``adamrel``. LBFGS keeps one history,
    which ``full`` drops.
    """

    NAME: ClassVar[str] = "optimizer_reset"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "full": {"every": 200_000, "clock": "env_steps", "what": "all"},
        "adamrel": {"every": 1, "clock": "rollouts", "what": "step"},
    }

    preset: Literal["full", "adamrel"] = "full"
    """Defaults of the options that are None."""
    what: Literal["all", "moments", "step"] | None = None
    """Part of the optimizer's state to reset: moments and step counter, or one of the two."""

    def apply(self, ctx: Context) -> None:
        """Reset the state of all parameters of the networks, each once."""
        parameters = {id(p): p for network in self._networks.values() for p in network.parameters() if p.requires_grad}
        optimizers = list({id(o): o for o in ctx.optimizers.values()}.values())
        for optimizer in optimizers:
            for parameter in all_parameters(optimizer):
                if id(parameter) not in parameters:
                    continue
                if self.what == "all":
                    gradient = parameter.grad  # of the present weights, which stay
                    forget_([optimizer], parameter)
                    parameter.grad = gradient
                elif self.what == "step":
                    restart_(optimizer, parameter)
                else:
                    clear_state_([optimizer], parameter, torch.ones_like(parameter, dtype=torch.bool))
        often = self.clock in ("rollouts", "updates", "gradient_steps") and self.every == 1
        if often and self.counts:
            return
        because = (
            f"{self.trigger.reason} from now on" if often else self.trigger.reason
        )  # an event each would say no more
        details = {**self.occasion(), "because": because, "what": self.what, "tensors": len(parameters)}
        self.report(ctx, details, applications=1)
