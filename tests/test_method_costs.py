"""Logs of every method: the change that its edits make to the function, its seconds, the numbers that it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import models
import pytest
import torch
from test_interventions import FREQUENT, ON_SAC, Recorder, plain_loop, run_sac, small_sac, weights
from torch import Tensor, nn, optim

from plasticity.callback import Context, fire, listeners
from plasticity.interventions import INTERVENTIONS, ContinuousBackprop, Intervention, ReDo, ShrinkPerturb, stopwatch
from plasticity.interventions.intervention import numbers_in
from plasticity.interventions.stopwatch import Stopwatch
from plasticity.tags import is_timed

pytestmark = pytest.mark.usefixtures("everywhere")

WEIGHTS_STAY = {
    *("optimizer_reset", "rewarm"),  # of the optimizer
    *("l2_init", "wasserstein_init", "parseval", "spectral", "feature_norm", "chain", "dr3", "infer", "sam"),  # a loss
    *("spectral_normalization", "swd", "least", "ere", "replay_ratio"),  # the structure from the start, data
}
"""Methods that do not edit weights, so that no edit of theirs changes the function."""


@pytest.mark.slow_off_the_cpu
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.some(8)) for n in ON_SAC])
def test_every_method_logs_what_it_changes_and_costs(name: str) -> None:
    method = INTERVENTIONS[name](**FREQUENT[name])
    _, _, writer = run_sac([method], steps=40)
    changes = {tag for tag in writer.scalars if tag.endswith("/function_change")}
    assert all(tag.startswith(f"interventions/{name}/") for tag in changes)
    assert bool(changes) == (name not in WEIGHTS_STAY)
    seconds = writer.scalars[f"interventions/{name}/seconds"]
    assert 0 < seconds[-1] < 60
    assert seconds == sorted(seconds)
    added = writer.scalars.get(f"interventions/{name}/parameters_added", [0.0])
    assert added[-1] == method.parameters_added()


def test_numbers_are_counted_in_nested_tensors_and_modules() -> None:
    kept = {"a": {"b": torch.zeros(2, 3)}, "c": [nn.Linear(2, 1), (torch.zeros(4), "text")]}
    assert numbers_in(kept) == 6 + 3 + 4


def test_the_penalty_counts_its_first_values() -> None:
    net = nn.Linear(3, 2)
    method = INTERVENTIONS["l2_init"]()
    method.on_train_start(Context({"net": net}, {"net": optim.SGD(net.parameters(), 0.1)}))
    assert method.parameters_added() == 8


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass
class Slow(Intervention):
    NAME: ClassVar[str] = "slow"

    def on_step(self, ctx: Context, transition: Any) -> None:
        ctx.clock[0] += 2  # type: ignore[attr-defined]

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        ctx.clock[0] += 3  # type: ignore[attr-defined]
        self.on_step(ctx, None)  # an event within an event
        self.named(lambda: self.log(ctx, self.costs()))()


@dataclass
class Slower(Slow):
    NAME: ClassVar[str] = "slower"

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        ctx.clock[0] += 5  # type: ignore[attr-defined]
        super().on_update_end(ctx, metrics)


def test_events_and_hooks_are_timed_each_moment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, writer = [0.0], Recorder()
    monkeypatch.setattr(stopwatch, "perf_counter", lambda: clock[0])
    ctx = Context(writer=writer)
    ctx.clock = clock  # type: ignore[attr-defined]
    method = Slower()
    for _ in range(2):
        fire([method], "on_step", ctx, None)
        clock[0] += 100  # somebody else
        fire([method], "on_update_end", ctx, {})
    assert writer.scalars["interventions/slower/seconds"] == [2 + 10, 2 * (2 + 10)]
    assert listeners([method], "on_update_start") == []
    assert method.on_step.__name__ == "on_step"
    method.on_train_end(ctx)
    assert writer.scalars["interventions/slower/seconds"][-1] == 24


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_is_cut_logs_nothing_that_an_unbroken_one_lacks(interrupted: bool) -> None:
    writer, ctx = Recorder(), Context(interrupted=interrupted)
    ctx.writer = writer
    Slow().on_train_end(ctx)
    assert bool(writer.scalars) != interrupted


def test_a_stopwatch_goes_on_after_an_error() -> None:
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch:
        1 / 0  # noqa: B018
    before = watch.seconds
    assert watch.seconds == before  # it stands
    with watch:
        assert watch.seconds > before


def test_seconds_depend_on_the_machine_and_other_numbers_of_methods_do_not() -> None:
    assert is_timed("interventions/redo/seconds")
    assert is_timed("charts/SPS")
    assert not is_timed("interventions/redo/recycled")
    assert not is_timed("losses/seconds")


# -- the change of the function ----------------------------------------------------------------------------------------


def train(net: nn.Module, optimizer: optim.Optimizer, steps: int) -> None:
    for seed in range(steps):
        optimizer.zero_grad()
        net(models.normal(8, 3, seed=seed)).square().mean().backward()
        optimizer.step()


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


def relative(after: Tensor, before: Tensor) -> float:
    return float((after.double() - before.double()).norm() / before.double().norm())


def test_ccbp_logs_the_change_of_its_first_move_and_of_the_next_after_every_interval() -> None:
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    expected: list[float] = []

    class Looking(ContinuousBackprop):
        def take(self, network: str, reading: Any, step: int) -> None:
            x = models.normal(8, 3, seed=step - 1)
            before = net(x).detach()
            super().take(network, reading, step)
            if step in (3, 6, 12):
                expected.append(relative(net(x).detach(), before))

    method = Looking(every=3, log_every=5, rate=0.5)
    method.on_train_start(ctx)
    train(net, optimizer, 13)
    found = writer.scalars["interventions/ccbp/net/function_change"]
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found) > 0
    assert len(writer.scalars["interventions/ccbp/net/mean_share"]) == 2
    (event,) = writer.named("ccbp")
    assert event["function_change"] == found[0]
    assert event["because"] == "every 3 gradient steps from now on"


def test_the_soft_method_logs_the_change_of_its_first_step_and_of_every_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("plasticity.interventions.shrink_perturb.SOFT_LOG_EVERY", 4)
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    method = ShrinkPerturb(preset="soft", shrink=0.9, perturb=0.0)
    method.on_train_start(ctx)
    x, expected = models.normal(8, 3, seed=0), []
    for step in range(1, 10):
        before = net(x).detach()
        train(net, optimizer, 1)
        if step in (1, 4, 8):
            expected.append(relative(net(x).detach(), before))
    assert writer.scalars["interventions/shrink_perturb/net/function_change"] == pytest.approx(expected, rel=1e-4)
    assert writer.named("shrink_perturb")[0]["networks"]["net"]["function_change"] == pytest.approx(expected[0])


@pytest.mark.parametrize(("name", "settings"), [("ccbp", {}), ("shrink_perturb", {"preset": "soft"})])
def test_methods_of_every_step_log_the_change_of_every_network(name: str, settings: dict[str, Any]) -> None:
    _, _, writer = run_sac([INTERVENTIONS[name](**settings)], steps=20)
    for network in ("actor", "critic_1", "critic_2"):
        assert len(writer.scalars[f"interventions/{name}/{network}/function_change"]) == 1
    assert len(writer.named(name)) == 1


def test_a_reset_and_a_topology_log_it_as_their_events_do() -> None:
    pruning = {"preset": "rigl", "every": 2, "end": 30}  # growth alone changes nothing: a new connection is 0
    for name, settings, where in (("reset", FREQUENT["reset"], "networks"), ("ne", pruning, None)):
        _, _, writer = run_sac([INTERVENTIONS[name](**settings)], steps=30)
        events = [event for event in writer.named(name) if where or event["network"] == "actor"]
        told = [event[where]["actor"]["function_change"] if where else event["function_change"] for event in events]
        logged = writer.scalars[f"interventions/{name}/actor/function_change"]
        assert told
        assert set(told) <= set(logged)
        assert max(logged) > 0


@pytest.mark.parametrize("name", ["ccbp", "weight_clipping"])
@pytest.mark.slow_off_the_cpu
def test_measuring_it_changes_nothing(name: str) -> None:
    ends = [
        weights(run_sac([INTERVENTIONS[name](log_every=every)], agent=small_sac(), steps=30)[0]) for every in (0, 2)
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_what_cannot_be_run_again_is_edited_and_not_measured() -> None:
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    method = INTERVENTIONS["nap"](log_every=1)
    method.on_train_start(ctx)
    train(net, optimizer, 1)
    method.on_update_end(ctx, {})
    assert "interventions/nap/net/moved" in writer.scalars
    assert "interventions/nap/net/function_change" not in writer.scalars


def test_a_method_that_watches_counts_the_time_of_its_hooks() -> None:
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    method = ReDo(every=2)
    assert method.seconds() == 0
    method.on_train_start(ctx)
    train(net, optimizer, 4)
    assert method.seconds() > method.stopwatch.seconds > 0
    method.on_train_end(ctx)
    assert writer.scalars["interventions/redo/seconds"][-1] == method.seconds()
