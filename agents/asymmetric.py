"""Several small critics beside one policy: AsyPPO (arXiv 2510.01656, ICLR 2026; no code is public).

Critic m learns from its own share of the experience, the mean of all is the value from which advantages are made, and
their spread sigma says where they know nothing of each other: a state of the lowest sigma has nothing to teach, one of
the highest is noise to explore in. With I^A = 0 for the lowest share of a minibatch and I^H = 0 for the highest,

    J = mean [I^A min(ratio A, clip(ratio) A) + entropy_coef I^H H(pi)]

The paper splits the answers to each prompt among the critics; here, where there are no prompts, environments are split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class CriticsConfig:
    """The options of PPO for its critics."""

    critic_hidden: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers; None: `hidden`, or what is usual for a critic of the network."""
    num_critics: int = 1
    """Critics, whose mean is the value; AsyPPO: 2, each a quarter as wide as the policy."""
    critic_split: bool = False
    """Let every critic learn from environments of its own, in turn; otherwise all learn from all."""
    critics_alike: bool = False
    """Let all critics begin with the same weights, as those of a language model do."""
    advantage_mask: float = 0.0
    """Share of a minibatch, the states on which critics agree most, whose advantages count as 0; AsyPPO: 0.2."""
    entropy_filter: float = 0.0
    """Share of a minibatch, the states on which critics differ most, that gets no entropy bonus; AsyPPO: 0.2."""

    def critic_rules(self) -> dict[str, bool]:
        """Return the rules of these options."""
        several = self.num_critics > 1
        return {
            "num_critics >= 1": self.num_critics >= 1,
            "advantage_mask in [0, 1)": 0 <= self.advantage_mask < 1,
            "entropy_filter in [0, 1)": 0 <= self.entropy_filter < 1,
            "num_critics >= 2 for a split, mask or filter": several
            or not (self.critic_split or self.critics_alike or self.advantage_mask or self.entropy_filter),
        }


def critic_names(num: int) -> list[str]:
    """Return the names of the critics: critic, or critic_1, critic_2 and so on."""
    return ["critic"] if num == 1 else [f"critic_{i + 1}" for i in range(num)]


def all_values(networks: Mapping[str, nn.Module], names: Sequence[str], obs: Tensor) -> Tensor:
    """Return the values of all critics, (batch, critics)."""
    return torch.stack([networks[name](obs) for name in names], -1)


def turns(num_envs: int, num_critics: int, like: Tensor) -> Tensor:
    """Return which critic learns from each step, (steps,) int64, where environments lie side by side in ``like``."""
    return torch.arange(len(like), device=like.device) % num_envs % num_critics


def own_mean(losses: Tensor, turn: Tensor | None) -> Tensor:
    """Return the sum over critics of their mean loss, 0-D, of losses (batch, critics).

    ``turn``: the one critic that learns from each step, (batch,); None: all do. A critic without a step adds 0.
    """
    if turn is None:
        return losses.mean(0).sum()
    own = turn[:, None] == torch.arange(losses.shape[1], device=losses.device)
    return ((losses * own).sum(0) / own.sum(0).clamp(min=1)).sum()


def sigma_of(values: Tensor) -> Tensor:
    """Return sigma, (batch,): the standard deviation among critics, with divisor M, of values (batch, critics)."""
    return values.std(-1, correction=0)


def without(sigma: Tensor, share: float, highest: bool = False) -> Tensor:
    """Return 0 for the floor(share * batch) lowest, or highest, of sigma (batch,), and 1 for the others."""
    rank = sigma.argsort(stable=True).argsort()
    rank = len(sigma) - 1 - rank if highest else rank
    return (rank >= int(share * len(sigma) + 1e-9)).to(sigma.dtype)
