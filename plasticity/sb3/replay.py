"""A replay buffer that draws by age, for Sample Weight Decay and Emphasizing Recent Experience."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from plasticity.agents.ages import AgeFunction, draw_ages, probabilities


class WeightedReplayBuffer(ReplayBuffer):
    """Replay with a weight of age: ``SAC(..., replay_buffer_class=WeightedReplayBuffer)``.

    The newest row has age 1. Without weights it draws what ``ReplayBuffer`` draws, the same bits. With weights, ages
    come from a generator of its own, which is seeded like the agent and saved with the buffer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights: dict[str, AgeFunction] = {}
        """Name -> weight of ages, in [0, 1]; several multiply."""
        self.generator = torch.Generator().manual_seed(torch.initial_seed())
        self.before_sample: Callable[[], None] | None = None
        """Called before every draw, which begins a gradient step."""

    @property
    def num_envs(self) -> int:
        """Environments whose transitions share a row."""
        return self.n_envs

    @property
    def num_rows(self) -> int:
        """Rows that can be drawn: the greatest age."""
        return self.size() - int(self.full and self.optimize_memory_usage)  # that one's successor is overwritten

    def weigh(self, name: str, weight: AgeFunction) -> None:
        """Replay an age with probability proportional to ``weight(age)``; ages are float64, the newest is 1."""
        self.weights[name] = weight

    def unweigh(self, name: str) -> None:
        """Take a weight off; nothing happens where there is none."""
        self.weights.pop(name, None)

    def age_probabilities(self) -> Tensor:
        """Return the probability (num_rows,) float64 of each age, the newest first."""
        return probabilities(self.weights, self.num_rows)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Return ``batch_size`` transitions, drawn with replacement."""
        if self.before_sample is not None:
            self.before_sample()
        if not self.weights:
            return super().sample(batch_size, env)
        ages = draw_ages(self.weights, self.num_rows, batch_size, self.generator).numpy()
        return self._get_samples((self.pos - ages) % self.buffer_size, env)

    def __getstate__(self) -> dict[str, Any]:
        running: dict[str, Any] = {"before_sample": None, "weights": {}}  # of a callback, which puts them there again
        return {**self.__dict__, **running, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])
