"""The live panel: sparklines that show the whole run, gaps where nothing was measured, and the last events."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from plasticity.callback import Context
from plasticity.course import Course
from plasticity.dashboard.live import LiveView
from plasticity.dashboard.panel import sparkline


def test_sparkline_by_hand() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0, math.nan, math.inf, 1]) == "▁··█"
    assert sparkline([math.nan]) == "·"
    assert sparkline([]) == ""


def test_sparkline_averages_what_does_not_fit() -> None:
    assert sparkline([0, 0, 7, 7, 3, 4], width=3) == "▁█▅"  # means 0, 7, 3.5 (the eighth bar of 8 is the maximum)
    assert len(sparkline(list(range(1000)), width=32)) == 32


def test_a_course_halves_itself_and_keeps_the_whole_run() -> None:
    history = Course(capacity=4)
    for value in range(4):
        history.add(value)
    assert history.course() == [0.5, 2.5]
    history.add(4)
    assert history.course() == [0.5, 2.5, 4]
    history.add(5)
    assert history.course() == [0.5, 2.5, 4.5]
    for value in range(1000):
        history.add(value)
    assert len(history.course()) <= 4


def test_a_course_keeps_a_gap() -> None:
    history = Course(capacity=4)
    for value in (math.nan, 1.0, math.nan):
        history.add(value)
    first, second, third = history.course()
    assert math.isnan(first)
    assert second == 1.0
    assert math.isnan(third)


def watched(live: LiveView) -> str:
    ctx = Context()
    with live:
        for step in range(1, 41):
            live.log(step, {"charts/episodic_return": float(step), "plasticity/actor/grama/all": 0.5})
            live.log(step, {"plasticity/critic/grama/all": 0.25, "plasticity/critic/grama/q.0": 0.9})
            if step % 10 == 0:
                live.event(step, "regrama", {})
                live.event(step, "measured", {"rank": "256 samples"})
            ctx.step = step
            live.on_step(ctx, None)
    output = live.console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_panel_in_a_terminal() -> None:
    live = LiveView(40, "sac Pendulum-v1")
    live.console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    last = watched(live).split("sac Pendulum-v1")[-1]
    assert "40/40" in last
    assert "40.0" in last
    assert "▁▁▂" in last
    assert "37.5%" in last  # the mean of the two networks, not of their layers
    assert [f"regrama at {step}" in last for step in (10, 20, 30, 40)] == [False, True, True, True]


@pytest.mark.parametrize("quiet", [False, True])
def test_plain_lines_without_a_terminal(quiet: bool) -> None:
    live = LiveView(40, "sac Pendulum-v1", plain_every=1e9, quiet=quiet)
    live.console = Console(file=io.StringIO(), force_terminal=False)
    lines = watched(live).splitlines()
    assert len(lines) == (0 if quiet else 2)  # the first step, and the end
    if lines:
        assert "40/40" in lines[-1]
        assert "return 40.0" in lines[-1]
        assert "GraMa 37.5%" in lines[-1]
        assert lines[-1].endswith("regrama at 40")
