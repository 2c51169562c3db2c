"""n-step returns (Sutton 1988), cut where an episode ends."""

import torch
from torch import Tensor


def n_step_return(reward: Tensor, ended: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Sum the discounted rewards of the next n steps, up to and including the first one that ended.

    reward, ended: (batch, n), of n steps in a row, the oldest first; what comes after an end is not read. Returns
    sum_{k < m} gamma^k r_k, (batch,), and m, (batch,) int64 in 1..n: the number of steps summed. The value that is
    bootstrapped after them counts gamma^m.
    """
    before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], 1)  # whether an earlier step ended
    counts = before.cumsum(1) == 0
    powers = gamma ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)
    return (torch.where(counts, reward, 0) * powers).sum(1), counts.sum(1)
