"""Scale rewards to the spread of their discounted sums, so that one learning rate and one clip range fit every task."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import native
from .normalise import RunningNorm


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
        self._viewed: tuple[int, Any] = 0, None
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))

    def update(self, reward: Any, done: Any) -> Any:
        """Take in one step, reward and done both (num_envs,), and return the scaled rewards in their dtype.

        Both are tensors, or both arrays, where the statistics are on the CPU.
        """
        if isinstance(reward, np.ndarray):
            return self._update_arrays(reward, done)
        with torch.no_grad():
            self.returns.mul_(self.gamma).add_(reward)
            self.moments.update(self.returns)
            self.returns.masked_fill_(done, 0.0)
            return self(reward)

    def _array(self) -> np.ndarray:
        """Return the discounted returns as an array of the buffer's memory."""
        buffer: Any = self._buffers["returns"]
        if buffer.data_ptr() != self._viewed[0]:  # it may be exchanged
            self._viewed = buffer.data_ptr(), buffer.numpy()
        return self._viewed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_viewed": (0, None)}  # a copy has a buffer of its own

    def _update_arrays(self, reward: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Return what `update` returns, in a fraction of the time."""
        moments: Any = self._modules["moments"]  # attributes of a module take ten times as long
        returns = self._array()
        if native.loaded is not None and len(reward) == 1:
            scaled, statistics = np.empty_like(reward), moments._arrays()[:3]
            if native.loaded.scale(returns, *statistics, reward, scaled, done[0], self.gamma, moments.eps, self.clip):
                return scaled
        if len(reward) > 1:
            returns *= self.gamma
            returns += reward
            moments.update_by_rows(returns)
            returns[done] = 0.0
            scale = 1.0 / math.sqrt(moments.variance() + moments.eps)
            return np.clip(reward * scale, -self.clip, self.clip).astype(reward.dtype)
        given = reward.item()
        so_far = returns.item() * self.gamma + given
        var = moments.update_by_number(so_far)
        returns[0] = 0.0 if done[0] else so_far
        scaled = given / math.sqrt(var + moments.eps)
        return np.array([min(max(scaled, -self.clip), self.clip)], reward.dtype)

    def factor(self) -> float:
        """Return the factor of rewards, but for those that are clipped."""
        return float((self.moments.var + self.moments.eps).rsqrt())

    def forward(self, reward: Tensor) -> Tensor:
        scale = (self.moments.var + self.moments.eps).rsqrt()
        return (reward * scale).clamp(-self.clip, self.clip).to(reward.dtype)


class FittedRewards(ReturnScaler):
    """Scale rewards such that their discounted sums have a spread of 1 and lie in [-bound, bound]: all of those seen.

    The divisor is max(sqrt(var + eps), max |R| / bound), R as for `ReturnScaler`: for critics on a grid of returns (Lee
    et al. 2025, SimbaV2, arXiv 2502.15280). In their code the R of an episode's last step is its reward alone, which
    the next episode begins with.
    """

    def __init__(self, num_envs: int, gamma: float, bound: float = math.inf) -> None:
        super().__init__(num_envs, gamma, math.inf)
        self.bound = bound
        self.register_buffer("largest", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def follow(self, reward: Tensor, done: Tensor) -> None:
        """Take in one step, reward and done both (num_envs,)."""
        self.returns.mul_(self.gamma).add_(reward)
        self.moments.update(self.returns)
        torch.maximum(self.largest, self.returns.abs().amax(), out=self.largest)
        self.returns.masked_fill_(done, 0.0)

    def scale(self) -> Tensor:
        """Return the factor of rewards, 0-D."""
        return 1 / torch.maximum((self.moments.var + self.moments.eps).sqrt(), self.largest / self.bound)
