"""Conditions of triggers: plateaus past a peak and small changes, by hand, as text, and through a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from test_interventions import Recorder, run_sac

from plasticity import Measure
from plasticity.interventions import ReDo, Reset
from plasticity.interventions.conditions import OnPlateau, OnSmallChange, parse_condition
from plasticity.interventions.trigger import Trigger

TAG = "plasticity/critic_1/effective_rank/all"
DORMANCY = "plasticity/critic_1/dormancy/all"


def times(trigger: Trigger, readings: list[float], ticks_each: int = 3) -> list[int]:
    """Return the numbers of the readings after which the trigger acts; it is asked several times for each."""
    acted, clock = [], 0
    for number, value in enumerate(readings, 1):
        for _ in range(ticks_each):
            clock += 1
            if trigger.due(clock, {TAG: value}, {TAG: number}):
                acted.append(number)
    return acted


HUMP = [1.0, 5.0, 9.0, 10.0, 9.0, 7.0, 6.1, 6.0, 6.05, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0]


def test_a_plateau_is_past_its_peak_and_acts_once() -> None:
    # Readings 7 to 10 change by 0.1, 0.05, 0.05: a mean of 0.0667, below 0.02 * 6.1; 6 to 9 by 0.9, 0.1, 0.05.
    assert times(Trigger(when=f"plateau({TAG}, 3, 0.02)"), HUMP) == [10]
    assert times(Trigger(when=f"plateau({TAG}, 3, 0.02, again)"), HUMP) == [10, 14]  # a window of its own


def test_a_plateau_at_the_peak_counts_where_it_may() -> None:
    rising = [1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    assert times(Trigger(when=f"plateau({TAG}, 2, 0.01)"), rising) == []
    assert times(Trigger(when=f"plateau({TAG}, 2, 0.01, anywhere)"), rising) == [5]
    assert times(Trigger(when=f"plateau({TAG}, 2, 0.01, anywhere)"), [0.0] * 4) == [3]  # a constant 0 is level


def test_a_reading_is_new_by_its_count_or_else_by_its_value() -> None:
    condition = OnPlateau(TAG, 2, 0.1, after_peak=False)
    for value in (1.0, 1.0, 1.0, 1.0):
        condition.see(value)
    assert condition.values == [1.0]
    for count, value in enumerate((1.0, float("nan"), 1.0, 1.0)):
        condition.see(value, count)
    assert len(condition.values) == 3


def test_a_small_change_acts_as_often_as_it_may() -> None:
    readings = [0.5, 0.2, 0.1999, 0.1998, 0.1, 0.0999, 0.0998]
    assert times(Trigger(when=f"small_change({TAG}, 0.001)"), readings) == [3]
    assert times(Trigger(when=f"small_change({TAG}, 0.001, 3)"), readings) == [3, 4, 6]


@pytest.mark.parametrize(
    "condition",
    [OnPlateau(TAG), OnPlateau(TAG, 4, 0.5, after_peak=False, once=False), OnSmallChange(TAG, 0.3, 2)],
)
def test_text_and_object_are_the_same(condition: Any) -> None:
    assert parse_condition(str(condition)) == condition
    assert Reset(when=condition).when == str(condition)
    assert ReDo(when=condition).settings()["when"] == str(condition)


def test_a_state_goes_on_where_it_was() -> None:
    whole = Trigger(when=f"plateau({TAG}, 3, 0.02)")
    assert times(whole, HUMP[:9]) == []
    other = Trigger(when=f"plateau({TAG}, 3, 0.02)")
    other.load_state_dict(whole.state_dict())
    assert other.due(28, {TAG: HUMP[8]}, {TAG: 9}) is False  # the same reading as before
    assert other.due(29, {TAG: HUMP[9]}, {TAG: 10}) is True


@pytest.mark.parametrize(
    "text",
    [
        "plateau()",
        f"plateau({TAG}, x, 0.1)",
        f"plateau({TAG}, 3, 0.1, maybe)",
        f"small_change({TAG})",
        "peak(a, 1, 1)",
        "plateau(, 3, 0.1)",
        "plateau(a b, 3, 0.1)",
        f"small_change('{TAG}', 0.1)",
    ],
)
def test_other_calls_show_the_grammar(text: str) -> None:
    with pytest.raises(ValueError, match=r"a condition is plateau\(<tag>, <window>, <eps>"):
        Trigger(when=text)
    with pytest.raises(ValueError, match="OnPlateau needs window >= 1"):
        Trigger(when=f"plateau({TAG}, 0, 0.1)")


@pytest.mark.parametrize("text", ["", "plateau", f"plateau({TAG}, 3, 0.1", f"{TAG} >> 3"])
def test_what_is_neither_a_bound_nor_a_condition_shows_both(text: str) -> None:
    with pytest.raises(ValueError, match=r'when is "<tag> <op> <number>".* or a condition, plateau\(<tag>, <window>'):
        ReDo(when=text)
    with pytest.raises(ValueError, match="stalled is"):
        Reset(stalled=text)


def test_redo_and_reset_wait_for_a_plateau_in_a_run() -> None:
    writer: Recorder
    redo = ReDo(when=f"plateau({DORMANCY}, 2, 0.5, anywhere)", every=1, threshold=10.0, cap=0.2)
    reset = Reset(when=f"small_change({DORMANCY}, 100.0, 2)", clock="updates")
    _, _, writer = run_sac([Measure(["dormancy"], every=3, strict=True), redo, reset], steps=60)
    assert len(writer.named("redo")) == 3  # once for each network
    assert [event["because"] for event in writer.named("reset")] == [f"small_change({DORMANCY}, 100, 2)"] * 2
