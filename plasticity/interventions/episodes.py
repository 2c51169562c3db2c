"""Records of episodes for LEAST, step by step: of the last ones and of those under way, all on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_JUDGED = 10_000
"""Steps of an episode beyond which nothing is recorded or judged, which bounds the memory of endless tasks."""
NAN = math.nan


class History:
    """Q and G of the last episodes by step: (2, steps, capacity), a ring of columns, NaN where an episode had ended.

    Medians are taken over the one row that is asked for, 10 microseconds at 250 episodes: nothing is recomputed at
    the end of an episode. An episode longer than all before makes the table longer.
    """

    def __init__(self, capacity: int) -> None:
        self.table = torch.full((2, 1, capacity), NAN, device="cpu")
        self.count = 0

    def push(self, episode: Tensor) -> None:
        """Add an episode (2, length), in place of the oldest once full."""
        length, missing = episode.shape[1], episode.shape[1] - self.table.shape[1]
        if missing > 0:
            longer = torch.full((2, max(missing, self.table.shape[1]), self.table.shape[2]), NAN, device="cpu")
            self.table = torch.cat([self.table, longer], 1)
        column = self.table[:, :, self.count % self.table.shape[2]]
        column[:, :length] = episode
        column[:, length:] = NAN
        self.count += 1

    def rows(self, steps: Tensor, window: int) -> Tensor:
        """Return Q and G (2, n, k) of the last k = min(window, count) episodes at the given steps (n,)."""
        capacity = self.table.shape[2]
        newest = (self.count - 1 - torch.arange(min(window, self.count, capacity), device="cpu")) % capacity
        known = self.table[:, steps.clamp_max(self.table.shape[1] - 1)][:, :, newest]
        return known.masked_fill((steps >= self.table.shape[1])[:, None], NAN)


class Running:
    """The episodes under way, one per environment: Q and G so far (2, n, steps), NaN beyond the present step."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.values = torch.full((2, num_envs, 64), NAN, device="cpu")
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device="cpu")
        self.exempt = torch.zeros(num_envs, dtype=torch.bool, device="cpu")
        self.last_q, self.last_reward = torch.zeros(2, num_envs, device="cpu")

    def write(self, q: Tensor, g: Tensor, reward: Tensor) -> None:
        """Append one step, tensors (n,), to every episode."""
        if int(self.steps.max()) >= self.values.shape[2] and self.values.shape[2] < MAX_JUDGED:
            self.values = torch.cat([self.values, torch.full_like(self.values, NAN)], 2)
        env = (self.steps < min(MAX_JUDGED, self.values.shape[2])).nonzero().flatten()
        self.values[:, env, self.steps[env]] = torch.stack([q[env], g[env]])
        self.last_q, self.last_reward = q, reward.float().cpu()
        self.steps += 1

    def take(self, index: int) -> tuple[int, Tensor]:
        """Return the length of an episode and its values (2, length), and begin a new one."""
        length = int(self.steps[index])
        episode = self.values[:, index, : min(length, MAX_JUDGED)].clone()
        self.values[:, index] = NAN
        self.steps[index] = 0
        return length, episode

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of all tensors."""
        return {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value.clone())
