"""The memory of an on-policy agent: its last steps, in order, and the quantities learned from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .replay import Batch
from .rows import writable, write


@dataclass
class Experience:
    """Steps to learn from; the first dimension of every field is the batch."""

    obs: Tensor
    action: Tensor  # as sampled: a Gaussian's is not clipped to the bounds
    log_prob: Tensor  # (batch,) of the policy that acted
    value: Tensor  # (batch,) of the critic at that time
    advantage: Tensor  # (batch,)
    target: Tensor  # (batch,) which the critic learns
    values: Tensor | None = None  # (batch, critics) of each critic at that time, where there are several
    turn: Tensor | None = None  # (batch,) the one of them that learns from the step

    def __getitem__(self, index: Tensor) -> "Experience":
        """The steps at ``index``."""
        return Experience(**{name: field[index] for name, field in self.known().items()})

    def known(self) -> dict[str, Tensor]:
        """Return the fields that there are, by name."""
        return {name: field for name, field in vars(self).items() if field is not None}


class Rollout:
    """The last steps of all environments, at most `num_steps` rows of `num_envs`, in the order in which they were made.

    Successors are kept for every step: where an episode was cut, the value of the true successor is needed, and
    comparing them with the next row finds every cut, also that of an environment which was simply reset.
    """

    def __init__(
        self,
        num_steps: int,
        num_envs: int,
        obs_shape: Sequence[int],
        action_shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        obs_dtype: torch.dtype = torch.float32,
        action_dtype: torch.dtype = torch.float32,
    ) -> None:
        if num_steps < 1 or num_envs < 1:
            raise ValueError(f"Rollout needs num_steps >= 1 and num_envs >= 1; got {num_steps} and {num_envs}")
        self.num_steps, self.num_envs = num_steps, num_envs
        self.num_rows = 0
        """Rows filled since the last `clear`."""
        self.num_known = 0
        """Rows that hold a step: `clear` leaves them to `peek`, until they are overwritten."""
        layout = {
            "obs": (obs_shape, obs_dtype),
            "action": (action_shape, action_dtype),
            "reward": ((), torch.float32),
            "next_obs": (obs_shape, obs_dtype),
            "terminated": ((), torch.bool),
            "truncated": ((), torch.bool),
        }
        self.storage = {
            name: torch.zeros((num_steps, num_envs, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in layout.items()
        }
        self._device = torch.device(device)
        self._bind()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()  # a copy has memory of its own

    def _bind(self) -> None:
        """Take views of the memory, to which rows are written."""
        self._rows = writable(self.storage)

    @property
    def full(self) -> bool:
        """Return whether all rows are filled."""
        return self.num_rows == self.num_steps

    def __len__(self) -> int:
        return self.num_rows * self.num_envs

    def __repr__(self) -> str:
        return f"Rollout({self.num_rows} of {self.num_steps} steps, num_envs={self.num_envs})"

    def add(self, **row: Any) -> None:
        """Write one row: obs, action, reward, next_obs, terminated and truncated, each (num_envs, ...).

        On the CPU arrays of numpy are written the fastest.
        """
        time = self.num_rows
        if time == self.num_steps:
            raise RuntimeError(f"{self} is full: learn from it and clear it before the next step")
        write(self._rows, time, row, "Rollout")
        self.num_rows = time = time + 1
        if time > self.num_known:
            self.num_known = time

    def clear(self) -> None:
        """Begin anew; the steps so far are known until they are overwritten."""
        self.num_rows = 0

    def flat(self, name: str) -> Tensor:
        """Return all of one field, (num_steps * num_envs, ...): the environments of a step side by side."""
        return self.storage[name].flatten(0, 1)

    def cut(self) -> Tensor:
        """Return where the next row does not go on from a step that did not terminate: (num_steps, num_envs) bool.

        That is at a truncation, in the last row, and where an environment was reset without having ended its episode.
        """
        differs = self.storage["next_obs"][:-1] != self.storage["obs"][1:]
        cut = self.storage["truncated"].clone()
        cut[:-1] |= differs.flatten(2).any(-1)
        cut[-1] = True
        return cut & ~self.storage["terminated"]

    def peek(self, num: int, generator: torch.Generator) -> Batch:
        """Return `num` of the known steps, drawn evenly with replacement from `generator`; nothing changes.

        Ages count rows, the newest is 1. Raises ValueError before the first step.
        """
        if self.num_known == 0:
            raise ValueError(f"{self}: nothing to look at yet: wait for the first step")
        count = self.num_known * self.num_envs
        index = torch.randint(count, (num,), generator=generator, device=generator.device).to(self._device)
        fields = ("obs", "action", "reward", "next_obs", "terminated")
        obs, action, reward, next_obs, terminated = (self.flat(name)[index] for name in fields)
        age = (self.num_rows - 1 - index // self.num_envs) % self.num_known + 1
        return Batch(obs, action, reward, next_obs, terminated, age=age, index=index)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the rows that hold a step."""
        rows = {name: values[: self.num_known].clone() for name, values in self.storage.items()}
        return {"num_steps": self.num_steps, "num_envs": self.num_envs, "num_rows": self.num_rows, "rows": rows}

    def fits(self, state: dict[str, Any]) -> bool:
        """Return whether `state_dict()` came from a rollout of as many steps and environments."""
        return (state["num_steps"], state["num_envs"]) == (self.num_steps, self.num_envs)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()` of a rollout of the same layout; ValueError for another one."""
        if not self.fits(state):
            raise ValueError(f"Rollout: saved with {state['num_steps']} steps of {state['num_envs']}, this is {self}")
        self.num_known = len(state["rows"]["reward"])
        self.num_rows = state.get("num_rows", self.num_known)  # 0.1.0 saved the filled rows only
        for name, values in self.storage.items():
            values[: self.num_known].copy_(state["rows"][name])


def gae(
    reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, cut: Tensor, gamma: float, lam: float
) -> Tensor:
    """Return generalised advantage estimates, (num_steps, num_envs) like all arguments (Schulman et al. 2016, eq. 16).

        delta_t = reward_t + gamma * next_value_t * (1 - terminated_t) - value_t
        A_t     = delta_t + gamma * lam * A_{t+1}, without the second term after a step that terminated or was cut

    `next_value` is the value of the true successor: a cut (`Rollout.cut`) bootstraps, but no advantage of another
    episode flows back over it.
    """
    delta = reward + gamma * next_value * ~terminated - value
    decay = gamma * lam * ~(terminated | cut)
    if delta.device.type == "cpu" and delta.shape[1] == 1:  # numbers of Python: nothing is faster for one by one
        found, last = delta.flatten().tolist(), 0.0
        for t, factor in enumerate(reversed(decay.flatten().tolist()), 1):
            found[-t] = last = found[-t] + factor * last
        return torch.tensor(found, dtype=delta.dtype, device=delta.device).view_as(delta)
    if delta.device.type == "cpu":
        advantage = list(delta.numpy())
        following = np.zeros_like(advantage[0])
        with np.errstate(all="ignore"):  # as torch: what is not finite is found in the losses
            for row, factor in zip(reversed(advantage), reversed(decay.numpy()), strict=True):
                following = np.add(row, factor * following, out=row)
        return delta
    advantage, following = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        following = torch.addcmul(delta[t], decay[t], following, out=advantage[t])
    return advantage
