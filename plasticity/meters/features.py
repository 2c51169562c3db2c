"""The likeness of features of consecutive states (DR3)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plasticity.callback import Context

from .churn import has_discrete_actions
from .meter import NO_FORWARD, Measured, Meter
from .policy import ACTOR, gaussian_parts, squashes


def feature_dots(features: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean dot product and the mean cosine of consecutive features, (pairs, features) each."""
    features, following = features.double(), following.double()
    dots = (features * following).sum(-1)
    lengths = features.norm(dim=-1) * following.norm(dim=-1)
    return dots.mean(), (dots / torch.where(lengths == 0, 1, lengths)).mean()


@dataclass
class FeatureDot(Meter):
    """Dot product of the features of consecutive states; grows with aliasing.

    Logs ``feature_dot`` and ``feature_cosine`` of past transitions: the input of the network's last Linear layer at
    (s, a) and at (s', a'), a' the actor's mean action for networks that take actions. A cosine near 1: bootstrapping
    from s' is bootstrapping from s. Source: Kumar et al. 2022 (DR3, arXiv 2112.04716), section 3.
    """

    NAME: ClassVar[str] = "feature_dot"
    NEEDS: ClassVar[tuple[str, ...]] = ("forward", "peek")

    num_states: int = 256
    """Pairs to look at."""
    squash: bool = True
    """Mean actions of Gaussians go through tanh, as in SAC; not those of PPO."""

    def measure(self, ctx: Context) -> Measured:
        """Return both of every network that could be run and ends in a Linear layer."""
        assert ctx.peek is not None
        batch = ctx.peek(self.num_states, self.generator)
        following = self._following(ctx, batch)
        found: dict[str, dict[str, Tensor | str]] = {}
        for name, network in self.chosen(ctx).items():
            if name not in ctx.forward:
                found[name] = dict.fromkeys(("feature_dot", "feature_cosine"), NO_FORWARD)
            elif name != ACTOR:
                run = partial(ctx.forward[name], network)
                dot, cosine = feature_dots(*(last_features(network, partial(run, b)) for b in (batch, following)))
                found[name] = {"feature_dot": dot, "feature_cosine": cosine}
        return found

    def _following(self, ctx: Context, batch: Any) -> Any:
        """Return the batch of next states, with the actor's actions there."""
        following = copy.copy(batch)
        object.__setattr__(following, "obs", batch.next_obs)
        if ACTOR in ctx.forward and not has_discrete_actions(batch):
            mean, log_std = gaussian_parts(ctx.forward[ACTOR](ctx.networks[ACTOR], following), batch)
            squash = self.squash and log_std is not None and squashes(ctx.networks[ACTOR])
            object.__setattr__(following, "action", mean.tanh() if squash else mean)
        return following


def last_features(network: nn.Module, run: Callable[[], Any]) -> Tensor:
    """Return the input of the Linear layer that ``run()`` calls last, (states, features); RuntimeError without one."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple) -> None:
        seen.append(args[0].detach())

    handles = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, nn.Linear)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise RuntimeError(f"{type(network).__name__} calls no Linear layer, whose input would be its features")
    return seen[-1].flatten(1)
