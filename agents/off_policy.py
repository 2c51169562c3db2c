"""The parts that agents with a replay memory share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .inputs import Chosen
from .learner import Learner
from .normalise import update_norms
from .replay import Batch, ReplayBuffer
from .updates import Followers


class OffPolicy(Learner):
    """Base of an agent that learns from replayed transitions; a subclass says how many updates are owed (`owe`)."""

    COUNTERS: ClassVar[dict[str, str]] = {**Learner.COUNTERS, "updates_owed": "updates_owed"}

    updates_owed: float
    replay_ratio: float | None = None
    """Updates per environment step in the place of the config's; None: those of the config."""
    buffer: ReplayBuffer
    followers: Followers

    def make_buffer(self, action_shape: Sequence[int], seed: int, **options: Any) -> ReplayBuffer:
        """Return the memory; ValueError where learning would never start."""
        memory = {"num_envs": self.num_envs, "device": self.device, "seed": seed, "obs_dtype": self.obs_dtype}
        buffer = ReplayBuffer(self.config.buffer_size, self.obs_shape, action_shape, **memory, **options)
        if self.config.learning_starts > buffer.capacity - self.num_envs:
            raise ValueError(f"{self.name}: learning_starts {self.config.learning_starts} does not fit into {buffer}")
        return buffer

    def observe(self, transition: Any) -> None:
        """Store one step of every environment, and owe the updates that it brings."""
        self.buffer.add(transition)
        if self.norms:
            update_norms(self.norms, transition.obs)
        self.env_steps += self.num_envs
        # Judged by the memory, not by steps: after resuming without it, learning waits until it is filled again.
        steps = max(0, min(self.num_envs, len(self.buffer) - self.config.learning_starts))
        if self.replay_ratio is None:
            self.owe(steps)
        else:
            self.updates_owed += steps * self.replay_ratio

    def set_replay_ratio(self, ratio: float | None) -> None:
        """Set the updates per environment step, None for those of the config; ValueError for one that is not > 0."""
        if ratio is not None and not ratio > 0:
            raise ValueError(f"{self.name}: updates per environment step are > 0, got {ratio}")
        self.replay_ratio = ratio

    def owe(self, num_steps: int) -> None:
        """Add to `updates_owed`, for so many environment steps that can be learned from."""
        raise NotImplementedError

    def update(self) -> dict[str, Tensor]:
        """Take one update on a replayed batch. Metrics are tensors on the agent's device."""
        if self.targets:  # a method may have replaced some: they lie where a resumed run has them
            self.followers.settle()
        metrics = self.learn(self.sample())
        self.updates += 1
        self.updates_owed -= 1
        return metrics

    def sample(self) -> Batch | Chosen:
        """Draw the batch of an update; `inputs.gathered` reads one that is not read yet."""
        return self.buffer.choose(self.config.batch_size)

    def learn(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Take the update on this batch and return its metrics."""
        raise NotImplementedError

    def peek(self, num: int, generator: torch.Generator) -> Batch:
        """Return `num` stored transitions, drawn evenly with replacement; neither memory nor training changes.

        Raises ValueError while the memory is empty.
        """
        return self.buffer.peek(num, generator)
