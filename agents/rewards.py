"""Scale rewards to the spread of their discounted sums, so that one learning rate and one clip range fit every task."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .normalise import RunningNorm, is_one_row


class ReturnScaler(nn.Module):
    """Scale rewards: reward / sqrt(var + eps), clipped; var is the running variance of a discounted return.

    That return, of each environment, is R <- gamma * R + reward, forgotten where an episode ends. Dividing by its
    spread makes values of the order of 1; nothing is subtracted, which would change what is optimal. Engstrom et al.
    2020, arXiv 2005.12729, describe it as part of what PPO implementations do; VecNormalize of stable-baselines3
    computes the same numbers.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float = 10.0) -> None:
        super().__init__()
        self.gamma, self.clip = gamma, clip
        self.moments = RunningNorm(())
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))

    def update(self, reward: Tensor, done: Tensor) -> Tensor:
        """Take in one step, reward and done both (num_envs,), and return the scaled rewards in their dtype."""
        returns = self._buffers["returns"]
        if is_one_row(reward) and returns.is_cpu:  # type: ignore[union-attr]
            return self._update_one(returns, reward, bool(done))
        with torch.no_grad():
            self.returns.mul_(self.gamma).add_(reward)
            self.moments.update(self.returns)
            self.returns.masked_fill_(done, 0.0)
            return self(reward)

    def _update_one(self, returns: Any, reward: Tensor, done: bool) -> Tensor:
        """Return what `update` returns, for one environment on the CPU, in a fraction of the time."""
        moments, given, kept = self.moments, reward.item(), returns.numpy()
        so_far = kept.item() * self.gamma + given
        var = moments.update_by_number(so_far)
        kept[0] = 0.0 if done else so_far
        scaled = given / math.sqrt(var + moments.eps)
        return reward.new_full((1,), min(max(scaled, -self.clip), self.clip))

    def forward(self, reward: Tensor) -> Tensor:
        scale = (self.moments.var + self.moments.eps).rsqrt()
        return (reward * scale).clamp(-self.clip, self.clip).to(reward.dtype)
