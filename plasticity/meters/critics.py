"""Critics: whether they agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context

from .meter import Measured, Meter


def disagreement(values: Tensor) -> Tensor:
    """Return the mean over states of the deviation among critics, (critics, states), over the mean |value|."""
    values = values.double()
    scale = values.abs().mean()
    return values.std(0, correction=0).mean() / torch.where(scale == 0, 1, scale)


@dataclass
class CriticDisagreement(Meter):
    """Deviation among the critics on past transitions, over the mean |value|.

    Logs ``critic_disagreement`` of the first critic. 0: the critics have become one, and the smaller of two protects
    from nothing. Critics are the networks that match ``networks``, ``critic*`` by default. Source: Fujimoto et al. 2018
    (TD3, arXiv 1802.09477), section 4, for why there are two.
    """

    NAME: ClassVar[str] = "critic_disagreement"
    NEEDS: ClassVar[tuple[str, ...]] = ("forward", "peek")

    networks: tuple[str, ...] = ("critic*",)
    """Names or globs of the critics."""
    num_states: int = 256
    """Transitions to look at."""

    def on_train_start(self, ctx: Context) -> None:
        """Check that there are two critics."""
        super().on_train_start(ctx)
        if len(critics := self.chosen(ctx)) < 2:
            raise ValueError(f"CriticDisagreement needs two critics; {ctx.name} has {', '.join(critics)}")

    def measure(self, ctx: Context) -> Measured:
        """Return the disagreement, under the name of the first critic."""
        assert ctx.peek is not None
        batch, critics = ctx.peek(self.num_states, self.generator), self.chosen(ctx)
        values = torch.stack([ctx.forward[name](net, batch).flatten() for name, net in critics.items()])
        return {next(iter(critics)): {"critic_disagreement": disagreement(values)}}
