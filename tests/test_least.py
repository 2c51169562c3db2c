"""Learn to Stop: typed-out decisions, the history against a naive one, caps and exemptions, real runs."""

import copy
import math
from collections import deque
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor

from plasticity.agents.evaluate import evaluate
from plasticity.agents.records import Episodes
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.train import context, train
from plasticity.callback import Callback, Context
from plasticity.envs import make_env
from plasticity.interventions.episodes import MAX_JUDGED, History
from plasticity.interventions.least import (
    LearnToStop,
    is_unpromising,
    noise_scale,
    novelty_weight,
    row_medians,
    stop_threshold,
    window_entropy,
)

pytestmark = pytest.mark.usefixtures("everywhere")

NAN = math.nan


class Numbers:
    """Random numbers that the host draws: the same ones on every device."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device="cpu")

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device="cpu")


def one(*values: float) -> list[Tensor]:
    return [torch.tensor([value]) for value in values]


# --- pure functions ---


@pytest.mark.parametrize(
    ("q", "eps", "median_g", "g", "omega", "limit", "stops"),
    [
        (4, 5, 1, 2, 0.5, 2.5, False),
        (4, 5, 1, 1, 1, 5, True),
        (4.9, 5, 2, 1, 2, 10, True),
        (-6, -5, 1, 2, 0.5, -10, False),
        (-6, -5, 1, 1, 1, -5, True),
        (-6, -5, 2, 1, 2, -2.5, True),
        (-0.1, 0, 1, 3, 1 / 3, 0, True),
        (0, 0, 1, 3, 1 / 3, 0, False),
    ],
)
def test_golden_decisions(
    q: float, eps: float, median_g: float, g: float, omega: float, limit: float, stops: bool
) -> None:
    found = novelty_weight(*one(median_g, g))
    assert found.item() == pytest.approx(omega)
    assert stop_threshold(torch.tensor([float(eps)]), found).item() == pytest.approx(limit)
    assert is_unpromising(*one(q, eps, median_g, g)).item() is stops


def test_a_larger_omega_is_stricter_for_both_signs() -> None:
    omega = torch.linspace(0.1, 3, 30)
    for eps in (5.0, -5.0):
        limits = stop_threshold(torch.full_like(omega, eps), omega)
        assert (limits.diff() > 0).all()
    assert stop_threshold(*one(-5, 0)).item() == pytest.approx(-5e8)  # guarded: never stops


def test_coefficient_and_bounds_of_omega() -> None:
    median_g, g = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([10.0, 2.0, 1.0, 0.0])
    assert novelty_weight(median_g, g, coef=0.5).tolist() == pytest.approx([0.05, 0.25, 0.5, 0.5e8])
    assert novelty_weight(median_g, g, 1.0, 0.3, 0.6).tolist() == pytest.approx([0.3, 0.5, 0.6, 0.6])
    # literal reading, a well-predicted step of an episode far above the median: omega <= 1 keeps it
    assert is_unpromising(*one(50, 5, 1, 0.01), coef=0.5).item() is True
    assert is_unpromising(*one(50, 5, 1, 0.01), coef=0.5, high=1.0).item() is False


def test_nothing_stops_on_what_is_not_known() -> None:
    for values in ((NAN, 5, 1, 1), (1, NAN, 1, 1), (1, 5, NAN, 1), (1, 5, 1, NAN)):
        assert is_unpromising(*one(*values)).item() is False


def test_median_is_the_usual_one() -> None:
    rows = torch.tensor([[3, 1, NAN, 2], [4, 1, 2, 3], [NAN, 7, NAN, NAN], [NAN] * 4])
    assert row_medians(rows)[:3].tolist() == [2, 2.5, 7]
    assert row_medians(rows)[3].isnan()


def test_entropy() -> None:
    assert window_entropy(torch.tensor([1.0, -1.0, NAN, 1.0, -1.0])) == pytest.approx(math.log(2))
    assert window_entropy(torch.tensor([[1.0, 1.0], [1.0, 1.0]])) == 0
    assert math.isnan(window_entropy(torch.tensor([NAN, 3.0])))
    values = Numbers().normal(5000)
    assert window_entropy(values) == pytest.approx(window_entropy(100 * values + 7), abs=1e-3)
    counts, _ = np.histogram(((values - values.mean()) / values.std()).clamp(-4, 4).numpy(), 50, (-4, 4))
    share = counts[counts > 0] / 5000
    assert window_entropy(values) == pytest.approx(-(share * np.log(share)).sum(), abs=1e-3)


def test_noise_schedule() -> None:
    assert noise_scale(0, 0.1, 0.3) == pytest.approx(0.1)
    assert noise_scale(0.5, 0.1, 0.3) == pytest.approx(0.2)
    assert noise_scale(1, 0.1, 0.3) == pytest.approx(0.3)
    scales = [noise_scale(share / 20, 0.1, 0.3) for share in range(21)]
    assert scales == sorted(scales)


# --- the history ---


def test_history_against_a_naive_one() -> None:
    numbers = Numbers()
    history, naive = History(7), deque[Tensor](maxlen=7)
    for _ in range(25):
        length = int(torch.randint(1, 30, (), generator=numbers.generator, device="cpu"))
        episode = numbers.normal(2, length)
        history.push(episode)
        naive.append(episode)
        for window in (1, 3, 7, 50):
            steps = torch.tensor([0, 5, 12, 29, 200], device="cpu")
            rows = history.rows(steps, window)
            for position, step in enumerate(steps.tolist()):
                known = [e[:, step] for e in list(naive)[-window:] if e.shape[1] > step]
                expected = torch.stack(known, 1) if known else torch.empty(2, 0, device="cpu")
                found = rows[:, position]
                assert torch.equal(found[:, ~found[0].isnan()].sort(1).values, expected.sort(1).values)
                if known:
                    assert torch.allclose(row_medians(found), torch.from_numpy(np.median(expected.numpy(), 1)))


# --- the rule on hand-made streams ---


class Stream:
    """Environments whose Q and TD error are given; episodes end by themselves after `length` steps."""

    def __init__(self, method: LearnToStop, num_envs: int = 1, length: int = 30, lag: bool = False) -> None:
        self.q, self.error = torch.zeros(num_envs), torch.ones(num_envs)
        self.length, self.num_envs, self.method = length, num_envs, method
        self.steps = torch.zeros(num_envs, dtype=torch.int64, device="cpu")
        self.ctx = Context(value=lambda obs, action: self.q, writer=Log())
        if not lag:
            self.ctx.td_error = lambda transition: self.error  # type: ignore[attr-defined]
        self.ended: list[tuple[int, bool]] = []
        method.on_train_start(self.ctx)

    def step(self, q: Any, error: Any = 1.0, terminated: bool = False, reward: float = 0.0) -> Tensor:
        """One step of all environments; returns which were stopped."""
        self.q = torch.as_tensor(q, dtype=torch.float32).expand(self.num_envs)
        self.error = torch.as_tensor(error, dtype=torch.float32).expand(self.num_envs)
        self.ctx.step += self.num_envs
        self.steps += 1
        last = self.steps >= self.length
        transition = SimpleNamespace(
            obs=torch.zeros(self.num_envs, 1),
            action=torch.zeros(self.num_envs, 1),
            reward=torch.full((self.num_envs,), reward),
            next_obs=torch.zeros(self.num_envs, 1),
            terminated=torch.as_tensor(last & terminated),
            truncated=torch.as_tensor(last & (not terminated)),
        )
        self.method.on_step(self.ctx, transition)
        assert torch.equal(transition.terminated.cpu(), last & terminated)  # a stop never terminates
        truncated = transition.truncated.cpu()
        stopped = truncated & ~last
        assert torch.equal(truncated, stopped | (last & (not terminated)))
        done = last | stopped
        self.ended += [(int(self.steps[i]), bool(stopped[i])) for i in done.nonzero().flatten()]
        self.steps[done] = 0
        return stopped

    def episode(self, q: float, error: float = 1.0) -> tuple[int, bool]:
        """Play one episode of constant Q in one environment; returns its length and whether it was stopped."""
        while not self.step(q, error).any() and self.steps.any():
            pass
        return self.ended[-1]


class Log:
    """A writer that remembers events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def log(self, step: int, values: Any) -> None:
        pass

    def histogram(self, step: int, tag: str, values: Any) -> None:
        pass

    def event(self, step: int, name: str, details: Any) -> None:
        self.events.append((name, dict(details)))


def eager(**changes: Any) -> LearnToStop:
    """A method that may stop from the first step on, as soon as one episode is known."""
    free: dict[str, Any] = {
        "warmup": 0, "min_length": 1, "min_episodes": 1, "exempt": 0.0, "max_stop_rate": 1.0, "window_every": 0,
    }  # fmt: skip
    return LearnToStop(**{**free, **changes})


@pytest.mark.parametrize(("level", "worse", "better"), [(10.0, 4.9, 5.1), (-10.0, -20.1, -19.9), (0.0, -0.1, 0.1)])
def test_stops_below_the_threshold_of_either_sign(level: float, worse: float, better: float) -> None:
    stream = Stream(eager())
    for _ in range(5):
        assert stream.episode(level, 1.0) == (30, False)
    assert stream.episode(better, 1.0) == (30, False)
    assert stream.episode(worse, 1.0) == (1, True)


def test_a_large_error_lets_the_episode_go_on() -> None:
    stream = Stream(eager())
    for _ in range(5):
        stream.episode(10.0, 1.0)
    assert stream.episode(3.0, 2.0) == (30, False)  # omega = 0.5 / 4: the threshold is 1.25
    assert stream.episode(3.0, 1.0) == (1, True)
    linear = Stream(eager(proxy="error"))
    for _ in range(5):
        linear.episode(10.0, 1.0)
    assert linear.episode(3.0, 2.0) == (30, False)  # omega = 0.5 / 2: the threshold is 2.5
    assert linear.episode(2.0, 2.0) == (1, True)


def test_presets() -> None:
    assert LearnToStop().bounds() == (0.5, 0.0, 1.0)
    assert LearnToStop(preset="clamped").bounds() == (1.0, 0.3, 0.6)
    assert LearnToStop(preset="constant", coef=0.4).bounds() == (0.4, 0.4, 0.4)
    assert LearnToStop(coef=0.3).bounds() == (0.3, 0.0, 1.0)
    stream = Stream(eager(preset="constant"))
    stream.episode(10.0)
    assert stream.episode(4.9, error=100.0) == (1, True)


def test_thresholds_belong_to_the_step() -> None:
    stream = Stream(eager(), length=4)
    for _ in range(3):
        for q in (10.0, 10.0, 1.0, 1.0):
            stream.step(q)
    for q in (6.0, 6.0, 0.6):
        assert not stream.step(q).any()
    assert stream.step(0.4).item() is False  # the last step: truncated already
    assert stream.ended[-1] == (4, False)
    stream.step(6.0)
    assert stream.step(4.0).item() is True


def test_ends_of_the_environment_are_left_alone() -> None:
    for terminated in (True, False):
        stream = Stream(eager(), length=1)
        for q in (10.0, 10.0, 0.0):
            assert not stream.step(q, terminated=terminated).any()
        assert stream.ended == [(1, False)] * 3


def test_warmup_minimum_length_and_minimum_episodes() -> None:
    stream = Stream(eager(warmup=95))
    for _ in range(3):
        stream.episode(10.0)
    assert stream.episode(1.0) == (6, True)  # steps 91 to 95 are warm-up
    stream = Stream(eager(min_length=12))
    stream.episode(10.0)
    assert stream.episode(1.0) == (12, True)
    stream = Stream(eager(min_episodes=3))
    assert [stream.episode(q)[1] for q in (10.0, 10.0, 1.0, 1.0)] == [False, False, False, True]


def test_a_step_that_few_episodes_reached_is_not_judged() -> None:
    stream = Stream(eager(min_episodes=2), length=5)
    stream.episode(10.0)
    stream.episode(10.0)
    stream.length = 8
    stream.episode(10.0)
    for step in range(8):
        q = 10.0 if step < 5 else 1.0
        assert not stream.step(q).any()  # one episode only went beyond five steps
    for step in range(6):
        assert stream.step(10.0 if step < 5 else -50.0).any().item() is (step == 5)


@pytest.mark.on_real_devices
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("cap", [0.0, 0.2, 0.5])
@pytest.mark.slow_off_the_cpu
def test_the_stop_rate_stays_below_its_cap(cap: float, num_envs: int) -> None:
    method = eager(max_stop_rate=cap, rate_episodes=20, window=20, window_min=20, window_max=20)
    stream = Stream(method, num_envs, length=3)
    numbers = Numbers()
    for _ in range(900):
        stream.step(numbers.normal(num_envs))
    stopped = torch.tensor([float(s) for _, s in stream.ended])
    rates = stopped.unfold(0, 20, 1).mean(1)
    assert rates.max() <= cap + 1e-6
    assert cap == 0 or rates.max() > cap - 0.11  # and it is used
    assert stopped.cumsum(0).div(torch.arange(len(stopped)) + 1).max() <= cap + 1e-6
    assert method.vetoes + method.counts.get("vetoes", 0) > 0


@pytest.mark.slow_off_the_cpu
def test_exempt_episodes_are_never_stopped() -> None:
    stream = Stream(eager(exempt=1.0))
    for q in (10.0, 1.0, 1.0):
        assert stream.episode(q) == (30, False)
    stream = Stream(eager(exempt=0.25, seed=3), length=4)
    for _ in range(300):
        stream.episode(10.0)
    lengths = [stream.episode(1.0)[0] for _ in range(120)]
    assert set(lengths) == {1, 4}
    assert 0.15 < lengths.count(4) / 120 < 0.36


def test_each_environment_is_judged_at_its_own_step() -> None:
    stream = Stream(eager(min_length=3), num_envs=3, length=6)
    for _ in range(6):
        stream.step(10.0)
    stream.steps[1] = 0
    assert stream.step([10.0, 1.0, 10.0]).tolist() == [False, False, False]
    assert stream.step([1.0, 1.0, 10.0]).tolist() == [False, False, False]
    assert stream.step([10.0, 1.0, 10.0]).tolist() == [False, True, False]  # and begins anew
    assert stream.step([1.0, 1.0, 10.0]).tolist() == [True, False, False]
    assert stream.ended[-2:] == [(3, True), (4, True)]


def test_without_a_td_error_the_last_transition_serves() -> None:
    method = eager(gamma=0.5, proxy="error")
    stream = Stream(method, length=3, lag=True)
    for q in (4.0, 8.0, 2.0):
        stream.step(q, reward=1.0)
    table = method.history.table[:, :3, 0]
    assert table[0].tolist() == [4, 8, 2]
    assert table[1, 0].isnan()
    assert table[1, 1:].tolist() == [abs(1 + 0.5 * 8 - 4), abs(1 + 0.5 * 2 - 8)]
    assert not stream.step(-100.0).any()  # the first step is not judged
    assert stream.step(-100.0).all()


def test_very_long_episodes_are_recorded_up_to_a_limit() -> None:
    method = eager(window=1, window_min=1, window_max=1)
    stream = Stream(method, length=MAX_JUDGED + 50)
    assert method._running is None
    stream.step(1.0)
    running = method._running
    assert running is not None
    running.steps += MAX_JUDGED - 10  # as if they had been played
    stream.steps += MAX_JUDGED - 10
    running.values = torch.zeros(2, 1, 16_384, device="cpu")
    while stream.steps.any():
        stream.step(-1.0)
    assert stream.ended == [(MAX_JUDGED + 50, False)]
    assert method.history.table.shape[1] == MAX_JUDGED


@pytest.mark.on_real_devices
def test_stop_rate_on_a_fixed_stream_is_what_it_was() -> None:
    method = LearnToStop(warmup=2000, window=60, window_min=20, window_max=100, window_every=500, report_every=50)
    stream = Stream(method, num_envs=2, length=60)
    numbers = Numbers()
    quality = numbers.normal(2)
    for _ in range(6000):
        noise = numbers.normal(2, 2)
        before = stream.steps.clone()
        stream.step(10 + 4 * quality + 0.5 * noise[0], noise[1].abs() + 0.1)
        quality = torch.where(stream.steps <= before, numbers.normal(2), quality)
    lengths = [length for length, stopped in stream.ended if stopped]
    assert (len(stream.ended), len(lengths)) == (238, 61)
    assert sum(lengths) / len(lengths) == pytest.approx(21.85, abs=0.01)
    # every stop is counted, in few events
    method.on_train_end(stream.ctx)
    assert method.counts["stops"] == len(lengths)
    assert method.counts["episodes"] == len(stream.ended)
    events = [details for _, details in stream.ctx.writer.events if "stops" in details]  # type: ignore[union-attr]
    assert sum(details["stops"] for details in events) == len(lengths)
    assert len(events) == math.ceil(len(stream.ended) / 50)


@pytest.mark.parametrize("level", [3.0, *(pytest.param(x, marks=pytest.mark.on_real_devices) for x in (0.0, -3.0))])
@pytest.mark.some(2)
@pytest.mark.slow_off_the_cpu
def test_decisions_against_a_naive_implementation(level: float) -> None:
    stream = Stream(eager(min_length=3, min_episodes=4, max_stop_rate=0.4, rate_episodes=10, window=50), length=12)
    numbers = Numbers(2)
    episodes: list[list[tuple[float, float]]] = []
    outcomes: list[bool] = []
    current: list[tuple[float, float]] = []
    for _ in range(1500):
        q, error = level + float(numbers.normal()), float(numbers.uniform())
        current.append((q, error**2))
        step, expected = len(current), False
        column = [episode[step - 1] for episode in episodes[-50:] if len(episode) >= step]
        if step < 12 and step >= 3 and len(column) >= 4:
            eps, median_g = np.median(np.array(column), 0)
            omega = min(0.5 * median_g / error**2, 1.0)
            expected = bool(q < (omega * eps if eps >= 0 else eps / omega))
            expected &= sum(outcomes[-9:]) + 1 <= 0.4 * (len(outcomes[-9:]) + 1)
        assert stream.step(q, error).item() is expected
        if expected or step == 12:
            episodes.append(current)
            outcomes.append(expected)
            current = []
    assert 20 < sum(outcomes) < len(outcomes)


# --- adaptation ---


def test_window_follows_the_entropy() -> None:
    method = LearnToStop(window=30, window_min=15, window_max=40, window_step=10, window_every=10)
    numbers = Numbers()
    for _ in range(40):
        method.history.push(numbers.normal(2, 20).sign())
    method._move_window(9)
    assert method.entropy is None
    method._move_window(10)
    low = method.entropy
    assert low == pytest.approx(math.log(2), abs=0.01)
    assert method.k == 30  # the first one sets the mean
    for _ in range(40):
        method.history.push(numbers.normal(2, 20))
    method._move_window(19)
    assert method.k == 30
    seen = []
    for step in range(20, 60, 10):
        method._move_window(step)
        seen.append(method.k)
    assert seen[:2] == [40, 40]  # enlarged, up to window_max
    assert low is not None
    assert method.entropy is not None
    assert method.entropy > low
    method.entropy = 100.0
    for step in range(100, 140, 10):
        method._move_window(step)
    assert method.k == 15  # shrunk, down to window_min


def test_noise_is_applied_where_it_is_lent() -> None:
    scales: list[float] = []
    method = eager(noise_early=0.5, noise_episodes=4)
    stream = Stream(method)
    assert any("noise schedule not applied" in details.get("note", "") for _, details in stream.ctx.writer.events)  # type: ignore[union-attr]
    stream.ctx.set_noise = scales.append  # type: ignore[attr-defined]
    method.on_train_start(stream.ctx)
    for _ in range(5):
        stream.episode(10.0)
    assert scales == [pytest.approx(0.1)] * 6
    for _ in range(2):
        stream.episode(1.0)
    assert scales[-1] == pytest.approx(0.2)  # two of the last four stopped early
    quiet = Stream(eager(noise_max=0.1))
    assert quiet.ctx.writer.events == []  # type: ignore[union-attr]


# --- state ---


@pytest.mark.parametrize("lag", [False, True])
@pytest.mark.slow_off_the_cpu
def test_resuming_in_the_middle_of_an_episode_gives_the_same_decisions(tmp_path: Any, lag: bool) -> None:
    def make() -> LearnToStop:
        return eager(
            window=12, window_min=5, window_max=20, window_every=40, exempt=0.3, max_stop_rate=0.5, rate_episodes=10
        )

    first = Stream(make(), num_envs=2, length=9, lag=lag)
    numbers = Numbers(1)
    for _ in range(205):
        first.step(numbers.normal(2), numbers.uniform(2))
    assert first.steps.any()
    torch.save(first.method.state_dict(), tmp_path / "least.pt")
    again = Stream(make(), num_envs=2, length=9, lag=lag)
    again.method.load_state_dict(torch.load(tmp_path / "least.pt", weights_only=True))
    again.steps, again.ctx.step = first.steps.clone(), first.ctx.step
    frozen = copy.deepcopy(first.method.state_dict())
    first.ended.clear()
    for _ in range(200):
        values = numbers.normal(2), numbers.uniform(2)
        assert torch.equal(first.step(*values), again.step(*values))
    assert first.ended == again.ended
    assert any(stopped for _, stopped in first.ended)
    assert not torch.equal(
        frozen["history"]["table"],
        first.method.state_dict()["history"]["table"],
    )
    assert first.method.state_dict()["k"] == again.method.state_dict()["k"]


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"LearnToStop needs a value function of .* ppo has none"):
        LearnToStop().on_train_start(Context(name="ppo"))
    with pytest.raises(ValueError, match="saved with window_max 1000, this one has 300"):
        LearnToStop(window_max=300).load_state_dict(LearnToStop().state_dict())
    bad: dict[str, Any] = {
        "coef": 0.0, "omega_min": 2.0, "proxy": "norm", "gamma": 1.1, "warmup": -1, "min_length": 0, "exempt": 2.0,
        "max_stop_rate": -0.1, "window": 2000, "window_min": 0, "entropy_margin": -1.0, "noise": 1.0,
        "preset": "official", "report_every": 0, "noise_early": NAN,
    }  # fmt: skip
    for name, value in bad.items():
        with pytest.raises(ValueError, match="presets paper, clamped" if name == "preset" else name):
            LearnToStop(**{name: value})


# --- real runs ---


class Recorder(Callback):
    """Return the transition that the loop hands on after the method."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_step(self, ctx: Context, transition: Any) -> None:
        self.steps.append(transition)


def sac(num_envs: int = 1, seed: int = 0, learning_starts: int = 100) -> tuple[Any, SAC]:
    env = make_env("Pendulum-v1", num_envs=num_envs, seed=seed, max_episode_steps=25)
    config = SACConfig(hidden=(16, 16), batch_size=16, learning_starts=learning_starts, buffer_size=2000)
    return env, models.here(SAC, env.observation_space, env.action_space, config, num_envs=num_envs, seed=seed)


@pytest.mark.parametrize(("num_envs", "lent"), [(1, True), (2, False)])
@pytest.mark.slow_off_the_cpu
def test_sac_trains_on_and_stopped_transitions_bootstrap(num_envs: int, lent: bool) -> None:
    env, agent = sac(num_envs, learning_starts=400)
    ctx = context(agent)
    ctx.td_error = agent.td_error if lent else None  # type: ignore[attr-defined]
    method, recorder, episodes = eager(warmup=200, min_length=5, preset="constant", coef=1.0), Recorder(), Episodes()
    train(env, agent, 500, [method, recorder, episodes], ctx)
    stops = method.counts["stops"]
    assert 0 < stops < method.counts["episodes"]
    assert method.counts["episodes"] == episodes.finished
    lengths: list[int] = []
    since = torch.zeros(num_envs, dtype=torch.int64)
    for time_, step in enumerate(recorder.steps):
        since += 1
        assert not step.terminated.any()
        for index in step.truncated.nonzero().flatten().tolist():
            lengths.append(int(since[index]))
            since[index] = 0
            slot = time_ * num_envs + index
            assert not agent.buffer.storage["terminated"][slot]  # it bootstraps
            assert torch.equal(agent.buffer.storage["next_obs"][slot].cpu(), step.next_obs[index])
            if time_ + 1 < len(recorder.steps):  # and the loop has reset that environment
                assert not torch.equal(recorder.steps[time_ + 1].obs[index], step.next_obs[index])
    assert sum(length < 25 for length in lengths) == stops
    assert min(lengths) >= 5
    returns = evaluate(agent, make_env("Pendulum-v1", max_episode_steps=25), 2)
    assert returns.isfinite().all()


def test_a_stop_does_not_change_the_target() -> None:
    env, agent = sac()
    env.reset()
    transition = env.step(torch.zeros(1, 1))
    agent.observe(transition)
    plain = agent.buffer.sample(1)
    transition.truncated = torch.tensor([True])
    agent.observe(transition)
    noise, alpha = torch.zeros(1, 1), torch.ones(())
    y = agent.target_value(plain, alpha, noise)
    assert torch.equal(y, agent.target_value(agent.buffer.sample(1), alpha, noise))
    ended = copy.copy(plain)
    ended.terminated = torch.tensor([True])
    assert agent.target_value(ended, alpha, noise).item() == plain.reward.item() != y.item()


def test_td_error_of_sac_by_hand() -> None:
    env, agent = sac(num_envs=2)
    obs = env.reset()
    transition = env.step(agent.act(obs, explore=True))
    transition = models.on(agent.device, transition)
    transition.terminated = torch.tensor([True, False])
    before = [generator.get_state() for generator in agent.generators.values()]
    found = agent.td_error(transition)
    with torch.no_grad():
        mean, log_std = agent.networks["actor"](transition.next_obs)
        action = torch.tanh(mean)
        log_prob = (-log_std - 0.5 * math.log(2 * math.pi) - torch.log(1 - action**2 + 1e-6)).sum(-1)
        next_q = torch.minimum(*(target(transition.next_obs, action) for target in agent.targets.values()))
        soft = next_q - agent.log_alpha.exp() * log_prob
        y = transition.reward + 0.99 * torch.tensor([0.0, 1.0]) * soft
        errors = [agent.networks[name](transition.obs, transition.action) - y for name in ("critic_1", "critic_2")]
    assert torch.allclose(found, ((errors[0] ** 2 + errors[1] ** 2) / 2).sqrt(), atol=1e-5)
    assert not found.requires_grad
    for generator, state in zip(agent.generators.values(), before, strict=True):
        assert torch.equal(generator.get_state(), state)


@pytest.mark.slow_off_the_cpu
def test_during_warmup_the_run_is_bit_identical() -> None:
    weights = []
    for callbacks in ([], [LearnToStop()]):
        env, agent = sac()
        train(env, agent, 140, callbacks, context(agent))
        weights.append(agent.networks["actor"].state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_step_looks_at_one_step_of_every_episode_only() -> None:
    """Not at the whole history, whose medians take 60 times as long."""
    method = eager(window_every=0, preset="constant")
    stream = Stream(method, length=10**9)
    for _ in range(method.window):
        method.history.push(torch.randn(2, 1000, device="cpu"))
    stream.step(1e9)
    with models.Largest() as largest:
        for q in (1e9, -1e9):
            assert stream.step(q).item() is (q < 0)  # the episode that ends is written into the history
    assert 2 * method.window <= largest.numel < 2 * 1000 * 3
    assert method.history.table.numel() >= 2 * 1000 * method.window
