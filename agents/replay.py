"""Replay memory in which the age of a transition is known without storing it.

A ring of rows on one device; one `add` writes one row of `num_envs` transitions. The clock counts calls of `add`, so
all transitions of a row share their time of insertion, and age = clock - time of insertion: the newest row has age 1
and the oldest age `num_rows`. Because rows are written in order, age and ring position determine each other:
row = (clock - age) mod ring length. Drawing by age therefore costs O(batch), whatever the size of the memory.
Named weights of age (`weigh`, `ages.py`) change which ages are replayed; without any, sampling is uniform.
Priorities (`priorities.py`) change which transitions are; both together multiply.
As rows are in order, the steps that follow a transition are in the following rows: n-step returns (`nstep.py`) are
summed when they are sampled, and an image that is also the next row's observation is stored once (`successors.py`).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ages import AgeFunction, draw_ages, multiply, probabilities
from .inputs import Chosen
from .nstep import n_step_return
from .priorities import Priorities
from .reserve import reserve
from .rows import as_tensor, require_shape, row_of, writable, write
from .successors import Successors


@dataclass
class Batch:
    """Transitions drawn from the memory; the first dimension of every field is the batch."""

    obs: Tensor
    action: Tensor
    reward: Tensor  # (batch,) float32; of n steps: their discounted sum
    next_obs: Tensor  # after the step, or after the last of n steps
    terminated: Tensor  # (batch,) bool, of the same step; one that was truncated bootstraps
    age: Tensor  # (batch,) int64, in calls of add; the newest is 1
    index: Tensor  # (batch,) int64, slot in the memory
    discount: Tensor | None = None  # (batch,) gamma^m of the m steps summed, where there are several
    weight: Tensor | None = None  # (batch,) importance weight of the loss, where draws were prioritised


class ReplayBuffer:
    """First in, first out memory of `capacity` transitions, sampled with replacement from a generator of its own.

    A row is written as a whole, so capacity is rounded down to a multiple of num_envs (`buffer.capacity` tells).
    Memory is reserved at once, but on the CPU the system provides each page when it is first written: a RuntimeWarning
    tells of one that the machine does not have. Raises MemoryError where the device refuses it, ValueError for a
    capacity below one row and for n_step below 1.

    `n_step` > 1 replays sums of up to n rewards, discounted by `gamma`; a sum stops at the end of an episode and at
    the newest row. `priorities` (of the same capacity) draws by error. Both n-step sums and images, which are uint8
    and three-dimensional, need every row to go on where the one before it ended, or an episode to have ended. Where
    it does neither, as after a reset in mid-episode, the row before counts as truncated.
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
        n_step: int = 1,
        gamma: float = 1.0,
        priorities: Priorities | None = None,
    ) -> None:
        if num_envs < 1 or capacity < num_envs:
            raise ValueError(f"ReplayBuffer: capacity {capacity} must hold one row of num_envs {num_envs} >= 1")
        if n_step < 1:
            raise ValueError(f"ReplayBuffer: n_step counts the rewards of a return, at least 1; got {n_step}")
        self.num_envs, self.n_step, self.gamma = num_envs, n_step, gamma
        self.ring_length = capacity // num_envs
        self.capacity = self.ring_length * num_envs
        self.clock = 0
        self.weights: dict[str, AgeFunction] = {}
        self.device = torch.device(device)
        self._on_cpu = self.device.type == "cpu"
        self.generator = torch.Generator(self.device).manual_seed(seed)
        fields = {
            "obs": (obs_shape, obs_dtype),
            "action": (action_shape, action_dtype),
            "reward": ((), torch.float32),
            "next_obs": (obs_shape, obs_dtype),
            "terminated": ((), torch.bool),
            "truncated": ((), torch.bool),
        }
        images = obs_dtype == torch.uint8 and len(obs_shape) == 3
        if images:
            del fields["next_obs"]
        if not images and n_step == 1:
            del fields["truncated"]  # a truncated transition bootstraps like any other
        self.storage = reserve(self.capacity, fields, self.device)
        self._bind()
        self._is_plain = n_step == 1 and not images and priorities is None and self._on_cpu
        self.successors = Successors(self.storage["obs"], num_envs) if images else None
        self.priorities = priorities
        if priorities is not None and priorities.capacity != self.capacity:
            raise ValueError(f"ReplayBuffer: priorities of {priorities.capacity} transitions, not {self.capacity}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._bind()  # a copy has memory of its own

    def _bind(self) -> None:
        """Take views of the memory, (ring_length, num_envs, ...), to which rows are written."""
        shape, self._fields = (self.ring_length, self.num_envs), tuple(dict.fromkeys((*self.storage, "next_obs")))
        self._rows = writable({name: values.view(*shape, *values.shape[1:]) for name, values in self.storage.items()})

    @property
    def num_rows(self) -> int:
        """Rows filled so far: the greatest age in the memory."""
        return min(self.clock, self.ring_length)

    def __len__(self) -> int:
        return min(self.clock * self.num_envs, self.capacity)

    def __repr__(self) -> str:
        return f"ReplayBuffer({len(self)} of {self.capacity} transitions, num_envs={self.num_envs}, {self.device})"

    def add(self, transition: Any) -> None:
        """Write one row: the tensors of `transition` have num_envs as their first dimension."""
        given = row_of(transition, self.device, self.storage["obs"].dtype, self._fields)
        if "truncated" in self.storage:
            self._link(given)
        write(self._rows, self.clock % self.ring_length, given, "ReplayBuffer")
        if self.priorities is not None:
            row = self._row(self.clock)
            self.priorities.add(torch.arange(row.start, row.stop, device=self.device))
        self.clock += 1

    def _link(self, given: dict[str, Any]) -> None:
        """Note which environments go on where the previous row ended, before a row is written."""
        for name, rows in self._rows.items():
            require_shape(name, given[name], rows.shape[1:], "ReplayBuffer")
        require_shape("next_obs", given["next_obs"], given["obs"].shape, "ReplayBuffer")
        row, previous = self._row(self.clock), self._row(self.clock - 1)
        continues = self._continues(previous, as_tensor(given["obs"]))
        if self.successors is not None:
            self.successors.write(row, previous, continues, as_tensor(given["next_obs"]))

    def _row(self, time: int) -> slice:
        """Return the slots of the row written at `time`."""
        start = time % self.ring_length * self.num_envs
        return slice(start, start + self.num_envs)

    def _continues(self, previous: slice, obs: Tensor) -> Tensor:
        """Return whether observations (N, ...) go on where the previous row ended; if not, that row is truncated."""
        if self.num_rows == 0 or self.ring_length == 1:
            return torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        ended = self.storage["terminated"][previous] | self.storage["truncated"][previous]
        expected = self._next_obs(torch.arange(previous.start, previous.stop, device=self.device))
        same = (obs.to(expected) == expected).flatten(1).all(1)
        self.storage["truncated"][previous] |= ~(ended | same)
        return same & ~ended

    def sample(self, batch_size: int) -> Batch:
        """Return `batch_size` transitions, drawn with replacement."""
        index, age = self._draw(batch_size)
        return self._read(index, self.age(index) if age is None else age)

    def choose(self, batch_size: int) -> Batch | Chosen:
        """Return what `sample` returns; where that takes no more than indexing, it is left to where the batch is used.

        Draws the same transitions. One who has replaced `sample` is asked.
        """
        if not self._is_plain or getattr(self.sample, "__func__", None) is not ReplayBuffer.sample:
            return self.sample(batch_size)
        index, age = self._draw(batch_size)
        assert age is not None
        return Chosen(Batch, self.storage, index, {"age": age, "index": index})

    def peek(self, num: int, generator: torch.Generator) -> Batch:
        """Return `num` transitions, drawn evenly with replacement from `generator`; nothing here changes.

        Raises ValueError while the memory is empty.
        """
        if self.clock == 0:
            raise ValueError("ReplayBuffer: nothing to look at, the memory is empty: wait for the first step")
        index = torch.randint(len(self), (num,), generator=generator, device=generator.device)
        return self.read(index.to(self.device))

    def read(self, index: Tensor) -> Batch:
        """Return the transitions in these slots (batch,), each with the n - 1 steps that followed it."""
        return self._read(index, self.age(index))

    def _read(self, index: Tensor, age: Tensor) -> Batch:
        last, discount = index, None
        obs, action, reward = (self.storage[name].index_select(0, index) for name in ("obs", "action", "reward"))
        if self.n_step > 1:
            steps = torch.arange(self.n_step, device=self.device)
            following = (index[:, None] + steps * self.num_envs) % self.capacity
            ended = self.storage["terminated"][following] | self.storage["truncated"][following]
            ended |= steps >= age[:, None] - 1  # the newest row is the last one that is known
            reward, length = n_step_return(self.storage["reward"][following], ended, self.gamma)
            last = (index + (length - 1) * self.num_envs) % self.capacity
            discount = self.gamma ** length.to(reward.dtype)
        terminated = self.storage["terminated"].index_select(0, last)
        return Batch(obs, action, reward, self._next_obs(last), terminated, age, index, discount)

    def _next_obs(self, index: Tensor) -> Tensor:
        if self.successors is not None:
            return self.successors.read(index)
        return self.storage["next_obs"].index_select(0, index)

    def draw(self, batch_size: int) -> Tensor:
        """Return slots (batch,) to replay: by priority, or else an age, then one of the environments of that row."""
        return self._draw(batch_size)[0]

    def _draw(self, batch_size: int) -> tuple[Tensor, Tensor | None]:
        """Return slots, and their ages where these were drawn."""
        if self.clock == 0:
            raise ValueError("ReplayBuffer: nothing to sample, the memory is empty")
        if self.priorities is not None:
            chance = self._weight_of_slot if self.weights else None
            return self.priorities.draw(batch_size, self.generator, chance), None
        column = torch.randint(self.num_envs, (batch_size,), generator=self.generator, device=self.device)
        age = self.draw_ages(batch_size)
        return self.slot(age, column), age

    def _weight_of_slot(self, index: Tensor) -> Tensor:
        return multiply(self.weights, self.age(index).double())

    def draw_ages(self, batch_size: int) -> Tensor:
        """Return ages (batch,) in 1..num_rows, with probability proportional to the product of all weights of age."""
        return draw_ages(self.weights, self.num_rows, batch_size, self.generator)

    def weigh(self, name: str, weight: AgeFunction) -> None:
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
        """Return the probability (num_rows,) float64 with which each age 1, 2, ... is replayed. O(num_rows)."""
        if self.priorities is None:
            return probabilities(self.weights, self.num_rows, self.device)
        by_slot = self.priorities.probabilities(self._weight_of_slot if self.weights else None)
        age = torch.arange(1, self.num_rows + 1, device=self.device)
        return by_slot.view(self.ring_length, self.num_envs).sum(1)[(self.clock - age) % self.ring_length]

    def slot(self, age: Tensor, column: Tensor) -> Tensor:
        """Return the slot of the transition that environment `column` wrote `age` calls of add ago."""
        if self._on_cpu:  # numpy divides integers three times as fast
            row = torch.from_numpy((self.clock - age.numpy()) % self.ring_length)
        else:
            row = (self.clock - age) % self.ring_length
        return row if self.num_envs == 1 else row * self.num_envs + column

    def age(self, index: Tensor) -> Tensor:
        """Return the age of a filled slot: the inverse of `slot`."""
        row = index // self.num_envs
        return (self.clock - 1 - row) % self.ring_length + 1

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the filled part, the clock and the generator."""
        storage = {name: values[: len(self)].clone() for name, values in self.storage.items()}
        layout = {"capacity": self.capacity, "num_envs": self.num_envs}
        state = {**layout, "clock": self.clock, "storage": storage, "generator": self.generator.get_state()}
        if self.successors is not None:
            state["successors"] = self.successors.state_dict(len(self))
        if self.priorities is not None:
            state["priorities"] = self.priorities.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a memory of the same layout."""
        for name in ("capacity", "num_envs"):
            if state[name] != getattr(self, name):
                raise ValueError(f"ReplayBuffer: saved with {name} {state[name]}, this one has {getattr(self, name)}")
        parts = {"successors": self.successors, "priorities": self.priorities}
        here = {*self.storage, *(name for name, part in parts.items() if part is not None)}
        saved_parts = {*state["storage"], *(name for name in parts if name in state)}
        if here != saved_parts:  # another n_step, prioritised or not, images or not
            raise ValueError(f"ReplayBuffer: saved with {sorted(saved_parts)}, this one has {sorted(here)}")
        for name, values in self.storage.items():
            saved = state["storage"][name]
            if saved.shape[1:] != values.shape[1:]:
                raise ValueError(f"ReplayBuffer: saved {name} {tuple(saved.shape[1:])}, not {tuple(values.shape[1:])}")
        self.clock = state["clock"]
        for name, values in self.storage.items():
            values[: len(self)].copy_(state["storage"][name])
        for name, part in parts.items():
            if part is not None:
                part.load_state_dict(state[name])
        restore_generator(self.generator, state["generator"])


def restore_generator(generator: torch.Generator, state: Tensor) -> None:
    """Continue a generator from get_state(). CPU and CUDA generators differ: across them the seeded one is kept."""
    if state.numel() != generator.get_state().numel():
        message = f"the saved random state is not one of a {generator.device.type} generator; going on from the seed"
        warnings.warn(message, stacklevel=2)
        return
    generator.set_state(state.cpu())
