"""The ring against a naive memory: a Python list of (time of insertion, environment, values)."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from plasticity.agents.replay import Batch, ReplayBuffer, restore_generator


def row(time: int, num_envs: int) -> SimpleNamespace:
    """A row whose every value tells when and by which environment it was written."""
    tag = torch.stack([torch.full((num_envs,), float(time)), torch.arange(num_envs).float()], -1)
    return SimpleNamespace(
        obs=tag,
        action=tag[:, :1] / 1000,
        reward=tag[:, 0] * 10 + tag[:, 1],
        next_obs=tag + 0.5,
        terminated=(tag[:, 0] + tag[:, 1]) % 2 == 0,
        truncated=torch.ones(num_envs, dtype=torch.bool),
    )


def filled(num_rows: int, *, capacity: int = 12, num_envs: int = 1, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(capacity, (2,), (1,), num_envs=num_envs, seed=seed)
    for time in range(num_rows):
        buffer.add(row(time, num_envs))
    return buffer


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 3, 4, 5, 12, 13, 29])
def test_wrap_around_and_ages(num_rows: int, num_envs: int) -> None:
    buffer = filled(num_rows, num_envs=num_envs)
    naive = [(time, env) for time in range(num_rows) for env in range(num_envs)][-12:]
    assert len(buffer) == len(naive)
    assert buffer.clock == num_rows

    batch = buffer.sample(400)
    assert isinstance(batch, Batch)
    time, env = batch.obs[:, 0], batch.obs[:, 1]
    assert {(int(t), int(e)) for t, e in zip(time, env, strict=True)} == set(naive)
    assert batch.age.dtype == batch.index.dtype == torch.int64
    assert torch.equal(batch.age, (num_rows - time).long())
    assert batch.age.min() == 1
    # all fields come from the same transition
    assert torch.equal(batch.next_obs, batch.obs + 0.5)
    assert torch.equal(batch.reward, time * 10 + env)
    assert torch.equal(batch.action, time[:, None] / 1000)
    assert torch.equal(batch.terminated, (time + env) % 2 == 0)


@pytest.mark.parametrize("num_rows", [2, 4, 7])
def test_slot_and_age_are_inverse(num_rows: int) -> None:
    buffer = filled(num_rows, num_envs=3)
    for age in range(1, buffer.num_rows + 1):
        for column in range(3):
            index = buffer.slot(torch.tensor([age]), torch.tensor([column]))
            assert buffer.age(index).item() == age
            assert buffer.storage["obs"][index].tolist() == [[num_rows - age, column]]


@pytest.mark.parametrize(("num_rows", "num_envs"), [(7, 1), (40, 1), (9, 3)])
def test_sampling_is_uniform(num_rows: int, num_envs: int) -> None:
    buffer = filled(num_rows, num_envs=num_envs)
    counts = torch.bincount(buffer.draw(24_000), minlength=len(buffer))
    assert counts.sum() == 24_000
    assert len(counts) == len(buffer)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_sampling_by_age_has_one_seam() -> None:
    class Newest(ReplayBuffer):
        def draw_ages(self, batch_size: int) -> torch.Tensor:
            return torch.ones(batch_size, dtype=torch.int64)

    buffer = Newest(12, (2,), (1,), num_envs=3)
    for time in range(11):
        buffer.add(row(time, 3))
    batch = buffer.sample(50)
    assert batch.age.unique().tolist() == [1]
    assert batch.obs[:, 0].unique().tolist() == [10]
    assert batch.obs[:, 1].unique().tolist() == [0, 1, 2]


def chi_square(buffer: ReplayBuffer, expected: torch.Tensor, draws: int = 24_000) -> float:
    """p-value of the ages in a batch against probabilities (num_rows,)."""
    batch = buffer.sample(draws)
    counts = torch.bincount(batch.age, minlength=buffer.num_rows + 1)[1:].double()
    assert counts[expected == 0].sum() == 0
    assert torch.equal(batch.obs[:, 0].long(), buffer.clock - batch.age)  # the age is the true one
    possible = expected > 0
    return float(stats.chisquare(counts[possible].numpy(), (expected * draws)[possible].numpy()).pvalue)


class Decay:
    """0.8^(age - 1), without a closed form."""

    def __call__(self, age: torch.Tensor) -> torch.Tensor:
        assert age.dtype == torch.float64
        return 0.8 ** (age - 1)


class Even:
    """Even ages only, with a closed form that is told apart from rejection by a counter."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, age: torch.Tensor) -> torch.Tensor:
        return (age % 2 == 0).double()

    def sample(self, num_rows: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        return 2 * torch.randint(1, num_rows // 2 + 1, (batch_size,), generator=generator)


@pytest.mark.parametrize(("num_rows", "num_envs"), [(7, 1), (40, 1), (9, 3)])
def test_age_weights_multiply(num_rows: int, num_envs: int) -> None:
    buffer, even = filled(num_rows, num_envs=num_envs), Even()
    age = torch.arange(1, buffer.num_rows + 1, dtype=torch.float64)
    for weights in ({"decay": Decay()}, {"even": even}, {"decay": Decay(), "even": even}):
        for name, weight in weights.items():
            buffer.weigh(name, weight)
        product = torch.ones_like(age)
        for weight in weights.values():
            product = product * weight(age)
        assert torch.allclose(buffer.age_probabilities(), product / product.sum())
        assert chi_square(buffer, product / product.sum()) > 1e-3
        for name in weights:
            buffer.unweigh(name)
    assert even.calls > 0
    assert torch.allclose(buffer.age_probabilities(), torch.full_like(age, 1 / len(age)).double())
    assert chi_square(buffer, buffer.age_probabilities()) > 1e-3


def test_a_single_closed_form_is_drawn_from_directly() -> None:
    buffer, even = filled(12), Even()
    buffer.weigh("even", even)
    buffer.draw(100)
    assert even.calls == 1


def test_rare_acceptance_falls_back_to_all_ages_and_stays_exact() -> None:
    buffer = filled(40, capacity=40)
    buffer.weigh("tiny", lambda age: torch.where(age > 37, 1e-5 * (41 - age), 0.0))
    assert chi_square(buffer, torch.tensor([0.0] * 37 + [3 / 6, 2 / 6, 1 / 6], dtype=torch.float64), 3000) > 1e-3
    buffer.weigh("none", lambda age: (age < 3).double())
    assert chi_square(buffer, torch.full((40,), 1 / 40, dtype=torch.float64), 3000) > 1e-3  # all weights 0: uniform


def test_age_weights_after_resuming() -> None:
    buffer = filled(9, num_envs=3)
    buffer.weigh("decay", Decay())
    buffer.draw(5)
    again = filled(2, num_envs=3, seed=5)
    again.load_state_dict(buffer.state_dict())
    again.weigh("decay", Decay())
    assert torch.equal(again.draw(64), buffer.draw(64))
    assert chi_square(again, buffer.age_probabilities()) > 1e-3


def test_age_weight_errors() -> None:
    buffer = filled(5)
    buffer.weigh("large", lambda age: 2 * torch.ones_like(age))
    with pytest.raises(ValueError, match="already has the age weight 'large'"):
        buffer.weigh("large", Decay())
    for action in (lambda: buffer.draw(3), buffer.age_probabilities):
        with pytest.raises(ValueError, match=r"'large' returned 2.0: weights must be in \[0, 1\]"):
            action()
    buffer.unweigh("large")
    buffer.unweigh("large")
    buffer.weigh("broken", lambda age: age * float("nan"))
    with pytest.raises(ValueError, match="'broken' returned nan"):
        buffer.draw(3)


def test_seed_decides_the_draws_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = (filled(9, seed=seed).draw(64) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_rows", [2, 4, 9])
def test_state_dict_round_trip_through_a_file(tmp_path: Path, num_rows: int) -> None:
    buffer = filled(num_rows, num_envs=3)
    buffer.draw(5)
    torch.save(buffer.state_dict(), tmp_path / "replay.pt")
    expected = []
    for time in range(num_rows, num_rows + 6):
        buffer.add(row(time, 3))
        expected.append(buffer.sample(32))

    again = filled(1, num_envs=3, seed=7)
    again.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    assert len(again) == min(num_rows, 4) * 3
    for time, batch in zip(range(num_rows, num_rows + 6), expected, strict=True):
        again.add(row(time, 3))
        for name, values in vars(again.sample(32)).items():
            assert torch.equal(values, vars(batch)[name]), name


def test_state_dict_is_a_copy() -> None:
    buffer = filled(12)
    state = buffer.state_dict()
    buffer.add(row(99, 1))
    assert state["storage"]["obs"][0].tolist() == [0, 0]


def test_other_dtypes_and_shapes() -> None:
    buffer = ReplayBuffer(4, (2, 2), (), obs_dtype=torch.uint8, action_dtype=torch.int64)
    obs, flag = torch.full((1, 2, 2), 255.0), torch.tensor([True])
    buffer.add(SimpleNamespace(obs=obs, action=torch.tensor([3]), reward=flag, next_obs=obs, terminated=flag))
    batch = buffer.sample(2)
    assert batch.obs.dtype == torch.uint8
    assert batch.obs.shape == (2, 2, 2)
    assert batch.action.tolist() == [3, 3]
    assert batch.reward.tolist() == [1.0, 1.0]


def test_capacity_is_a_multiple_of_num_envs() -> None:
    buffer = ReplayBuffer(10, (2,), (1,), num_envs=4)
    assert buffer.capacity == 8
    assert "0 of 8" in repr(buffer)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from /proc")
def test_a_large_memory_costs_nothing_until_it_is_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    buffer = ReplayBuffer(1_000_000, (500,), (1,))  # 4 GB of address space
    buffer.add(SimpleNamespace(**{name: torch.zeros(1, *v.shape[1:]) for name, v in buffer.storage.items()}))
    assert buffer.sample(2).index.tolist() == [0, 0]
    assert resident_bytes() - before < 100e6


def test_errors() -> None:
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(4, (2,), (1,)).sample(1)
    with pytest.raises(ValueError, match="capacity 2 must hold one row of num_envs 3"):
        ReplayBuffer(2, (2,), (1,), num_envs=3)
    with pytest.raises(ValueError, match=r"obs has shape \(1, 2\), expected \(3, 2\)"):
        filled(0, num_envs=3).add(row(0, 1))
    with pytest.raises(ValueError, match="saved with num_envs 1, this one has 3"):
        filled(1, num_envs=3).load_state_dict(filled(1).state_dict())
    with pytest.raises(ValueError, match=r"saved obs \(2,\), not \(5,\)"):
        ReplayBuffer(12, (5,), (1,)).load_state_dict(filled(1).state_dict())


def test_generator_state_of_another_device_is_not_taken() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    with pytest.warns(UserWarning, match="not one of a cpu generator"):
        restore_generator(generator, torch.zeros(16, dtype=torch.uint8))
    assert torch.equal(generator.get_state(), before)
