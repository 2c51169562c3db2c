"""The distance of a network from its target network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context

from .meter import Measured, Meter


def rms_distance(parameters: Iterable[Tensor], others: Iterable[Tensor]) -> Tensor:
    """Return the root mean square of the differences, 0-D float64, at least 0; shapes must agree one by one."""
    pairs = list(zip(parameters, others, strict=True))
    squares = torch.stack([(a - b).double().square().sum() for a, b in pairs])
    return (squares.sum() / sum(a.numel() for a, _ in pairs)).sqrt()


@dataclass
class TargetDistance(Meter):
    """Root mean square distance of the parameters from those of the target.

    Logs ``target_distance`` of every network that has a target; 0 right after a copy. Where targets are copied every so
    many updates, choose an ``every`` that is no multiple of that number: else all readings are of the same age.
    """

    NAME: ClassVar[str] = "target_distance"
    NEEDS: ClassVar[tuple[str, ...]] = ("targets",)

    def chosen(self, ctx: Context) -> dict[str, torch.nn.Module]:
        """Return the networks with a target; ValueError if ``networks`` matches none of them."""
        found = {name: network for name, network in super().chosen(ctx).items() if name in ctx.targets}
        if not found:
            there, wanted = ", ".join(ctx.targets), ", ".join(self.networks) or "any network"
            raise ValueError(f"TargetDistance finds no target of {wanted}; {ctx.name} has targets of {there}")
        return found

    def measure(self, ctx: Context) -> Measured:
        """Return the distance of every network that has a target."""
        return {
            name: {"target_distance": rms_distance(network.parameters(), ctx.targets[name].parameters())}
            for name, network in self.chosen(ctx).items()
        }
