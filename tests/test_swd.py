"""Sample weight decay: typed-out weights, the samplers against exact weights, the paper's concentration, real runs."""

import math
import tracemalloc
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from plasticity.agents.replay import ReplayBuffer
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.train import context, train
from plasticity.callback import Context
from plasticity.envs import make_env
from plasticity.interventions.swd import (
    SHAPES,
    AgeWeight,
    Exponential,
    Linear,
    Polynomial,
    Reversed,
    SampleWeightDecay,
    Window,
    statistics,
)
from plasticity.tags import is_timed

pytestmark = pytest.mark.usefixtures("everywhere")

CLOSED = (Linear, Reversed, Exponential, Window)


def ages(num_rows: int) -> Tensor:
    return torch.arange(1, num_rows + 1, dtype=torch.float64)


def memory(num_rows: int, capacity: int, num_envs: int = 1, seed: int = 0) -> ReplayBuffer:
    """A buffer whose observations tell when they were written."""
    buffer = models.here(ReplayBuffer, capacity, (1,), (1,), num_envs=num_envs, seed=seed)
    for clock in range(num_rows):
        now = torch.full((num_envs, 1), float(clock))
        flags = torch.zeros(num_envs, dtype=torch.bool)
        buffer.add(SimpleNamespace(obs=now, action=now, reward=now[:, 0], next_obs=now, terminated=flags))
    return buffer


def pretend(num_rows: int) -> ReplayBuffer:
    """A buffer that holds num_rows transitions nobody wrote."""
    buffer = models.here(ReplayBuffer, num_rows, (1,), (1,))
    buffer.clock = num_rows
    return buffer


def p_value(drawn: Tensor, weights: Tensor) -> float:
    """Chi-square of drawn ages against weights (num_rows,); ages of weight 0 must not occur."""
    counts = torch.bincount(drawn, minlength=len(weights) + 1)[1:].double()
    assert len(counts) == len(weights)
    possible = weights > 0
    assert counts[~possible].sum() == 0
    if possible.sum() == 1:
        return 1.0
    expected = weights[possible] / weights.sum() * len(drawn)
    return float(stats.chisquare(counts[possible].numpy(force=True), expected.numpy(force=True)).pvalue)


# --- weights ---


def test_golden_weights() -> None:
    expected = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    weights = Linear(10, 0.1)(ages(12))
    assert torch.allclose(weights, expected, atol=1e-12)
    assert weights.sum().item() == pytest.approx(4.8)
    assert (weights / weights.sum())[[0, 11]].tolist() == pytest.approx([0.1875, 0.020833], abs=1e-6)
    control = Reversed(10, 0.1)(ages(12))
    assert (control / control.sum())[0].item() == pytest.approx(0.02381, abs=1e-5)
    assert (control / control.sum())[8:].tolist() == pytest.approx([0.119048] * 4, abs=1e-6)


def test_other_shapes_by_hand() -> None:
    assert Exponential(2, 0.3)(ages(4)).tolist() == pytest.approx([math.exp(-0.5), math.exp(-1), 0.3, 0.3])
    assert Polynomial(4, 0.1, 2.0)(ages(5)).tolist() == pytest.approx([0.5625, 0.25, 0.1, 0.1, 0.1])
    assert Polynomial(4, 0.0, 0.5)(ages(5)).tolist() == pytest.approx([0.75**0.5, 0.5**0.5, 0.5, 0, 0])
    assert Window(3, 0.1)(ages(5)).tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", [*CLOSED, Polynomial])
@pytest.mark.parametrize("horizon", [1, 7, 80_000])
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_weights_are_bounded(kind: type[AgeWeight], horizon: int, floor: float) -> None:
    weights = kind(horizon, floor)(ages(200_000))
    assert weights.dtype == torch.float64
    assert weights.min() >= 0
    assert weights.max() <= 1


# --- samplers ---


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("horizon", [1, 2, 10, 1000])
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 40])
def test_closed_forms_against_exact_weights(kind: type[AgeWeight], horizon: int, floor: float, num_rows: int) -> None:
    weight: Any = kind(horizon, floor)
    drawn = weight.sample(num_rows, 20_000, models.generator(1))
    assert drawn.dtype == torch.int64
    weights = weight(ages(num_rows))
    uniform = torch.ones_like(weights)
    assert p_value(drawn, weights if weights.sum() > 0 else uniform) > 1e-4  # 144 cases


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize(("horizon", "floor"), [(80_000, 0.1), (80_000, 0.0), (1_000_000, 0.1)])
def test_the_inverse_finds_every_age_of_a_long_head(kind: type[AgeWeight], horizon: int, floor: float) -> None:
    weight: Any = kind(horizon, floor)
    age = ages(int(min(weight.head(), 300_000)))
    sums = weight(age).cumsum(0)
    assert weight.mass(len(age)) == pytest.approx(sums[-1].item(), rel=1e-10)
    middle = sums - weight(age) / 2
    worth = weight(age) > 1e-6  # at weight 0 (age T, floor 0) there is nothing to find
    assert torch.equal(weight.invert(middle).ceil()[worth], age[worth])


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize(("horizon", "floor"), [(1, 0.0), (10.5, 0.0), (300, 0.1), (300, 1.0), (5000, 0.0)])
def test_arrays_and_tensors_find_the_same_ages(kind: type[AgeWeight], horizon: float, floor: float) -> None:
    """The CPU draws with arrays, other devices with tensors."""
    weight: Any = kind(horizon, floor)
    head = int(min(weight.head(), 2000))
    inside = weight.mass(head) if head else 0.0
    mass = torch.linspace(0, inside + (2000 - head) * weight.tail(), 4001, dtype=torch.float64)
    found = weight.find(mass, head, inside, 2000)
    assert found.min() >= 1
    assert found.max() <= 2000
    np.testing.assert_array_equal(weight.find(mass.numpy(force=True), head, inside, 2000), found.numpy(force=True))


@pytest.mark.parametrize(("num_rows", "capacity", "num_envs"), [(20, 40, 1), (95, 40, 1), (33, 60, 3)])
@pytest.mark.parametrize("shape", [*SHAPES, "reversed"])
def test_replayed_ages_are_exact_also_after_wrapping(shape: str, num_rows: int, capacity: int, num_envs: int) -> None:
    kind: dict[str, Any] = {"reversed": True} if shape == "reversed" else {"shape": shape}
    method = SampleWeightDecay(horizon=12, **kind)
    buffer = memory(num_rows, capacity, num_envs)
    method.on_train_start(Context(buffer=buffer))
    batch = buffer.sample(30_000)
    assert torch.equal(batch.age, buffer.clock - batch.obs[:, 0].long())
    weight = method.weight()
    assert weight is not None
    assert p_value(batch.age, weight(ages(buffer.num_rows))) > 1e-3
    columns = torch.bincount(batch.index % num_envs, minlength=num_envs)
    assert num_envs == 1 or stats.chisquare(columns.numpy(force=True)).pvalue > 1e-3


def test_two_methods_multiply() -> None:
    buffer = memory(70, 50)
    SampleWeightDecay(horizon=30).on_train_start(Context(buffer=buffer))
    buffer.weigh("window", Window(20, 0.0))
    buffer.weigh("polynomial", Polynomial(60, 0.1))
    expected = Linear(30, 0.1)(ages(50)) * Window(20, 0)(ages(50)) * Polynomial(60, 0.1)(ages(50))
    assert p_value(buffer.sample(30_000).age, expected) > 1e-3


def test_resuming_goes_on_with_the_same_draws() -> None:
    first, again = memory(30, 20), memory(3, 20, seed=4)
    method = SampleWeightDecay(horizon=15)
    method.on_train_start(Context(buffer=first))
    first.draw(10)
    again.load_state_dict(first.state_dict())
    SampleWeightDecay(horizon=15).on_train_start(Context(buffer=again))
    assert torch.equal(first.sample(200).age, again.sample(200).age)
    assert p_value(again.sample(20_000).age, Linear(15, 0.1)(ages(20))) > 1e-3


def test_horizon_zero_draws_exactly_what_an_unweighted_memory_draws() -> None:
    plain, weighted = memory(30, 20), memory(30, 20)
    SampleWeightDecay(horizon=0).on_train_start(Context(buffer=weighted))
    assert torch.equal(plain.draw(100), weighted.draw(100))


def test_without_a_floor_and_with_all_transitions_old_sampling_is_uniform() -> None:
    buffer = memory(10, 10)
    SampleWeightDecay(horizon=1, floor=0.0).on_train_start(Context(buffer=buffer))  # even age 1 has weight 0
    assert p_value(buffer.sample(10_000).age, torch.ones(10)) > 1e-3


@pytest.mark.parametrize(
    ("num_rows", "newest", "recent", "mean_age", "effective"),
    [
        (100_000, 2.36, 0.934, 30_100, 0.67),
        (200_000, 3.82, 0.756, 53_000, 0.49),
        (500_000, 6.07, 0.481, 161_000, 0.44),
        (1_000_000, 7.55, 0.299, 384_000, 0.49),
    ],
)
def test_concentration_table(num_rows: int, newest: float, recent: float, mean_age: float, effective: float) -> None:
    buffer = pretend(num_rows)
    SampleWeightDecay().on_train_start(Context(buffer=buffer))
    probability = buffer.age_probabilities()
    assert (probability[0] * num_rows).item() == pytest.approx(newest, abs=0.006)
    assert probability[:72_000].sum().item() == pytest.approx(recent, abs=0.0006)
    found = statistics(probability, 80_000)
    assert found["mean_age"] == pytest.approx(mean_age, rel=0.005)
    assert found["effective_fraction"] == pytest.approx(effective, abs=0.006)
    drawn = buffer.draw_ages(40_000)
    assert (drawn <= 72_000).double().mean().item() == pytest.approx(recent, abs=0.015)
    assert drawn.double().mean().item() == pytest.approx(mean_age, rel=0.03)


def test_statistics_by_hand() -> None:
    found = statistics(torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64), 20)
    expected = {"share_newest_tenth": 0.75, "share_horizon": 1.0, "mean_age": 1.75, "effective_fraction": 1 / 1.5}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("shape", [*SHAPES, "reversed"])
def test_drawing_from_a_million_looks_at_a_batch_only(shape: str) -> None:
    """Not at every age, in tensors or in arrays: what it costs is in benchmarks/replay.py."""
    kind: dict[str, Any] = {"reversed": True} if shape == "reversed" else {"shape": shape}
    buffer = pretend(1_000_000)
    SampleWeightDecay(**kind).on_train_start(Context(buffer=buffer))
    with models.Largest():
        buffer.draw(256)  # what is imported at first is not counted
    tracemalloc.start()
    try:
        with models.Largest() as largest:
            drawn = buffer.draw(256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 256 <= largest.numel <= 2**14  # some weights are drawn by proposals, twice as many each time
    assert peak < 2**20
    assert drawn.max() - drawn.min() > 1000


# --- the intervention ---


def test_presets_are_the_same_sampler() -> None:
    paper, official = SampleWeightDecay(), SampleWeightDecay(preset="official")
    assert paper.weight() == official.weight() == Linear(80_000, 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon": -1}, "horizon >= 0"),
        ({"floor": 1.1}, r"floor in \[0, 1\]"),
        ({"floor": math.nan}, "floor as a finite number; got nan"),
        ({"shape": "cubic"}, "shape as one of linear, exponential, polynomial, window; got .cubic."),
        ({"power": 0.0}, "power > 0"),
        ({"log_every": -1}, "log_every >= 0"),
        ({"reversed": True, "shape": "window"}, "shape='linear' where reversed"),
        ({"preset": "mine"}, "presets paper, official"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleWeightDecay(**settings)


def test_what_it_needs() -> None:
    with pytest.raises(ValueError, match="SampleWeightDecay needs a replay buffer; ppo has none"):
        SampleWeightDecay().on_train_start(Context(name="ppo"))
    with pytest.raises(ValueError, match=r"samples by age, with weigh\(name, weight\).*mine has list"):
        SampleWeightDecay().on_train_start(Context(buffer=[1], name="mine"))
    buffer = memory(3, 3)
    SampleWeightDecay().on_train_start(Context(buffer=buffer))
    with pytest.raises(ValueError, match="already has the age weight 'swd'"):
        SampleWeightDecay().on_train_start(Context(buffer=buffer))


def run(callbacks: list[Any], num_envs: int = 1, steps: int = 300, seed: int = 0) -> tuple[SAC, Context]:
    env = make_env("Pendulum-v1", num_envs=num_envs, seed=seed)
    config = SACConfig(hidden=(16, 16), batch_size=16, learning_starts=60, buffer_size=150)
    agent = models.here(SAC, env.observation_space, env.action_space, config, num_envs=num_envs, seed=seed)
    ctx = train(env, agent, steps, callbacks, context(agent))
    env.close()
    return agent, ctx


class Ages(SampleWeightDecay):
    """Collects the ages of the batches that are learned from."""

    def on_train_start(self, ctx: Context) -> None:
        super().on_train_start(ctx)
        self.seen: list[Tensor] = []
        sample = ctx.buffer.sample

        def remember(size: int) -> Any:
            self.seen.append((batch := sample(size)).age)
            return batch

        ctx.buffer.sample = remember


@pytest.mark.on_real_devices
def test_sac_learns_from_younger_batches_and_the_weight_comes_off() -> None:
    mean = {}
    for name, settings in {"decay": {}, "uniform": {"horizon": 0}, "old": {"reversed": True}}.items():
        method = Ages(**{"horizon": 100, "log_every": 50, **settings})  # type: ignore[arg-type]
        agent, ctx = run([method])
        late = torch.cat(method.seen[-100:]).double()  # the memory holds 150
        mean[name] = late.mean().item()
        assert agent.buffer.weights == {}
        assert method.updates == agent.updates > 200
        logged = {key for key in ctx.latest if key.startswith("interventions/swd/") and not is_timed(key)}
        assert len(logged) == (0 if name == "uniform" else 4)
    assert mean["decay"] < 60 < 70 < mean["uniform"] < 81 < mean["old"]


@pytest.mark.on_real_devices
def test_off_is_bit_identical() -> None:
    plain, _ = run([], num_envs=2)
    zero, _ = run([SampleWeightDecay(horizon=0)], num_envs=2)
    some, _ = run([SampleWeightDecay(horizon=50)], num_envs=2)
    for name, value in plain.networks["actor"].state_dict().items():
        assert torch.equal(value, zero.networks["actor"].state_dict()[name])
    first = next(iter(plain.networks["actor"].state_dict()))
    assert not torch.equal(plain.networks["actor"].state_dict()[first], some.networks["actor"].state_dict()[first])


def test_state_dict() -> None:
    method, again = SampleWeightDecay(), SampleWeightDecay()
    method.updates = 7
    again.load_state_dict(method.state_dict())
    assert again.updates == 7
