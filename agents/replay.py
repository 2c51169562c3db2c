"""Replay memory in which the age of a transition is known without storing it.

A ring of rows on one device; one `add` writes one row of `num_envs` transitions. The clock counts calls of `add`, so
all transitions of a row share their time of insertion, and age = clock - time of insertion: the newest row has age 1
and the oldest age `num_rows`. Because rows are written in order, age and ring position determine each other:
row = (clock - age) mod ring length. Drawing by age therefore costs O(batch), whatever the size of the memory.
Named weights of age (`weigh`, `ages.py`) change which ages are replayed; without any, sampling is uniform.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ages import AgeWeight, draw_ages, probabilities


@dataclass
class Batch:
    """Transitions drawn from the memory; the first dimension of every field is the batch."""

    obs: Tensor
    action: Tensor
    reward: Tensor  # (batch,) float32
    next_obs: Tensor
    terminated: Tensor  # (batch,) bool; truncation is not kept, because a truncated transition bootstraps
    age: Tensor  # (batch,) int64, in calls of add; the newest is 1
    index: Tensor  # (batch,) int64, slot in the memory


class ReplayBuffer:
    """First in, first out memory of `capacity` transitions, sampled with replacement from a generator of its own.

    A row is written as a whole, so capacity is rounded down to a multiple of num_envs (`buffer.capacity` tells).
    Memory is reserved at once, but on the CPU the system provides each page when it is first written.
    """

    def __init__(
        self,
        capacity: int,
        obs_shape: Sequence[int],
        action_shape: Sequence[int],
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        obs_dtype: torch.dtype = torch.float32,
        action_dtype: torch.dtype = torch.float32,
    ) -> None:
        if num_envs < 1 or capacity < num_envs:
            raise ValueError(f"ReplayBuffer: capacity {capacity} must hold one row of num_envs {num_envs} >= 1")
        self.num_envs = num_envs
        self.ring_length = capacity // num_envs
        self.capacity = self.ring_length * num_envs
        self.clock = 0
        self.weights: dict[str, AgeWeight] = {}
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        fields = {
            "obs": (obs_shape, obs_dtype),
            "action": (action_shape, action_dtype),
            "reward": ((), torch.float32),
            "next_obs": (obs_shape, obs_dtype),
            "terminated": ((), torch.bool),
        }
        self.storage = {
            name: torch.empty((self.capacity, *shape), dtype=dtype, device=self.device)
            for name, (shape, dtype) in fields.items()
        }

    @property
    def num_rows(self) -> int:
        """Rows filled so far: the greatest age in the memory."""
        return min(self.clock, self.ring_length)

    def __len__(self) -> int:
        return self.num_rows * self.num_envs

    def __repr__(self) -> str:
        return f"ReplayBuffer({len(self)} of {self.capacity} transitions, num_envs={self.num_envs}, {self.device})"

    def add(self, transition: Any) -> None:
        """Write one row: `transition` has obs, action, reward, next_obs and terminated, each (num_envs, ...)."""
        start = (self.clock % self.ring_length) * self.num_envs
        for name, values in self.storage.items():
            row, given = values[start : start + self.num_envs], getattr(transition, name)
            if given.shape != row.shape:  # assigning would broadcast one environment over all of them
                raise ValueError(f"ReplayBuffer: {name} has shape {tuple(given.shape)}, expected {tuple(row.shape)}")
            row.copy_(given)
        self.clock += 1

    def sample(self, batch_size: int) -> Batch:
        """`batch_size` transitions, drawn with replacement."""
        index = self.draw(batch_size)
        fields = {name: values.index_select(0, index) for name, values in self.storage.items()}
        return Batch(**fields, age=self.age(index), index=index)

    def draw(self, batch_size: int) -> Tensor:
        """Slots (batch,) to replay: first an age, then one of the environments of that row."""
        if self.clock == 0:
            raise ValueError("ReplayBuffer: nothing to sample, the memory is empty")
        column = torch.randint(self.num_envs, (batch_size,), generator=self.generator, device=self.device)
        return self.slot(self.draw_ages(batch_size), column)

    def draw_ages(self, batch_size: int) -> Tensor:
        """Ages (batch,) in 1..num_rows, with probability proportional to the product of all weights."""
        return draw_ages(self.weights, self.num_rows, batch_size, self.generator)

    def weigh(self, name: str, weight: AgeWeight) -> None:
        """Sample in proportion to `weight`, a function of age, times all others; ValueError if the name is taken.

        `weight(age)` takes float64 ages, in calls of add, and returns weights in [0, 1]; it may have a closed form,
        `weight.sample(num_rows, batch_size, generator) -> ages`. Weights are not part of `state_dict()`: whoever sets
        one sets it again after resuming.
        """
        if name in self.weights:
            raise ValueError(f"ReplayBuffer already has the age weight {name!r}; take it off with unweigh({name!r})")
        self.weights[name] = weight

    def unweigh(self, name: str) -> None:
        """Take a weight off; nothing happens if there is none of that name."""
        self.weights.pop(name, None)

    def age_probabilities(self) -> Tensor:
        """Probability (num_rows,) float64 with which each age 1, 2, ... is replayed. O(num_rows)."""
        return probabilities(self.weights, self.num_rows, self.device)

    def slot(self, age: Tensor, column: Tensor) -> Tensor:
        """Slot of the transition that environment `column` wrote `age` calls of add ago."""
        return (self.clock - age) % self.ring_length * self.num_envs + column

    def age(self, index: Tensor) -> Tensor:
        """Age of a filled slot: the inverse of `slot`."""
        row = index // self.num_envs
        return (self.clock - 1 - row) % self.ring_length + 1

    def state_dict(self) -> dict[str, Any]:
        """A copy of the filled part, the clock and the generator."""
        storage = {name: values[: len(self)].clone() for name, values in self.storage.items()}
        layout = {"capacity": self.capacity, "num_envs": self.num_envs}
        return {**layout, "clock": self.clock, "storage": storage, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a memory of the same layout."""
        for name in ("capacity", "num_envs"):
            if state[name] != getattr(self, name):
                raise ValueError(f"ReplayBuffer: saved with {name} {state[name]}, this one has {getattr(self, name)}")
        for name, values in self.storage.items():
            saved = state["storage"][name]
            if saved.shape[1:] != values.shape[1:]:
                raise ValueError(f"ReplayBuffer: saved {name} {tuple(saved.shape[1:])}, not {tuple(values.shape[1:])}")
        self.clock = state["clock"]
        for name, values in self.storage.items():
            values[: len(self)].copy_(state["storage"][name])
        restore_generator(self.generator, state["generator"])


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue a generator from get_state(). CPU and CUDA generators differ: across them the seeded one is kept."""
    if state.numel() != generator.get_state().numel():
        message = f"the saved random state is not one of a {generator.device.type} generator; going on from the seed"
        warnings.warn(message, stacklevel=2)
        return
    generator.set_state(state.cpu())
