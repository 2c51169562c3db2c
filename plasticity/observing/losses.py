"""Passes of another loss: gradients that reached a network between two steps of its optimizer, and were thrown away."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

LOOKED_AT = 20
"""Optimizer steps in which it is looked for: a loop does so from its beginning, or never."""


class StrayPasses:
    """Notice, once, that a network's gradients were cleared after a pass, with no step of its optimizer in between.

    The passes of the actor's loss run through the critic, too; where only the critic's optimizer is watched, nothing
    else tells them from the critic's own. Accumulated gradients are not cleared and are no such case. One weight of the
    network is looked at, in the first ``LOOKED_AT`` steps.
    """

    def __init__(self, name: str, network: nn.Module, optimizer: Optimizer) -> None:
        self.name = name
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = (p for p in network.parameters() if p.requires_grad and id(p) in held)
        self._weight = next((p for p in trained if not is_lazy(p)), None)
        self._arrived, self._stepping, self._steps = False, False, 0
        self._handles: list[Any] = []
        if self._weight is not None:
            self._handles = [
                self._weight.register_hook(self._look),
                self._weight.register_post_accumulate_grad_hook(self._note),
                optimizer.register_step_pre_hook(self._begin),
            ]

    def step(self) -> None:
        """Take note of a step of any optimizer that is watched: what came before it is accounted for."""
        self._arrived = self._stepping = False
        self._steps += 1
        if self._steps >= LOOKED_AT:
            self.detach()

    def detach(self) -> None:
        """Take the hooks off; harmless if repeated."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, *_: Any) -> None:
        """Leave the passes within a step alone: those of a closure are the step's own."""
        self._stepping, self._arrived = True, False

    def _look(self, _: Tensor) -> None:
        """Look, before a gradient is added, whether the one before it is gone."""
        assert self._weight is not None
        gradient = self._weight.grad
        if self._arrived and (gradient is None or not gradient.any()):
            self._arrived = False
            self.detach()
            warnings.warn(
                f"passes of several losses reach {self.name} between two steps of its optimizer: those whose gradients "
                "are cleared without a step are left out. Most likely another network is trained through it, as an "
                "actor through its critic; to measure both, give watch() all networks by name and all optimizers, "
                "watch({'critic': critic, 'actor': actor}, [critic_optimizer, actor_optimizer])",
                RuntimeWarning,
                stacklevel=2,
            )

    def _note(self, weight: Tensor) -> None:
        """Note that a gradient has arrived, but one of zeros, as if cleared, or one whose step a scaler will skip."""
        gradient = None if self._stepping else weight.grad
        self._arrived = gradient is not None and bool(gradient.any()) and bool(gradient.isfinite().all())
