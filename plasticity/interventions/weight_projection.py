"""The base of projections: weights are moved into a set after every step of their optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context

from .every_step import EveryStep
from .weight_penalty import trained


@dataclass
class WeightProjection(EveryStep):
    """A projection of the weights of every network: :meth:`project` moves them in place after a step.

    It hangs on the optimizer, so it works in any loop and beside compiled updates. Weights that are exactly 0 stay so:
    masks hold. Logged is ``<network>/moved``, how far the projection moved all parameters, relative to their norm, and
    where past transitions can be looked at ``<network>/function_change``, what that made of the outputs.
    """

    KIND: ClassVar[str] = "projection"
    STATE: ClassVar[tuple[str, ...]] = (*EveryStep.STATE, "steps", "moved")

    every: int = 1
    """Steps of the optimizer between two projections."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.steps: dict[str, int] = {}
        self.moved: dict[str, float] = {}

    def rules(self) -> dict[str, bool]:
        """Return the rule that every projection has."""
        return {"every >= 1": self.every >= 1}

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Hang the projection on the optimizer of the network."""
        self._ctx, self.steps[name] = ctx, 0
        self.begin(name, network)
        self.hook(ctx.optimizer_of(name).register_step_post_hook(self.named(partial(self._after_step, name))))

    def begin(self, name: str, network: nn.Module) -> None:
        """Remember what the projection needs of a network at the start."""

    def project(self, name: str, network: nn.Module) -> None:
        """Move the weights of a network in place, without gradients; those that are 0 must stay 0."""
        raise NotImplementedError

    @torch.no_grad()
    def _after_step(self, name: str, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self.steps[name] += 1
        if self.steps[name] % self.every:
            return
        project = partial(self._project_masked, name)
        if not self.log_every or (self.updates + 1) % self.log_every:
            project()
            return
        before = {key: p.detach().clone() for key, p in trained(self.chosen[name]).items()}
        self.alter(self._ctx, name, project)
        after, old = trained(self.chosen[name]), torch._foreach_norm(list(before.values()))
        moved = torch._foreach_norm([after[key] - value for key, value in before.items()])
        self.moved[name] = float(torch.stack(moved).norm() / torch.stack(old).norm().clamp_min(1e-12))

    def _project_masked(self, name: str) -> None:
        """Project a network in which connections that do not exist are 0, whatever the step has made of them."""
        for parameter in trained(self.chosen[name]).values() if self._ctx.on_connections else ():
            if (exist := self._ctx.connections(parameter)) is not None:
                parameter.masked_fill_(~exist, 0)
        self.project(name, self.chosen[name])

    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return how far the last projection in an update that is logged moved every network."""
        return {f"{name}/moved": value for name, value in self.moved.items()}
