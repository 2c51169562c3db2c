"""Meters: golden values, when they measure, that they change nothing, and how they fail."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from plasticity.callback import Context, fire, start
from plasticity.meters import METERS, Churn, Meter, TargetDistance
from plasticity.meters.churn import output_churn, policy_churn
from plasticity.meters.target_distance import rms_distance
from plasticity.storage.folder import Checkpoints
from plasticity.testing import check_meter
from plasticity.testing.runs import QUICK_RUNS, SHORT, command, require_same, rows, stopped

# -- golden values -----------------------------------------------------------------------------------------------------


def test_golden_churn() -> None:
    before, after = torch.tensor([[1.0, 2], [3, 0], [1, 1.5]]), torch.tensor([[1.0, 2.1], [0, 1], [1, 1.4]])
    assert float(policy_churn(before, after)) == pytest.approx(1 / 3)
    assert float(output_churn(before, after)) == pytest.approx(0.7)
    assert float(policy_churn(before, before)) == float(output_churn(before, before)) == 0


def test_golden_distance() -> None:
    assert float(rms_distance([torch.ones(2)], [torch.zeros(2)])) == 1
    assert float(rms_distance([torch.tensor([3.0]), torch.zeros(3)], [torch.tensor([1.0]), torch.zeros(3)])) == 1
    with pytest.raises(ValueError, match="longer"):
        rms_distance([torch.ones(2)], [torch.ones(2), torch.ones(3)])


OF_ANY_LOOP = [name for name in METERS if name in ("churn", "fit_probe", "policy", "target_distance")]
"""Meters that the loop below can serve; the others have tests of their own."""

# -- a loop of one's own -----------------------------------------------------------------------------------------------


class Loop:
    """A Q network trained on random states, with a context made by hand."""

    def __init__(self, **lent: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.target = nn.Sequential(*[nn.Linear(3, 8), nn.ReLU(), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)])
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-2)
        self.states = torch.randn(64, 3)
        self.written: list[tuple[int, dict[str, float]]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.peeked: list[Any] = []
        whole = {"targets": {"q": self.target}, "forward": {"q": lambda m, b: m(b.obs)}, "peek": self.peek, "buffer": 1}
        self.ctx = Context({"q": self.net}, {"q": self.optimizer}, **{**whole, **lent})
        self.ctx.writer = self

    def peek(self, num: int, generator: torch.Generator) -> Any:
        index = torch.randint(len(self.states), (num,), generator=generator)
        self.peeked.append(SimpleNamespace(obs=self.states[index], action=torch.zeros(num, dtype=torch.int64)))
        return self.peeked[-1]

    def log(self, step: int, values: Any) -> None:
        self.written.append((step, dict(values)))

    def event(self, step: int, name: str, details: Any) -> None:
        self.told.append((name, dict(details)))

    def run(self, meters: list[Meter], updates: int = 7, saved: Any = None) -> Loop:
        start(meters, self.ctx, saved)
        for _ in range(updates):
            self.ctx.step += 1
            fire(meters, "on_update_start", self.ctx)
            self.optimizer.zero_grad()
            self.net(self.states[torch.randint(64, (16,))]).square().mean().backward()
            self.optimizer.step()
            fire(meters, "on_update_end", self.ctx, {})
        return self


def test_two_meters_log_under_their_networks() -> None:
    loop = Loop().run([Churn(every=3, num_states=9), TargetDistance(every=2)])
    assert [(step, list(values)) for step, values in loop.written] == [
        (2, ["plasticity/q/churn/all", "plasticity/q/policy_churn/all"]),
        (2, ["plasticity/q/target_distance/all"]),
        (4, ["plasticity/q/target_distance/all"]),
        (5, ["plasticity/q/churn/all", "plasticity/q/policy_churn/all"]),
        (6, ["plasticity/q/target_distance/all"]),
    ]
    assert all(v > 0 for _, values in loop.written for tag, v in values.items() if "policy" not in tag)


def test_churn_is_that_of_the_outputs_before_and_after_the_update() -> None:
    loop, meter, seen = Loop(), Churn(every=2, num_states=9), []
    start([meter], loop.ctx)

    def outputs() -> Tensor:
        loop.net.eval()
        output = loop.net(loop.peeked[0].obs).detach()
        loop.net.train()
        return output

    fire([meter], "on_update_start", loop.ctx)  # held here, one update before
    assert len(loop.peeked) == 1
    for _ in range(2):
        fire([meter], "on_update_end", loop.ctx, {})
        seen.append(outputs())
        fire([meter], "on_update_start", loop.ctx)
        with torch.no_grad():
            loop.net[-1].weight.mul_(-1)
    expected = float(output_churn(seen[0], seen[1]))
    assert loop.written[0][1]["plasticity/q/churn/all"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", OF_ANY_LOOP)
def test_a_meter_changes_nothing(name: str) -> None:
    plain, drawn = Loop().run([]), torch.rand(3)
    measured = Loop().run([METERS[name](every=1)])
    assert torch.equal(torch.rand(3), drawn)
    assert measured.written
    for a, b in zip(plain.net.state_dict().values(), measured.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert all(
        torch.equal(p.grad, q.grad) for p, q in zip(plain.net.parameters(), measured.net.parameters(), strict=True)
    )
    assert measured.net.training


@pytest.mark.parametrize("name", OF_ANY_LOOP)
@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_a_meter_goes_on_where_it_was(name: str, cut: int) -> None:
    whole = Loop().run([METERS[name](every=3)], 8).written
    loop, first = Loop(), METERS[name](every=3)
    loop.run([first], cut)
    state = first.state_dict()
    loop.ctx.started.clear()
    again = METERS[name](every=3)
    loop.run([again], 8 - cut, saved=[state])
    assert loop.written == whole


def test_without_a_buffer_an_update_is_long() -> None:
    assert len(Loop(buffer=None).run([TargetDistance()], 24).written) == 3
    assert len(Loop().run([TargetDistance()], 24).written) == 1


# -- refusals and failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meter", "lent", "message"),
    [
        (Churn(), {"peek": None}, "Churn needs past transitions to look at, Context.peek; this run has none"),
        (Churn(), {"forward": {}}, "Churn needs a way to run networks on a batch, in Context.forward"),
        (Churn(), {"forward": {"actor": print}}, "Churn needs Context.forward of q; this run has none"),
        (Churn(networks=("critic_*",)), {}, r"Churn finds no network critic_\*; this run has q"),
        (TargetDistance(), {"targets": {}}, "TargetDistance needs target networks, in Context.targets; this run"),
        (TargetDistance(), {"targets": {"p": nn.Linear(1, 1)}}, "finds no target of any network; .* targets of p"),
    ],
)
def test_what_a_run_lacks_is_said_when_it_starts(meter: Meter, lent: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start([meter], Loop(**lent).ctx)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="Churn needs every >= 1 updates, got 0"):
        Churn(every=0)
    with pytest.raises(ValueError, match="num_states >= 1"):
        Churn(num_states=0)


@dataclass
class Bad(Meter):
    NAME: ClassVar[str] = "bad"
    kind: str = "raises"

    def measure(self, ctx: Context) -> Any:
        if self.kind == "raises":
            raise ZeroDivisionError("oh")
        return {"q": {"bad": {"number": 1.0, "vector": torch.ones(2)}[self.kind]}}


@pytest.mark.parametrize("kind", ["raises", "number", "vector"])
def test_a_meter_that_fails_is_off_after_one_warning(kind: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loop = Loop().run([Bad(every=1, kind=kind), TargetDistance(every=1)])
    assert len(seen) == 1
    assert "meter 'bad' failed and is off from now on" in str(seen[0].message)
    assert len(loop.written) == 6
    with pytest.raises((ZeroDivisionError, TypeError)) as raised:
        Loop().run([Bad(every=1, kind=kind, strict=True)])
    assert "raised by the meter bad" in raised.value.__notes__


def test_a_loop_that_fires_the_end_alone_is_told() -> None:
    loop, meter = Loop(), Churn(every=1)
    start([meter], loop.ctx)
    fire([meter], "on_update_end", loop.ctx, {})
    with pytest.warns(RuntimeWarning, match="fire on_update_start in every update"):
        fire([meter], "on_update_end", loop.ctx, {})


def test_continuous_actions_have_no_greedy_one() -> None:
    loop = Loop()
    peek = loop.ctx.peek
    loop.ctx.peek = lambda num, generator: SimpleNamespace(obs=peek(num, generator).obs, action=torch.rand(num, 2))
    loop.run([Churn(every=1)], 3)
    assert {tag for _, values in loop.written for tag in values} == {"plasticity/q/churn/all"}


def test_values_that_are_no_numbers_are_logged_as_such() -> None:
    loop = Loop()
    with torch.no_grad():
        loop.target[0].weight.fill_(math.nan)
    loop.run([TargetDistance(every=1)], 2)
    assert math.isnan(loop.written[0][1]["plasticity/q/target_distance/all"])


# -- in runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", ["sac", "dqn", pytest.param("td3", marks=pytest.mark.slow)])
@pytest.mark.some(1)
def test_the_distance_of_targets_passes_its_battery(agent: str) -> None:
    check_meter(TargetDistance, agent=agent)


@pytest.mark.parametrize("agent", ["dqn", "ppo", pytest.param("sac", marks=pytest.mark.slow)])
@pytest.mark.some(1)
def test_churn_passes_its_battery(agent: str) -> None:
    check_meter(Churn, {"num_states": 16, "every": 3}, agent=agent)


class Meddling(TargetDistance):
    """Edits what it measures."""

    NAME = "meddling"

    def measure(self, ctx: Context) -> Any:
        next(ctx.networks["actor"].parameters()).data.mul_(1.5)
        return super().measure(ctx)


class Drawing(TargetDistance):
    """Draws for each update, and forgets about it in its state."""

    NAME = "drawing"

    def before(self, ctx: Context) -> None:
        self.drawn = getattr(self, "drawn", 0) + 1

    def measure(self, ctx: Context) -> Any:
        return {"actor": {"drawn": torch.tensor(float(self.drawn))}}


@pytest.mark.parametrize(("kind", "message"), [(Meddling, "agent"), (Drawing, "resumed run")])
@pytest.mark.some(1)
def test_the_battery_finds_a_fault(kind: type[Meter], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_meter(kind)


def test_measuring_may_change_when_a_run_goes_on(tmp_path: Any) -> None:
    options = [*QUICK_RUNS["sac"], *SHORT, "--probes", "dormancy", "--probe-every", "9", "--probe-window", "4"]
    command("train", "sac", *options, "--out", tmp_path, "--name", "whole")
    resumed = stopped(tmp_path / "whole", tmp_path / "resumed")
    changes = ["--probes", "rank", "grama", "--probe-every", "6", "--probe-window", "6", "--target-distance"]
    command("train", "--resume", resumed, *changes, "--target-distance.every", "5")
    states = [Checkpoints(folder / "checkpoints").load_latest()[1] for folder in (tmp_path / "whole", resumed)]
    require_same(states[0]["agent"], states[1]["agent"], "agents")
    tags = {tag for row in rows(resumed) if row["step"] > 120 for tag in row}
    assert {"plasticity/critic_1/grama/all", "plasticity/critic_1/target_distance/all"} <= tags
    assert "plasticity/critic_1/dormancy/all" not in tags


# -- reasons of missing values -----------------------------------------------------------------------------------------


@dataclass
class Sometimes(Meter):
    """Has one value, one that is NaN, and one that it says nothing about at first."""

    NAME: ClassVar[str] = "sometimes"

    def measure(self, ctx: Context) -> Any:
        late = "not yet" if self.updates < 4 else torch.tensor(2.0)
        return {"q": {"whole": torch.tensor(1.0), "broken": torch.tensor(math.nan), "late": late}}


def test_a_meter_tells_every_reason_of_a_missing_value_once() -> None:
    loop, meter = Loop(), Sometimes(every=1)
    loop.run([meter], 3)
    loop.run([meter], 3)  # it goes on: what was told stays told
    reasons = {"network": "q", "all (broken)": "non-finite values", "all (late)": "not yet"}
    assert loop.told == [("unmeasured", reasons)]
    late = [row["plasticity/q/late/all"] for _, row in loop.written]
    assert [math.isnan(value) for value in late] == [True] * 2 + [False] * 3
    again = Sometimes(every=1)
    again.load_state_dict(meter.state_dict())
    assert again.state_dict()["told"] == meter.state_dict()["told"] != {}


def test_a_meter_that_fails_tells_it_as_the_reason() -> None:
    loop = Loop()
    with pytest.warns(RuntimeWarning, match="off from now on"):
        loop.run([Bad(every=1)])
    assert loop.told == [("unmeasured", {"network": "q", "all (bad)": "the meter failed: ZeroDivisionError: oh"})]
