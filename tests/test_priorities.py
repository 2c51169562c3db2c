"""The sum tree against a plain array of priorities, alone and in a replay memory with age weights."""

from pathlib import Path
from types import SimpleNamespace

import models
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from plasticity.agents.priorities import ERROR_OFFSET, Priorities
from plasticity.agents.replay import ReplayBuffer
from plasticity.interventions import SampleWeightDecay

pytestmark = pytest.mark.usefixtures("everywhere")

DRAWS = 40_000


def generator(seed: int = 0) -> torch.Generator:
    return models.generator(seed)


def p_value(drawn: Tensor, expected: np.ndarray) -> float:
    """Of draws against probabilities; what has none must never be drawn."""
    counts = np.bincount(drawn.numpy(force=True), minlength=len(expected))
    assert len(counts) == len(expected)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    return float(stats.chisquare(counts[possible], expected[possible] * len(drawn)).pvalue)


class Naive:
    """p^alpha in an array."""

    def __init__(self, capacity: int, alpha: float) -> None:
        self.values, self.alpha, self.largest = np.zeros(capacity), alpha, 1.0

    def add(self, index: list[int]) -> None:
        self.values[index] = self.largest

    def update(self, index: list[int], error: list[float]) -> None:
        for i, e in zip(index, error, strict=True):
            self.values[i] = (abs(e) + ERROR_OFFSET) ** self.alpha
            self.largest = max(self.largest, self.values[i])


@pytest.mark.parametrize("capacity", [1, 5, 16, 17, 64, 300])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_tree_follows_a_plain_array(capacity: int, alpha: float) -> None:
    tree, naive, random = models.here(Priorities, capacity, alpha), Naive(capacity, alpha), np.random.default_rng(0)
    for time in range(30 + capacity // 2):
        tree.add(torch.tensor([time % capacity]))
        naive.add([time % capacity])
        index = random.integers(min(time + 1, capacity), size=3).tolist()
        error = (random.standard_normal(capacity) * 5)[index]  # a slot drawn twice has one error
        tree.update(torch.tensor(index), torch.tensor(error))
        naive.update(index, error.tolist())
        np.testing.assert_allclose(tree.leaves.numpy(force=True), naive.values, rtol=1e-12)
        for level in tree.levels:
            assert level.sum().item() == pytest.approx(naive.values.sum(), rel=1e-12)
        assert tree.largest.item() == pytest.approx(naive.largest)


@pytest.mark.parametrize("capacity", [4, 16, 18, 300])
def test_draws_follow_the_priorities(capacity: int) -> None:
    tree, random = models.here(Priorities, capacity, 0.7), np.random.default_rng(1)
    filled = max(1, capacity - 2)
    error = random.exponential(3, filled) + 0.2
    tree.add(torch.arange(filled))
    tree.update(torch.arange(filled), torch.tensor(error) * torch.where(torch.arange(filled) % 2 == 0, 1, -1))
    expected = np.zeros(capacity)
    expected[:filled] = (error + ERROR_OFFSET) ** 0.7 / ((error + ERROR_OFFSET) ** 0.7).sum()
    np.testing.assert_allclose(tree.probabilities().numpy(force=True), expected, rtol=1e-9)
    assert p_value(tree.draw(DRAWS, generator()), expected) > 1e-3


def test_new_transitions_come_with_the_largest_priority_so_far() -> None:
    tree = models.here(Priorities, 4, 1.0)
    tree.add(torch.tensor([0, 1]))
    assert tree.leaves.tolist() == [1, 1, 0, 0]
    tree.update(torch.tensor([0]), torch.tensor([-3.0]))
    tree.update(torch.tensor([0]), torch.tensor([0.5]))
    tree.add(torch.tensor([2]))
    assert tree.leaves.tolist() == pytest.approx([0.5, 1, 3, 0], abs=1e-5)


def test_importance_weights_by_hand() -> None:
    tree = models.here(Priorities, 4, 1.0)
    tree.add(torch.arange(4))
    tree.update(torch.arange(4), torch.tensor([1.0, 2.0, 4.0, 8.0]) - ERROR_OFFSET)
    # (N P)^-beta = (4 p / 15)^-beta; over the largest of the batch, that of p = 2, they are (2 / p)^beta
    assert tree.importance(torch.tensor([1, 2, 3]), 0.5).tolist() == pytest.approx([1, 0.5**0.5, 0.5], rel=1e-5)
    assert tree.importance(torch.tensor([0, 3]), 1.0).tolist() == pytest.approx([1, 1 / 8], rel=1e-5)
    assert tree.importance(torch.tensor([0, 3]), 0.0).tolist() == [1, 1]


def row(time: int, num_envs: int) -> SimpleNamespace:
    time_of = torch.full((num_envs, 1), float(time))
    no = torch.zeros(num_envs, dtype=torch.bool)
    return SimpleNamespace(obs=time_of, action=time_of, reward=time_of[:, 0], next_obs=time_of, terminated=no)


def memory(num_envs: int = 3, rows: int = 14, capacity: int = 30) -> tuple[ReplayBuffer, np.ndarray]:
    """A ring that has wrapped round, and the priority of each slot."""
    buffer = models.here(
        ReplayBuffer, capacity, (1,), (1,), num_envs=num_envs, priorities=models.here(Priorities, capacity, 1.0)
    )
    for time in range(rows):
        buffer.add(row(time, num_envs))
    errors = np.random.default_rng(2).exponential(2, len(buffer)) + 0.1
    assert buffer.priorities is not None
    buffer.priorities.update(torch.arange(len(buffer)), torch.tensor(errors) - ERROR_OFFSET)
    return buffer, np.pad(errors, (0, capacity - len(buffer)))


@pytest.mark.parametrize("rows", [4, 14])
def test_memory_draws_by_priority(rows: int) -> None:
    buffer, errors = memory(rows=rows)
    batch = buffer.sample(DRAWS)
    assert torch.equal(batch.obs[:, 0].long(), rows - batch.age)
    assert p_value(batch.index, errors / errors.sum()) > 1e-3


@pytest.mark.parametrize("rows", [4, 14])
def test_priorities_and_age_weights_multiply(rows: int) -> None:
    buffer, errors = memory(rows=rows)
    buffer.weigh("swd", SampleWeightDecay(horizon=8, floor=0.25).weight())
    buffer.weigh("old", lambda age: (age > 1).double())
    age = (rows - 1 - np.arange(30) // 3) % 10 + 1
    product = errors * np.maximum(0.25, 1 - age / 8) * (age > 1)
    assert p_value(buffer.draw(DRAWS), product / product.sum()) > 1e-3
    by_age = np.array([product[(age == a)].sum() for a in range(1, buffer.num_rows + 1)]) / product.sum()
    np.testing.assert_allclose(buffer.age_probabilities().numpy(force=True), by_age, rtol=1e-9)


def test_rare_acceptance_falls_back_to_all_slots_and_stays_exact() -> None:
    buffer, errors = memory()
    buffer.weigh("tiny", lambda age: torch.where(age > 9, 1e-6, 0.0))
    oldest = np.where((13 - np.arange(30) // 3) % 10 + 1 == 10, errors, 0)
    assert p_value(buffer.draw(300), oldest / oldest.sum()) > 1e-3
    buffer.weigh("none", lambda age: (age < 3).double())  # leaves nothing: priorities alone
    assert p_value(buffer.draw(300), errors / errors.sum()) > 1e-3


def test_state_dict_round_trip(tmp_path: Path) -> None:
    buffer, _ = memory()
    torch.save(buffer.state_dict(), tmp_path / "replay.pt")
    again = models.here(ReplayBuffer, 30, (1,), (1,), num_envs=3, seed=5, priorities=models.here(Priorities, 30, 1.0))
    again.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    buffer.add(row(14, 3))
    again.add(row(14, 3))
    assert torch.equal(again.draw(500), buffer.draw(500))
    assert again.priorities is not None
    assert buffer.priorities is not None
    for one, other in zip(again.priorities.levels, buffer.priorities.levels, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"this one has \['action', 'next_obs', 'obs', 'reward', 'terminated'\]"):
        models.here(ReplayBuffer, 30, (1,), (1,), num_envs=3).load_state_dict(buffer.state_dict())


def test_alpha_is_checked() -> None:
    with pytest.raises(ValueError, match=r"alpha in \[0, 1\], got 1.5"):
        models.here(Priorities, 4, 1.5)


def test_a_rest_that_rounding_pushed_beyond_the_end_falls_into_the_last_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = models.here(Priorities, 5000, 1.0)
    tree.add(torch.arange(4000))
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.full((size,), 1 + 1e-9, dtype=torch.float64))
    assert tree.draw(3, generator()).tolist() == [3999] * 3
    monkeypatch.setattr(torch, "rand", lambda size, **_: torch.zeros(size, dtype=torch.float64))
    tree._set(torch.arange(70), torch.zeros(70, dtype=torch.float64))
    assert tree.draw(3, generator()).tolist() == [70] * 3
