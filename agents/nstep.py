"""n-step returns (Sutton 1988), cut where an episode ends."""

import torch
from torch import Tensor


def n_step_return(reward: Tensor, ended: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the discounted sum of n rewards, up to and including the first step that ended an episode, and its length.

    reward, ended: (batch, n), n successive steps, the oldest first; steps after an end are ignored. Returns
    sum_{k < m} gamma^k r_k, (batch,), and m, (batch,) int64 in 1..n, the number of steps summed: the bootstrap value
    behind them is discounted by gamma^m.
    """
    before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)  # true where an earlier step ended
    counts = before.cumsum(1) == 0
    powers = gamma ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)
    return (torch.where(counts, reward, 0) * powers).sum(1), counts.sum(1)
