"""Triggers: typed-out schedules, and the same answers from a naive second implementation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.commands.training import warn_of_idle
from plasticity.interventions.first_inputs import FirstInputs
from plasticity.interventions.scheduled import Scheduled
from plasticity.interventions.trigger import Trigger, parse_stalled, parse_when

pytestmark = pytest.mark.usefixtures("everywhere")

TAG = "plasticity/critic_1/grama/all"


def fired(
    trigger: Trigger, clocks: list[int], values: Callable[[int], Mapping[str, float]] = lambda clock: {}
) -> list[int]:
    """Return the clocks at which the trigger acts."""
    return [clock for clock in clocks if trigger.due(clock, values(clock))]


def tagged(values: list[float]) -> Callable[[int], Mapping[str, float]]:
    """Return the metric's value at each clock, from 1."""
    return lambda clock: {TAG: values[clock - 1]}


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        (Trigger(), []),
        (Trigger(every=4), [4, 8, 12]),
        (Trigger(every=4, start=5, stop=8), [8]),
        (Trigger(every=1, start=11), [11, 12]),
        (Trigger(at=(3, 7, 100)), [3, 7]),
        (Trigger(at=(7, 3), every=7), [3, 7]),
        (Trigger(every=4, cooldown=100), [4, 8, 12]),
    ],
)
def test_schedules(trigger: Trigger, expected: list[int]) -> None:
    assert fired(trigger, list(range(1, 13))) == expected


def test_ticks_that_are_jumped_over_count_once() -> None:
    assert fired(Trigger(every=10), [0, 3, 13, 19, 46, 46, 50]) == [13, 46, 50]
    assert fired(Trigger(at=(5, 6)), [4, 9, 12]) == [9]


def test_begin_forgets_what_lies_before() -> None:
    trigger = Trigger(every=10, at=(25,))
    trigger.begin(27)
    assert fired(trigger, [28, 29, 30]) == [30]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 7), max_size=40),
    st.integers(1, 9),
    st.lists(st.integers(1, 60), max_size=4),
    st.integers(0, 40),
    st.integers(0, 60),
)
def test_schedules_against_counting_every_tick(
    jumps: list[int], every: int, at: list[int], start: int, length: int
) -> None:
    stop = start + length
    trigger = Trigger(every=every, at=tuple(at), start=start, stop=stop)
    clock = 0
    for jump in jumps:
        passed = range(clock + 1, clock + jump + 1)
        clock += jump
        # The multiple that counts is the last one passed: one that is past the stop hides those before it.
        multiples = [t for t in passed if t % every == 0][-1:]
        expected = any(start <= t <= stop for t in [*multiples, *(t for t in passed if t in at)])
        assert trigger.due(clock) == expected


def test_a_bound_acts_once_until_the_value_has_gone_back_by_the_margin() -> None:
    values = [0.1, 0.31, 0.4, 0.29, 0.35, 0.25, 0.3, 0.31]
    assert fired(Trigger(when=f"{TAG} > 0.3"), list(range(1, 9)), tagged(values)) == [2, 5, 8]
    assert fired(Trigger(when=f"{TAG} > 0.3", margin=0.05), list(range(1, 9)), tagged(values)) == [2, 8]
    assert fired(Trigger(when=f"{TAG} < 0.3"), list(range(1, 9)), tagged(values)) == [1, 4, 6]
    assert fired(Trigger(when=f"{TAG} >= 0.3"), list(range(1, 9)), tagged(values)) == [2, 5, 7]


def test_cooldown_and_bounds_delay_a_bound() -> None:
    values = [0.5, 0.1, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5]
    assert fired(Trigger(when=f"{TAG} > 0.3", cooldown=6), list(range(1, 9)), tagged(values)) == [1, 7]
    assert fired(Trigger(when=f"{TAG} > 0.3", start=2, stop=4), list(range(1, 9)), tagged(values)) == [3]


def test_nan_is_neither_above_nor_below() -> None:
    values = [math.nan, 0.5, math.nan, 0.5, math.inf]
    assert fired(Trigger(when=f"{TAG}>.3"), list(range(1, 6)), tagged(values)) == [2]


def test_a_value_that_stands_still() -> None:
    moving = [1.0, 2.0, 3.0, 4.0, 4.01, 4.02, 4.0, 4.0, 4.0, 4.0, 4.0]
    trigger = Trigger(stalled=f"{TAG} < 0.01 over 3")
    # At 7 the window holds 4, 4.01, 4.02, 4 (clocks 4 to 7); after that it starts anew, and is full again at 11.
    assert fired(trigger, list(range(1, 12)), tagged(moving)) == [7, 11]
    assert "0.01 over 3" in trigger.reason
    assert fired(Trigger(stalled=f"{TAG} < 0.01 over 3"), [1, 2, 3, 4], tagged([0.0] * 4)) == [4]


def test_an_oscillation_is_not_a_standstill() -> None:
    values = [1.0, 2.0] * 20
    assert fired(Trigger(stalled=f"{TAG} < 0.1 over 6"), list(range(1, 41)), tagged(values)) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([1.0, 1.001, 1.5, -1.0, math.nan]), max_size=30), st.integers(1, 6))
def test_standstill_against_a_full_history(values: list[float], window: int) -> None:
    trigger = Trigger(stalled=f"{TAG} < 0.01 over {window}")
    held: list[float] = []
    for clock, value in enumerate(values, 1):
        if not math.isnan(value):
            held.append(value)
        elif held:
            held.append(held[-1])
        seen = held[-window - 1 :]
        still = len(seen) == window + 1 and max(seen) - min(seen) <= 0.01 * max(map(abs, seen))
        assert trigger.due(clock, {TAG: value}) == still
        if still:
            held = []


@pytest.mark.parametrize("text", ["", "grama", "grama = 3", "grama > x", "> 3", "a b > 3", "grama > 3 over 4"])
def test_a_bad_bound_shows_the_grammar(text: str) -> None:
    with pytest.raises(ValueError, match=r"<tag> <op> <number>.*grama/all > 0\.3"):
        parse_when(text)


@pytest.mark.parametrize("text", ["", "fau < 0.1", "fau > 0.1 over 5", "fau < 0.1 over 0", "fau < 0.1 over x"])
def test_a_bad_standstill_shows_the_grammar(text: str) -> None:
    with pytest.raises(ValueError, match=r"over <steps of the clock>.*over 20000"):
        parse_stalled(text)


def test_grammar() -> None:
    assert parse_when(" charts/eval_return <= -1.5e2") == ("charts/eval_return", "<=", -150.0)
    assert parse_stalled("a/b/c < .01 over 20000") == ("a/b/c", 0.01, 20000)


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"at": (0,)}, {"margin": -1.0}, {"start": 3, "stop": 2}, {"cooldown": -1}]
)
def test_impossible_triggers_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a trigger needs"):
        Trigger(**settings)


def test_a_missing_tag_is_waited_for_until_its_like_is_there() -> None:
    trigger = Trigger(when="plasticity/critic_1/gramma/all > 0.3")
    assert not trigger.due(1, {})
    assert not trigger.due(2, {"charts/episodic_return": 3.0, TAG: 0.1})
    with pytest.raises(ValueError, match=f"nearest tags are {TAG}"):
        trigger.due(3, {TAG: 0.1})


def test_another_network_may_be_measured_later_but_not_twice_as_late() -> None:
    trigger = Trigger(when="plasticity/critic/grama/all > 0.3")
    assert not trigger.due(1, {TAG: 0.1})
    assert not trigger.due(900, {TAG: 0.1})
    with pytest.raises(ValueError, match=TAG):
        trigger.due(1001, {TAG: 0.2})
    late = Trigger(when="charts/eval_return > 3")  # first evaluated after 10 000 steps
    assert fired(late, [1, 2, 3], lambda clock: {"charts/episodic_return": float(clock)}) == []


def test_state_dict_goes_on_in_the_middle() -> None:
    values = models.normal(200).cumsum(0).mul(0.1).round(decimals=1).tolist()
    settings: dict[str, Any] = {
        "every": 37,
        "when": f"{TAG} > 0.3",
        "stalled": f"{TAG} < 0.2 over 5",
        "margin": 0.1,
        "cooldown": 9,
    }
    whole = fired(Trigger(**settings), list(range(1, 201)), tagged(values))
    first = Trigger(**settings)
    head = fired(first, list(range(1, 100)), tagged(values))
    second = Trigger(**settings)
    second.load_state_dict(first.state_dict())
    assert head + fired(second, list(range(100, 201)), tagged(values)) == whole
    assert len(whole) > 5


# --- the clock of whole-network methods ---


@dataclass
class Note(Scheduled):
    """Writes down when it is applied."""

    NAME: ClassVar[str] = "note"
    PRESETS: ClassVar = {"paper": {"every": 10, "clock": "env_steps", "stop": 30}}

    preset: str = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.applied: list[dict[str, Any]] = []

    def apply(self, ctx: Context) -> None:
        self.applied.append(self.occasion())


def context() -> Context:
    net = nn.Linear(2, 1)
    return Context({"net": net}, {"net": torch.optim.SGD(net.parameters(), 0.1)})


def step(ctx: Context) -> None:
    ctx.optimizers["net"].zero_grad()
    ctx.networks["net"](torch.ones(3, 2)).sum().backward()
    ctx.optimizers["net"].step()


def test_a_schedule_of_ones_own_replaces_the_presets() -> None:
    assert (Note().every, Note().clock, Note().stop) == (10, "env_steps", 30)
    assert (Note(clock="updates").every, Note(clock="updates").clock) == (10, "updates")
    own = Note(at=(3,))
    assert (own.every, own.at, own.stop, own.clock) == (None, (3,), None, "gradient_steps")
    with pytest.raises(ValueError, match="presets paper"):
        Note(preset="x")


def test_gradient_steps_are_the_clock_of_a_plain_loop() -> None:
    note, ctx = Note(every=4), context()
    note.on_train_start(ctx)
    for _ in range(9):
        step(ctx)
    assert note.applied == [{"gradient_steps": t, "because": "every 4"} for t in (4, 8)]
    note.on_train_end(ctx)
    step(ctx)
    assert note.ticks["gradient_steps"] == 9


def test_nothing_is_applied_inside_an_update() -> None:
    note, ctx = Note(every=2), context()
    note.on_train_start(ctx)
    for _ in range(3):
        note.on_update_start(ctx)
        for _ in range(5):
            step(ctx)
            assert note._updating
        before = len(note.applied)
        note.on_update_end(ctx, {})
        assert len(note.applied) == before + 1  # due two or three times, applied once
    assert len(note.applied) == 3


def test_environment_steps_and_updates() -> None:
    for clock in ("env_steps", "updates"):
        note, ctx = Note(every=4, clock=clock), context()  # type: ignore[arg-type]
        note.on_train_start(ctx)
        for _ in range(4):
            ctx.step += 3
            note.on_step(ctx, None)
            note.on_update_start(ctx)
            note.on_update_end(ctx, {})
        assert [entry[clock] for entry in note.applied] == ([6, 9, 12] if clock == "env_steps" else [4])


def test_a_clock_that_nobody_winds_is_an_error() -> None:
    note, ctx = Note(), context()
    note.on_train_start(ctx)
    for _ in range(99):
        step(ctx)
    with pytest.raises(ValueError, match="clock='gradient_steps'"):
        step(ctx)


def test_first_inputs_are_those_of_a_training_pass() -> None:
    note, ctx = Note(every=4), context()
    note.on_train_start(ctx)
    with torch.no_grad():
        ctx.networks["net"](torch.zeros(7, 2))
    assert note.inputs("net") is None
    step(ctx)
    found = note.inputs("net")
    assert found is not None
    assert isinstance(found[0][0], Tensor)
    assert torch.equal(found[0][0], torch.ones(3, 2))
    assert not ctx.networks["net"]._forward_pre_hooks


def test_first_inputs_lie_as_a_checkpoint_gives_them_back() -> None:
    network = nn.Conv2d(2, 1, 1)
    first = FirstInputs(network)
    network(torch.ones(3, 4, 4, 2).movedim(-1, 1))
    assert first.found is not None
    assert first.found[0][0].is_contiguous()


def test_a_schedule_that_never_came_to_act_says_so():
    trigger = Trigger(every=10, at=(7,))
    assert trigger.missed("ticks") == (
        "its first time would have been after 7 ticks, beyond the end of training; let it act earlier"
    )
    assert not trigger.due(6)
    assert "7 ticks" in trigger.missed("ticks")
    assert trigger.due(7)
    assert trigger.missed("ticks") == ""
    assert "7 ticks" in trigger.missed("ticks", ahead=1)  # asked for 7, of which 6 have come
    trigger.due(8)
    assert trigger.missed("ticks", ahead=1) == ""
    assert Trigger(when="a > 1").missed("ticks") == ""


@pytest.mark.parametrize("asked", [{"when": "lossess/q > 1"}, {"stalled": "lossess/q < 1 over 9"}])
def test_a_tag_that_was_never_logged_is_said_at_the_end(asked):
    trigger, latest = Trigger(**asked), {"charts/SPS": 1.0, "losses/q": 0.0}
    assert trigger.missed("ticks", latest={}) == "nothing was logged under 'lossess/q'; nor under any other tag"
    assert "'lossess/q'; the nearest tags are losses/q" in trigger.missed("ticks", latest=latest)
    assert trigger.missed("ticks", latest={**latest, "lossess/q": 0.0}) == ""  # it decides, and has not crossed
    assert Trigger(every=1, **asked).due(1)


def test_the_end_of_a_run_warns_of_a_method_whose_tag_never_came():
    note, ctx = Note(when="x > 0.1"), context()
    note.on_train_start(ctx)
    ctx.log({"losses/q": 1.0})
    step(ctx)
    with pytest.warns(RuntimeWarning, match="note never acted: nothing was logged under 'x'; the nearest .* losses/q"):
        warn_of_idle({"note": note})
    ctx.log({"x": 0.0})
    warn_of_idle({"note": note})  # says nothing: warnings are errors here
