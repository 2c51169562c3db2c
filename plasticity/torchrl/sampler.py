"""A sampler of replay buffers that draws by age, for Sample Weight Decay and Emphasizing Recent Experience."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.data.replay_buffers import RandomSampler, Storage

from plasticity.agents.ages import AgeFunction, draw_ages, probabilities


class WeightedSampler(RandomSampler):
    """Draw by age: ``ReplayBuffer(storage=LazyTensorStorage(N), sampler=WeightedSampler())``.

    The newest element has age 1, for storages of one dimension that are written in turns. Without weights it draws what
    ``RandomSampler`` draws. With weights, ages come from a generator of its own, ``seed``, which its state keeps.
    """

    num_envs = 1

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weights: dict[str, AgeFunction] = {}
        """Name -> weight of ages, in [0, 1]; several multiply."""
        self.generator = torch.Generator().manual_seed(seed)
        self.num_rows = 0
        """Elements that can be drawn: the greatest age."""
        self._newest = -1

    def weigh(self, name: str, weight: AgeFunction) -> None:
        """Replay an age with probability proportional to ``weight(age)``; ages are float64, the newest is 1."""
        self.weights[name] = weight

    def unweigh(self, name: str) -> None:
        """Take a weight off; nothing happens where there is none."""
        self.weights.pop(name, None)

    def age_probabilities(self) -> Tensor:
        """Return the probability (num_rows,) float64 of each age, the newest first."""
        return probabilities(self.weights, self.num_rows)

    def add(self, index: Any) -> None:
        """Note the element that was written."""
        super().add(index)
        self._note(index)

    def extend(self, index: Any) -> None:
        """Note the elements that were written."""
        super().extend(index)
        self._note(index)

    def _note(self, index: Any) -> None:
        written = torch.as_tensor(index).flatten()
        if written.numel():
            self._newest = int(written[-1])
            self.num_rows = max(self.num_rows, int(written.max()) + 1)

    def sample(self, storage: Storage, batch_size: int) -> tuple[Any, dict]:
        """Return ``batch_size`` indices, drawn with replacement; ValueError for storages of several dimensions."""
        if not self.weights:
            return super().sample(storage, batch_size)
        if storage.ndim > 1:
            raise ValueError(f"WeightedSampler draws from storages of one dimension; this one has {storage.ndim}")
        self.num_rows = len(storage)
        ages = draw_ages(self.weights, self.num_rows, batch_size, self.generator)
        return (self._newest + 1 - ages) % self.num_rows, {}

    def _empty(self) -> None:
        self.num_rows, self._newest = 0, -1

    def state_dict(self) -> dict[str, Any]:
        """Return the newest element, how many there are, and the generator's state."""
        return {"newest": self._newest, "rows": self.num_rows, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._newest, self.num_rows = int(state_dict["newest"]), int(state_dict["rows"])
        self.generator.set_state(torch.as_tensor(state_dict["generator"]).cpu())

    def dumps(self, path: Any) -> None:
        """Write the state into a folder."""
        Path(path).mkdir(exist_ok=True)
        torch.save(self.state_dict(), Path(path) / "weighted_sampler.pt")

    def loads(self, path: Any) -> None:
        """Go on from what :meth:`dumps` wrote."""
        self.load_state_dict(torch.load(Path(path) / "weighted_sampler.pt", weights_only=True))
