"""Successor images of a replay buffer, stored once: most are the observation of the next transition."""

from typing import Any

import torch
from torch import Tensor


class Successors:
    """Index of successor observations in a ring of images, with a side store for those that the ring does not hold.

    `where` (capacity,) int64 has the place of each transition's successor: a slot of the ring, or -1 - s for slot s of
    the side store. The side store holds the successors of the newest transition of each environment, until the next row
    arrives, and of the last one of each episode; it grows as needed.
    """

    def __init__(self, obs: Tensor, num_envs: int) -> None:
        self.obs = obs
        self.where = torch.zeros(len(obs), dtype=torch.int64, device=obs.device)
        self.side = torch.zeros((2 * num_envs, *obs.shape[1:]), dtype=obs.dtype, device=obs.device)
        self.free = list(range(len(self.side)))

    def write(self, row: slice, previous: slice, continues: Tensor, next_obs: Tensor) -> None:
        """Store the successors of a new `row`; for `previous`, where it `continues` (N,) bool, they are in that row."""
        slots = torch.arange(row.start, row.stop, device=self.obs.device)
        self._release(self.where[previous][continues])
        self.where[previous] = torch.where(continues, slots, self.where[previous])
        self._release(self.where[row])  # of the transitions that are overwritten
        side = torch.tensor(self._claim(len(slots)), device=self.obs.device)
        self.side[side] = next_obs.to(self.side)
        self.where[row] = -1 - side

    def read(self, index: Tensor) -> Tensor:
        """Return the successor observations (batch, *obs_shape) of the transitions in these slots."""
        where = self.where[index]
        aside = (where < 0).view(-1, *[1] * (self.obs.dim() - 1))
        return torch.where(
            aside,
            self.side.index_select(0, (-1 - where).clamp_min(0)),
            self.obs.index_select(0, where.clamp_min(0)),
        )

    def _release(self, where: Tensor) -> None:
        self.free += (-1 - where[where < 0]).tolist()

    def _claim(self, count: int) -> list[int]:
        """Return free slots of the side store, which doubles when there are too few."""
        if len(self.free) < count:
            self.free += range(len(self.side), 2 * len(self.side))
            self.side = torch.cat([self.side, torch.zeros_like(self.side)])
        return [self.free.pop() for _ in range(count)]

    def state_dict(self, filled: int) -> dict[str, Any]:
        """Return the index of the first `filled` slots, and the side store."""
        return {"where": self.where[:filled].clone(), "side": self.side.clone(), "free": list(self.free)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.where.zero_()
        self.where[: len(state["where"])] = state["where"].to(self.where)
        self.side, self.free = state["side"].clone().to(self.side), list(state["free"])
