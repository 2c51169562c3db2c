"""The policy on past states: how random it is, and how many different things it does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import unwrap

from .churn import has_discrete_actions
from .meter import Measured, Meter

ACTOR = "actor"
"""The network whose outputs are those of a policy, in agents that have one."""

DETERMINISTIC = "the policy is deterministic, its outputs are one action"


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Return the mean over states of the entropy of a diagonal Gaussian, (states, dimensions), per dimension."""
    return (log_std.double() + 0.5 * math.log(2 * math.pi * math.e)).mean()


def categorical_entropy(logits: Tensor) -> Tensor:
    """Return the mean over states of the entropy of a softmax, (states, actions), over its maximum; in [0, 1]."""
    return torch.special.entr(logits.double().softmax(-1)).sum(-1).mean() / math.log(logits.shape[-1])


def greedy_diversity(outputs: Tensor) -> Tensor:
    """Return the entropy of the greedy actions over states, (states, actions), over its maximum; 0: always the same.

    NaN where an output is.
    """
    counts = torch.bincount(outputs.argmax(-1), minlength=outputs.shape[-1]).double()
    shares = counts / counts.sum()
    entropy = torch.special.entr(shares).sum() / math.log(outputs.shape[-1])
    return torch.where(outputs.isnan().any(), torch.nan, entropy)


def gaussian_parts(outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the mean action and the log of its deviation, (states, dimensions) each; None where there is none."""
    size = batch.action.shape[-1]
    return outputs[:, :size], outputs[:, size : 2 * size] if outputs.shape[1] == 2 * size else None


def squashes(network: nn.Module) -> bool:
    """Return whether a policy's actions go through tanh: unless the network has ``squashed = False``."""
    return bool(getattr(unwrap(network), "squashed", True))


@dataclass
class Policy(Meter):
    """Entropy of the policy, and diversity of its greedy actions over states.

    Logs ``policy_entropy`` of the network ``actor``: of discrete actions over its maximum, in [0, 1]; of Gaussians in
    nats per dimension, before squashing. Logs ``action_diversity``: of discrete actions, also of a Q network, the
    entropy of the greedy actions over states over its maximum; else the mean deviation over states of the mean action
    (squashed, where the policy squashes). Near 0: one action for all states. Source: Schulman et al. 2017 (arXiv
    1707.06347), section 5, for the entropy.
    """

    NAME: ClassVar[str] = "policy"
    NEEDS: ClassVar[tuple[str, ...]] = ("forward", "peek")

    num_states: int = 256
    """States to look at."""
    squash: bool = True
    """Mean actions of Gaussians go through tanh, as in SAC; not those of PPO."""

    def measure(self, ctx: Context) -> Measured:
        """Return both, of the actor, or of every network with an output per action."""
        assert ctx.peek is not None
        batch = ctx.peek(self.num_states, self.generator)
        found: dict[str, dict[str, Tensor | str]] = {}
        for name, network in self.chosen(ctx).items():
            if name not in ctx.forward or (ACTOR in ctx.forward and name != ACTOR):
                continue
            outputs = ctx.forward[name](network, batch)
            if has_discrete_actions(batch) and outputs.dim() == 2 and outputs.shape[1] > 1:
                found[name] = {"action_diversity": greedy_diversity(outputs)}
                if name == ACTOR:
                    found[name]["policy_entropy"] = categorical_entropy(outputs)
            elif not has_discrete_actions(batch):
                mean, log_std = gaussian_parts(outputs, batch)
                squash = self.squash and log_std is not None and squashes(network)
                mean = mean.tanh() if squash else mean
                found[name] = {"action_diversity": mean.double().std(0, correction=0).mean()}
                found[name]["policy_entropy"] = DETERMINISTIC if log_std is None else gaussian_entropy(log_std)
        return found
