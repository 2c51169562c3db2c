"""The remaining time: of learning, not of the warm-up; of the present pace; a row per seed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from plasticity.callback import Context
from plasticity.commands import seed as seeds
from plasticity.dashboard import live as views
from plasticity.dashboard.live import LiveView
from plasticity.dashboard.pace import Pace


def test_the_warm_up_does_not_count() -> None:
    pace = Pace(10_000)
    for second in range(3):  # 500 steps a second
        pace.at(500 * second, second)
        assert pace.text(500 * second, second) == "warm-up"
    pace.begin_learning(1000, 2)
    assert pace.text(1000, 2) == ""
    for second in range(1, 11):  # 100 a second
        pace.at(1000 + 100 * second, 2 + second)
        pace.begin_learning(1000 + 100 * second, 2 + second)  # every later update
    assert pace.left(2000, 12) == pytest.approx(80)
    assert pace.text(2000, 15) == "1:17 left"  # three seconds later
    assert pace.text(10_000, 99) == "0:00 left"


def test_the_pace_is_that_of_the_last_two_minutes() -> None:
    pace = Pace(1_000_000)
    pace.begin_learning(0, 0)
    for second in range(1, 1001):
        pace.at(10 * second, second)
    for second in range(1, 151):  # now three times as fast
        pace.at(10_000 + 30 * second, 1000 + second)
    assert pace.left(14_500, 1150) == pytest.approx((1_000_000 - 14_500) / 30)
    assert pace.text(14_500, 1150) == "9:07:30 left"


def test_a_step_that_compiles_is_not_the_pace() -> None:
    for wait in (12.0, 150.0):  # shorter and longer than what is remembered
        pace = Pace(4000)
        pace.begin_learning(2501, 0.0)
        pace.at(2502, wait)
        assert pace.text(2502, wait) == ""
        for half in range(1, 21):  # 40 steps a second
            pace.at(2502 + 20 * half, wait + half / 2)
        assert pace.left(2902, wait + 10) == pytest.approx((4000 - 2902) / 40)


def test_a_clock_that_was_set_and_a_stop_begin_anew() -> None:
    pace = Pace(1000)
    pace.begin_learning(0, 500)
    for now, step in [(510, 100), (100, 110), (101, 120)]:
        pace.at(step, now)
    assert pace.left(120, 101) == pytest.approx(88)
    pace.pause()
    for now, step in [(9000, 120), (9010, 130)]:
        pace.at(step, now)
    assert pace.left(130, 9010) == pytest.approx(870)
    pace.at(130, 9020)
    pace.pause()
    pace.at(130, 9030)
    pace.at(130, 9040)
    assert pace.left(130, 9040) is None  # it stands still


def test_the_panel_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(views.time, "perf_counter", lambda: now[0])
    live, ctx = LiveView(100, "sac x", plain_every=0), Context()
    live.console = Console(file=io.StringIO(), force_terminal=False)
    with live:
        for step in range(1, 61):
            now[0], ctx.step = float(step), step
            live.on_step(ctx, None)
            if step > 20:
                live.on_update_start(ctx)
    lines = live.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].endswith("1/100  1 steps/s  warm-up")
    assert lines[59].endswith("60/100  1 steps/s  0:40 left")


def test_a_seed_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"step": step, "time": 100 + step / 100, "charts/episodic_return": 1.0} for step in range(0, 1001, 100)]
    rows += [{"step": 1000 + step, "time": 110.0 + step, "losses/critic": 1.0} for step in range(0, 101, 10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:8]))
    monkeypatch.setattr(seeds.time, "time", lambda: 220.0)
    seed = seeds.Seed(1, tmp_path, state="running", pace=Pace(2000))
    seed.look()
    assert seed.left() == "warm-up"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[8:])
    seed.look()
    assert seed.left() == "14:50 left"  # 900 steps at one a second, 10 seconds ago
    seed.state = "finished"
    assert seed.left() == ""
    with (tmp_path / "metrics.jsonl").open("a") as file:
        later = [
            {"step": 1100 + k, "time": 9e5 + k, **({"purge_step": 1101} if k == 0 else {})} for k in range(0, 21, 10)
        ]
        file.writelines(
            json.dumps(row) + "\n" for row in [*later, {"step": 1200, "time": None}, {"step": 1200, "time": "x"}]
        )
    seed.look()
    seed.state = "running"
    monkeypatch.setattr(seeds.time, "time", lambda: 9e5 + 20)
    assert seed.left() == "14:40 left"
