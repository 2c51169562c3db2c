"""The ring against a naive memory: a Python list of (time of insertion, environment, values)."""

import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from plasticity.agents import reserve
from plasticity.agents.nstep import n_step_return
from plasticity.agents.priorities import Priorities
from plasticity.agents.replay import Batch, ReplayBuffer, restore_generator

pytestmark = pytest.mark.usefixtures("everywhere")


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
    buffer = models.here(ReplayBuffer, capacity, (2,), (1,), num_envs=num_envs, seed=seed)
    for time in range(num_rows):
        buffer.add(row(time, num_envs))
    return buffer


@pytest.mark.on_cpu
def test_a_memory_that_the_machine_does_not_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match=r"1,000,000,000,000 transitions takes 25.0 TB, more than cpu gives: choose"):
        ReplayBuffer(10**12, (2,), (1,))  # 4 * (2 + 1 + 1 + 2) + 1 bytes each
    monkeypatch.setattr(reserve, "machine_memory", lambda: 10_000)
    with pytest.warns(RuntimeWarning, match=r"the system will end the run before 400 transitions"):
        ReplayBuffer(401, (2,), (1,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReplayBuffer(400, (2,), (1,))


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(reserve, "MEMORY_LIMITS", (limit, tmp_path / "none"))
    for text, expected in (("123456\n", 123456), ("max\n", whole), (str(2**63), whole)):
        limit.write_text(text)
        assert reserve.machine_memory() == expected


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


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(
    ("stored", "given"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float32")]
)
def test_observations_of_another_precision_are_rounded(stored: str, given: str, num_envs: int) -> None:
    buffer = models.here(ReplayBuffer, 4, (2,), (1,), num_envs=num_envs, obs_dtype=getattr(torch, stored))
    one = row(7, num_envs)
    one.obs, one.next_obs = (value.to(getattr(torch, given)).requires_grad_() for value in (one.obs, one.next_obs))
    buffer.add(one)
    batch = buffer.read(torch.arange(num_envs))
    assert torch.equal(batch.obs, one.obs.to(batch.obs.dtype))
    assert batch.next_obs.dtype == getattr(torch, stored)
    assert not batch.obs.requires_grad


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
    assert stats.chisquare(counts.numpy(force=True)).pvalue > 1e-3


def test_sampling_by_age_has_one_seam() -> None:
    class Newest(ReplayBuffer):
        def draw_ages(self, batch_size: int) -> torch.Tensor:
            return torch.ones(batch_size, dtype=torch.int64)

    buffer = models.here(Newest, 12, (2,), (1,), num_envs=3)
    for time in range(11):
        buffer.add(row(time, 3))
    batch = buffer.sample(50)
    assert batch.age.unique().tolist() == [1]
    assert batch.obs[:, 0].unique().tolist() == [10]
    assert batch.obs[:, 1].unique().tolist() == [0, 1, 2]


def assert_same(one: Batch, other: Batch) -> None:
    for name, values in vars(one).items():
        expected = vars(other)[name]
        assert torch.equal(values, expected) if values is not None else expected is None, name


def chi_square(buffer: ReplayBuffer, expected: torch.Tensor, draws: int = 24_000) -> float:
    """p-value of the ages in a batch against probabilities (num_rows,)."""
    batch = buffer.sample(draws)
    counts = torch.bincount(batch.age, minlength=buffer.num_rows + 1)[1:].double()
    assert counts[expected == 0].sum() == 0
    assert torch.equal(batch.obs[:, 0].long(), buffer.clock - batch.age)  # the age is the true one
    possible = expected > 0
    return float(
        stats.chisquare(counts[possible].numpy(force=True), (expected * draws)[possible].numpy(force=True)).pvalue
    )


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
        assert_same(again.sample(32), batch)


def test_state_dict_is_a_copy() -> None:
    buffer = filled(12)
    state = buffer.state_dict()
    buffer.add(row(99, 1))
    assert state["storage"]["obs"][0].tolist() == [0, 0]


def test_a_copy_is_written_into_memory_of_its_own() -> None:
    def row(value: float) -> SimpleNamespace:
        one, no = torch.full((1,), value), torch.zeros(1, dtype=torch.bool)
        return SimpleNamespace(obs=one[None], action=one[None], reward=one, next_obs=one[None], terminated=no)

    buffer = models.here(ReplayBuffer, 3, (1,), (1,))
    buffer.add(row(1))
    other = copy.deepcopy(buffer)
    other.add(row(2))
    assert other.storage["reward"][:2].tolist() == [1, 2]
    buffer.add(row(3))
    assert buffer.storage["reward"][:2].tolist() == [1, 3]
    assert other.storage["reward"][:2].tolist() == [1, 2]


def test_other_dtypes_and_shapes() -> None:
    buffer = models.here(ReplayBuffer, 4, (2, 2), (), obs_dtype=torch.uint8, action_dtype=torch.int64)
    obs, flag = torch.full((1, 2, 2), 255.0), torch.tensor([True])
    buffer.add(SimpleNamespace(obs=obs, action=torch.tensor([3]), reward=flag, next_obs=obs, terminated=flag))
    batch = buffer.sample(2)
    assert batch.obs.dtype == torch.uint8
    assert batch.obs.shape == (2, 2, 2)
    assert batch.action.tolist() == [3, 3]
    assert batch.reward.tolist() == [1.0, 1.0]


def test_capacity_is_a_multiple_of_num_envs() -> None:
    buffer = models.here(ReplayBuffer, 10, (2,), (1,), num_envs=4)
    assert buffer.capacity == 8
    assert "0 of 8" in repr(buffer)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident memory from /proc")
def test_a_large_memory_costs_nothing_until_it_is_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    buffer = models.here(ReplayBuffer, 1_000_000, (500,), (1,))  # 4 GB of address space
    buffer.add(SimpleNamespace(**{name: torch.zeros(1, *v.shape[1:]) for name, v in buffer.storage.items()}))
    assert buffer.sample(2).index.tolist() == [0, 0]
    assert resident_bytes() - before < 100e6


def test_errors() -> None:
    with pytest.raises(ValueError, match="empty"):
        models.here(ReplayBuffer, 4, (2,), (1,)).sample(1)
    with pytest.raises(ValueError, match="capacity 2 must hold one row of num_envs 3"):
        models.here(ReplayBuffer, 2, (2,), (1,), num_envs=3)
    with pytest.raises(ValueError, match=r"obs has shape \(1, 2\), expected \(3, 2\)"):
        filled(0, num_envs=3).add(row(0, 1))
    with pytest.raises(ValueError, match="saved with num_envs 1, this one has 3"):
        filled(1, num_envs=3).load_state_dict(filled(1).state_dict())
    with pytest.raises(ValueError, match=r"saved obs \(2,\), not \(5,\)"):
        models.here(ReplayBuffer, 12, (5,), (1,)).load_state_dict(filled(1).state_dict())


def test_generator_state_of_another_device_is_not_taken() -> None:
    generator = models.generator(3)
    before = generator.get_state()
    with pytest.warns(UserWarning, match=f"not one of a {generator.device.type} generator"):
        restore_generator(generator, torch.zeros(16, dtype=torch.uint8))
    assert torch.equal(generator.get_state(), before)


# --- n-step returns, images: what needs the order of the rows ---

IMAGE = (2, 3, 3)


def play(num_rows: int, num_envs: int, *, seed: int = 0, left: tuple[int, ...] = ()) -> Iterator[SimpleNamespace]:
    """Rows of random images in episodes of random length; before the rows `left`, environment 0 is reset too early."""
    generator = models.generator(seed)

    def images() -> torch.Tensor:
        return torch.randint(256, (num_envs, *IMAGE), generator=generator, dtype=torch.uint8)

    obs = images()
    for time in range(num_rows):
        if time in left:
            obs[0] = images()[0]
        kind = torch.rand(num_envs, generator=generator)
        terminated, truncated, next_obs = kind < 0.2, (kind >= 0.2) & (kind < 0.4), images()
        reward = torch.randint(10, (num_envs,), generator=generator).float()
        action = torch.full((num_envs,), time)
        yield SimpleNamespace(
            obs=obs.clone(),
            action=action,
            reward=reward,
            next_obs=next_obs,
            terminated=terminated,
            truncated=truncated,
        )
        done = (terminated | truncated).view(-1, 1, 1, 1)
        obs = torch.where(done, images(), next_obs)


def memory(capacity: int, num_envs: int, **options: Any) -> ReplayBuffer:
    dtypes: dict[str, Any] = {"obs_dtype": torch.uint8, "action_dtype": torch.int64}
    return models.here(ReplayBuffer, capacity, IMAGE, (), num_envs=num_envs, **dtypes, **options)


def naive(rows: list[SimpleNamespace], time: int, env: int, n: int, gamma: float) -> dict[str, Any]:
    """The n-step transition that begins at row `time`, by walking on from there."""
    total, discount = 0.0, 1.0
    for offset in range(n):
        step = rows[time + offset]
        total, discount = total + discount * float(step.reward[env]), discount * gamma
        is_last = time + offset + 1 == len(rows) or step.terminated[env] or step.truncated[env]
        if is_last or not torch.equal(rows[time + offset + 1].obs[env], step.next_obs[env]):
            break
    return {"reward": total, "discount": discount, "next_obs": step.next_obs[env], "terminated": step.terminated[env]}


def test_n_step_return_by_hand() -> None:
    no, yes = False, True
    reward = torch.tensor([[1.0, 10.0, 100.0]] * 4)
    ended = torch.tensor([[no, no, no], [no, yes, no], [yes, yes, no], [no, no, yes]])
    total, length = n_step_return(reward, ended, 0.5)
    assert total.tolist() == [1 + 5 + 25, 1 + 5, 1, 1 + 5 + 25]
    assert length.tolist() == [3, 2, 1, 3]


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("num_rows", [1, 2, 9, 10, 11, 37])
@pytest.mark.parametrize("n", [1, 2, 4, 20])
def test_n_steps_and_images_stored_once(num_rows: int, num_envs: int, n: int) -> None:
    buffer = memory(10 * num_envs, num_envs, n_step=n, gamma=0.9)
    rows = []
    for transition in play(num_rows, num_envs, left=(3, 30, 36)):
        buffer.add(transition)
        rows.append(transition)
        batch = buffer.read(torch.arange(len(buffer)))  # every transition, after every row
        for i, (age, env) in enumerate(zip(batch.age.tolist(), (batch.index % num_envs).tolist(), strict=True)):
            time = len(rows) - age
            assert batch.action[i] == time
            assert torch.equal(batch.obs[i], rows[time].obs[env])
            expected = naive(rows, time, env, n, 0.9)
            assert batch.reward[i].item() == pytest.approx(expected["reward"], rel=1e-6)
            if n > 1:
                assert batch.discount is not None
                assert batch.discount[i].item() == pytest.approx(expected["discount"], rel=1e-6)
            assert batch.terminated[i] == expected["terminated"]
            assert torch.equal(batch.next_obs[i], expected["next_obs"])
    assert (buffer.read(torch.arange(len(buffer))).discount is None) == (n == 1)


def test_n_steps_of_vectors_equal_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.buffers")
    space = spaces.Box(0, 255, (18,))
    theirs = sb3.NStepReplayBuffer(14, space, spaces.Discrete(99), "cpu", n_envs=2, n_steps=3, gamma=0.9)
    ours = models.here(ReplayBuffer, 14, (18,), (), num_envs=2, action_dtype=torch.int64, n_step=3, gamma=0.9)
    for step in play(24, 2):
        step.obs, step.next_obs = step.obs.flatten(1).float(), step.next_obs.flatten(1).float()
        ours.add(step)
        arrays = (getattr(step, name).numpy(force=True) for name in ("obs", "next_obs", "action", "reward"))
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in step.truncated]
        theirs.add(*arrays, (step.terminated | step.truncated).numpy(force=True), infos)
    batch = ours.read(torch.arange(14))
    monkeypatch.setattr(np.random, "randint", lambda *_, **__: np.arange(14) % 2)
    with torch.device("cpu"):
        other = theirs._get_samples(np.arange(14) // 2)
    assert batch.discount is not None
    assert len(batch.discount.unique()) == 3
    same = {"observations": batch.obs, "next_observations": batch.next_obs, "actions": batch.action[:, None]}
    columns = {"dones": batch.terminated.float(), "rewards": batch.reward, "discounts": batch.discount}
    for name, values in {**same, **{key: column[:, None] for key, column in columns.items()}}.items():
        torch.testing.assert_close(values.cpu(), getattr(other, name).to(values.dtype), rtol=1e-6, atol=0, msg=name)


@pytest.mark.on_real_devices
def test_images_take_half_the_memory() -> None:
    buffer = memory(400, 2)
    for transition in play(1000, 2):
        buffer.add(transition)
    assert "next_obs" not in buffer.storage
    assert buffer.successors is not None
    # four steps in ten end an episode here, so the side store holds about 160 images, in powers of two
    assert len(buffer.successors.side) == 256
    assert len(buffer.successors.free) == 256 - int((buffer.successors.where < 0).sum())


@pytest.mark.parametrize("num_rows", [3, 25])
def test_images_and_n_steps_after_resuming(tmp_path: Path, num_rows: int) -> None:
    rows = list(play(num_rows + 8, 2))
    buffer, again = (memory(20, 2, n_step=2, gamma=0.9, priorities=models.here(Priorities, 20, 0.5)) for _ in range(2))
    for transition in rows[:num_rows]:
        buffer.add(transition)
    for transition in play(25, 2, seed=1):
        again.add(transition)
    torch.save(buffer.state_dict(), tmp_path / "replay.pt")
    again.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
    for transition in rows[num_rows:]:
        assert_same(again.sample(64), buffer.sample(64))
        buffer.add(transition)
        again.add(transition)


def test_a_ring_of_one_row() -> None:
    buffer = memory(2, 2, n_step=3, gamma=0.9)
    for transition in play(6, 2):
        buffer.add(transition)
        batch = buffer.read(torch.tensor([0, 1]))
        assert torch.equal(batch.next_obs, transition.next_obs)
        assert torch.equal(batch.reward, transition.reward)


def test_what_a_memory_of_another_kind_saved_is_refused() -> None:
    with pytest.raises(ValueError, match=r"saved with \['action', .*this one has \[.*'truncated'\]"):
        models.here(ReplayBuffer, 12, (2,), (1,), n_step=2, gamma=0.9).load_state_dict(filled(3).state_dict())
    with pytest.raises(ValueError, match="n_step counts the rewards of a return, at least 1; got 0"):
        models.here(ReplayBuffer, 12, (2,), (1,), n_step=0)
    with pytest.raises(ValueError, match="priorities of 7 transitions, not 12"):
        models.here(ReplayBuffer, 12, (2,), (1,), priorities=models.here(Priorities, 7, 0.5))
