"""Probes on compiled updates: the same bits are learned with and without, and what is read is what eager hooks see."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import elsewhere
import models
import pytest
import torch
from inductor import some_compiled
from test_gradient import AGENTS, Quadratic, assert_same_bits, is_eager
from test_monitor import hooks_of
from torch import Tensor, nn

from plasticity.agents import gradient, graph
from plasticity.monitor import Monitor
from plasticity.observing.reading import Reading
from plasticity.probes import Dormancy, Probe, Rank
from plasticity.watching import Watcher

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")

ALL = ("dormancy", "grama", "grama_weight", "grama_post", "rank")
Readings = list[tuple[str, int, Reading]]


def learn(name: str, compile: str, probes: Any = (), **when: int) -> tuple[list[Tensor], Readings, Any]:
    """Return the parameters after some updates, what was read, and the agent."""
    make, inputs = AGENTS[name]
    agent, readings = make(compile), Readings()
    if probes:
        Watcher(
            agent.networks,
            list(agent.optimizers.values()),
            lambda network, reading, step: readings.append((network, step, reading)),
            probes=probes,
            strict=True,
            **when,
        )
    for i in range(20 if models.place() == elsewhere.NAME else 50):
        agent.learn(inputs(i))
        agent.updates += 1
    return [p for network in agent.networks.values() for p in network.parameters()], readings, agent


def assert_same_readings(found: Readings, expected: Readings) -> None:
    """Assert that networks, steps and passes are equal, and scores until the last bits have grown."""
    assert [(n, step, r.num_passes) for n, step, r in found] == [(n, step, r.num_passes) for n, step, r in expected]
    for (_, _, a), (_, _, b) in zip(found[:6], expected, strict=False):
        assert {p: list(s) for p, s in a.scores.items()} == {p: list(s) for p, s in b.scores.items()}
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-2, atol=1e-3)
        for metric in ("effective_rank", "stable_rank"):
            for layer, value in b.values.get(metric, {}).items():
                assert a.values[metric][layer] == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", some_compiled(["sac", "td3", "dqn", "ppo"], quick=[]))
@pytest.mark.some(2)
@pytest.mark.slow_off_the_cpu
def test_the_same_bits_are_learned_and_read_is_what_hooks_see(name: str) -> None:
    plain, _, _ = learn(name, "on")
    measured, found, agent = learn(name, "on", ALL, every=5, window=3)
    _, expected, _ = learn(name, "off", ALL, every=5, window=3)
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))
    assert_same_readings(found, expected)
    last = found[-1][2]
    assert last.num_passes == 3
    # A graph without probes, one with, and one with the rank, which the last step of a window alone shows.
    steps = list(agent.steps.values())
    assert [len(step._graphs) for step in steps] == [3] * len(steps)


# -- one small network -------------------------------------------------------------------------------------------------


def watched(probes: Any = ("dormancy",), **when: Any) -> tuple[Quadratic, list[Reading], Watcher]:
    """Return a compiled learner whose every step is measured, and its readings."""
    learner, readings = Quadratic(**when.pop("options", {})), list[Reading]()
    watcher = Watcher(
        learner.networks,
        list(learner.optimizers.values()),
        lambda network, reading, step: readings.append(reading),
        probes=probes,
        **{"every": 1, **when},
    )
    return learner, readings, watcher


def magnitudes(learner: Quadratic, seeds: Sequence[int]) -> Tensor:
    """Return the mean activations of the hidden layer on what the seeds draw, for the weights of now."""
    x = torch.cat([models.normal(4, 3, seed=seed) for seed in seeds])
    return learner.networks["net"][:2](x).detach().mean(0)


def test_a_reading_is_by_hand_the_mean_over_all_samples_of_the_window() -> None:
    learner, readings, _ = watched(every=3, window=3)
    learner.optimizers["net"].param_groups[0]["lr"] = 0.0
    for seed in range(7):
        learner.learn(seed)
    assert [reading.num_passes for reading in readings] == [1, 3, 3]
    for reading, seeds in zip(readings, ([0], [1, 2, 3], [4, 5, 6]), strict=True):
        expected = magnitudes(learner, seeds)
        torch.testing.assert_close(reading.scores["dormancy"]["0"].float(), (expected / expected.mean()).cpu())


class Summed(Dormancy):
    """Its scores are the sums themselves."""

    def scores(self) -> Tensor:
        return self.total("on_forward")


def test_sums_are_those_of_a_window_where_a_graph_is_made_in_the_middle_of_it_and_readings_stay() -> None:
    learner, readings, _ = watched({"sums": Summed()}, every=3, window=3)
    learner.optimizers["net"].param_groups[0]["lr"] = 0.0
    x = [models.normal(6 if i in (3, 5) else 4, 3, seed=i) for i in range(7)]
    for one in x:
        learner.step(one, torch.zeros(len(one)), updates=0)
    assert len(learner.step._graphs) == 2
    assert [reading.num_passes for reading in readings] == [1, 3, 3]
    for reading, shown in zip(readings, (x[:1], x[1:4], x[4:]), strict=True):
        expected = learner.networks["net"][:2](torch.cat(shown)).detach().sum(0)
        torch.testing.assert_close(reading.scores["sums"]["0"].float(), expected.cpu())


def test_measured_steps_are_compiled_once_however_often() -> None:
    learner, readings, _ = watched(every=2)
    for seed in range(4):
        learner.learn(seed)
    graphs, calls = len(learner.step._graphs), learner.eager_calls
    for seed in range(6):
        learner.learn(seed)
    assert graphs == len(learner.step._graphs) == 2
    assert learner.eager_calls == calls
    assert len(readings) == 5


def test_what_a_graph_delivers_is_time_that_is_spent() -> None:
    learner, _, watcher = watched(every=10, window=10)
    for seed in range(3):
        learner.learn(seed)
    (monitor,) = watcher.monitors.values()
    before, eager_calls = monitor.seconds, learner.eager_calls
    learner.learn(3)
    assert learner.eager_calls == eager_calls
    assert monitor.seconds > before


def test_gradients_of_weights_are_those_before_clipping() -> None:
    found = []
    for limit in (None, 1e-3):
        learner, readings, _ = watched(["grama_weight"], options={"max_norm": limit}, every=2, window=2)
        learner.optimizers["net"].param_groups[0]["lr"] = 0.0
        for seed in range(3):
            learner.learn(seed)
        found.append(readings[-1].scores["grama_weight"]["0"])
    torch.testing.assert_close(found[0], found[1])


class Seen(Probe):
    """Keeps the rows that it gets, as a user's probe may."""

    def reset(self) -> None:
        self.rows: list[Tensor] = []

    def on_forward(self, activations: Tensor) -> None:
        self.rows.append(activations.clone())

    def on_weight_gradient(self, gradients: Tensor) -> None:
        self.rows.append(gradients.clone())

    def compute(self) -> Tensor:
        assert [rows.shape for rows in self.rows] == [(4, 8), (8, 3)]
        return torch.cat([rows.flatten() for rows in self.rows]).abs().sum()


def test_a_probe_of_ones_own_gets_rows() -> None:
    values = []
    for compile in ("off", "on"):
        learner, readings, _ = watched({"seen": Seen()}, options={"compile": compile}, strict=True)
        learner.learn(0)
        values.append(readings[0].values["seen"]["0"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_two_monitors_ride_and_the_arguments_of_the_pass_are_known() -> None:
    learner = Quadratic()
    net = learner.networks["net"]
    with Monitor(net, ["dormancy"], passes="training") as one, Monitor(net, ["grama"], passes="training") as other:
        assert not is_eager(learner)
        x = torch.randn(4, 3)
        learner.step(x, torch.zeros(4), updates=0)
    assert one.num_passes == other.num_passes == 3
    assert torch.equal(one.inputs[0][0], x)
    assert list(one.read().scores) == ["dormancy"]
    assert hooks_of(net) == 0


def test_what_cannot_ride_makes_the_step_eager_and_is_measured_all_the_same() -> None:
    learner = Quadratic()
    net = learner.networks["net"]
    with Monitor(net, ["dormancy"]) as monitor:  # counts passes without a gradient too
        assert is_eager(learner)
        assert monitor.num_passes == 2
    with Monitor(net, ["dormancy"], passes="training") as monitor:
        assert not is_eager(learner)
        monitor.mask = torch.tensor([True, True, False, True])
        assert is_eager(learner)
        monitor.mask = None
        assert not is_eager(learner)
    assert not is_eager(learner)


def test_hooks_of_a_copy_and_of_a_monitor_that_is_gone_change_nothing() -> None:
    learner = Quadratic()
    with Monitor(learner.networks["net"], ["dormancy"], passes="training") as monitor:
        learner.learn()
        learner.networks["net"] = copy.deepcopy(learner.networks["net"])
        learner.optimizers["net"] = torch.optim.SGD(learner.networks["net"].parameters(), lr=0.1)
        assert hooks_of(learner.networks["net"]) > 0
        assert not is_eager(learner)
    assert monitor.num_passes == 1


def test_replaced_modules_are_traced_and_wired_anew() -> None:
    learner, readings, _ = watched()
    learner.learn(0)
    net = learner.networks["net"]
    net[0], net[2] = nn.Linear(3, 5), nn.Linear(5, 1)
    learner.optimizers["net"].param_groups[0]["params"] = list(net.parameters())
    learner.learn(1)
    learner.learn(2)
    assert [r.num_neurons for r in readings] == [{"0": 8}, {"0": 5}, {"0": 5}]
    assert not is_eager(learner)


def test_a_trace_that_fails_makes_measured_steps_eager_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_step = graph.compile_step

    def fail_with_riders(*arguments: Any) -> Any:
        result = compile_step(*arguments)
        if arguments[-1]:
            raise RuntimeError("a probe that cannot be traced")
        return result

    monkeypatch.setattr(graph, "compile_step", fail_with_riders)
    learner, readings, watcher = watched()
    with pytest.warns(RuntimeWarning, match="going on without compiling the updates that are measured: a probe that"):
        learner.learn(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.learn(1)
    assert [reading.num_passes for reading in readings] == [1, 1]
    watcher.close()
    assert not is_eager(learner)


@pytest.mark.filterwarnings("ignore:Rank")
def test_a_probe_that_raises_is_off_and_training_goes_on() -> None:
    class Broken(Dormancy):
        def sums(self) -> dict[str, Any]:
            def fail(rows: Tensor) -> Tensor:
                raise ZeroDivisionError("oh")

            return {"on_forward": fail}

    learner, readings, _ = watched({"bad": Broken(), "rank": Rank()})
    with pytest.warns(RuntimeWarning, match="probe 'bad' failed"):
        learner.learn(0)
    learner.learn(1)
    assert all(r.values["effective_rank"]["0"] > 1 for r in readings)
    assert "the probe failed: ZeroDivisionError: oh" in {entry.reason for entry in readings[1].unmeasured}


# -- riding only where it pays -----------------------------------------------------------------------------------------


def test_a_graph_with_probes_is_compiled_once_the_measured_updates_pay_for_it() -> None:
    """One step in 4 is measured: until 4 COMPILE_AFTER updates, those are shown eagerly beside the plain graph."""
    learner, readings, _ = watched(every=4, options={"compile": "auto"})
    plain = Quadratic(compile="auto")
    before, after = gradient.COMPILE_AFTER, 4 * gradient.COMPILE_AFTER
    for seed in range(8):
        for one in (learner, plain):
            one.learn(seed, updates=before if seed < 6 else after - 1)
    assert len(learner.step._graphs) == 1
    assert len(readings) == 2
    assert_same_bits(learner, plain)  # what is shown eagerly is not what is stepped on
    for seed in range(8, 12):
        for one in (learner, plain):
            one.learn(seed, updates=after)
    assert len(learner.step._graphs) == 2
    assert len(readings) == 3
    assert_same_bits(learner, plain)


def test_what_is_shown_is_what_rides() -> None:
    (shown, eager, _), (ridden, riding, _) = (
        watched(["dormancy", "grama_weight"], every=2, options={"compile": compile}) for compile in ("auto", "on")
    )
    for seed in range(5):
        for learner in (shown, ridden):
            learner.learn(seed, updates=gradient.COMPILE_AFTER)
    assert [len(learner.step._graphs) for learner in (shown, ridden)] == [1, 2]
    assert_same_bits(shown, ridden)
    for one, other in zip(eager, riding, strict=True):
        assert one.num_passes == other.num_passes == 1
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-4, atol=1e-6)


def test_showing_leaves_random_numbers_as_they_were() -> None:
    learners = [watched(every=every, options={"compile": "auto"})[0] for every in (2, 1000)]
    for learner in learners:
        torch.manual_seed(1)
        learner.networks["net"][1] = nn.Dropout(0.5)
        for seed in range(3):
            learner.learn(seed, updates=gradient.COMPILE_AFTER - (seed == 0))
    assert_same_bits(*learners)


@pytest.mark.filterwarnings("ignore:Rank")
def test_the_share_of_a_window_counts_its_steps_and_its_last_step_alone() -> None:
    """With the rank, which the last step of a window alone shows, that step has a graph of its own."""
    learner, _, watcher = watched(["dormancy", "rank"], every=10, window=4, options={"compile": "off"})
    (monitor,) = watcher.monitors.values()
    shares = []
    for seed in range(11):
        shares.append(monitor.share if monitor.attached else None)
        learner.learn(seed)
    assert shares == [0.1, *[None] * 6, 0.4, 0.4, 0.4, 0.1]
    _, _, watcher = watched(["dormancy"], every=10, window=4)
    assert next(iter(watcher.monitors.values())).share == 0.4
    _, _, watcher = watched(["dormancy"], due=lambda network, step: True, every=1)
    assert next(iter(watcher.monitors.values())).share == 0.0
