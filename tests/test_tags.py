"""The format of tags, and the display of metrics: one that is added in one place is shown everywhere."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from runfolders import make_run

from plasticity.commands.seed import Seed
from plasticity.dashboard.layout import layout
from plasticity.dashboard.live import LiveView
from plasticity.metrics import METRICS, MOST_SHOWN, Metric, find_metric, headlines, ordered, shown_first
from plasticity.reports.document import Report
from plasticity.reports.runs import load_runs
from plasticity.tags import Tag, parse_score_tag, parse_tag, plasticity_tag, plasticity_tags, score_tag

part = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1)


@given(part, st.lists(part, min_size=1).map("/".join), part)
def test_a_tag_and_its_parts(network: str, metric: str, layer: str) -> None:
    assert parse_tag(plasticity_tag(network, metric, layer)) == Tag(network, metric, layer)
    assert parse_score_tag(score_tag(network, metric, layer)) == Tag(network, metric, layer)
    assert parse_tag(score_tag(network, metric, layer)) is None


@given(st.lists(st.sampled_from(["plasticity", "scores", "a", "b.1", "", "all"])).map("/".join))
def test_parsing_agrees_with_a_pattern(tag: str) -> None:
    match = re.fullmatch(r"plasticity/([^/]+)/([^/]+(?:/[^/]+)*)/([^/]+)", tag)
    assert parse_tag(tag) == (Tag(*match.groups()) if match else None)


def test_other_tags_are_left_out() -> None:
    tags = ["plasticity/overhead", "charts/SPS", "plasticity/a/b/all", "plasticity/a/b", "plasticity//b/all"]
    assert plasticity_tags(tags) == [("a", "b", "all")]


def test_order_and_choice() -> None:
    assert ordered(["zeal", "effective_rank", "churn", "grama", "dormancy"]) == [
        *("dormancy", "grama", "effective_rank"),
        *("churn", "zeal"),
    ]
    assert shown_first(["srank", "grama", "churn"]) == ["grama", "churn"]
    assert shown_first(["stable_rank", "srank"]) == ["srank", "stable_rank"]
    assert shown_first([]) == []
    assert len(shown_first([*METRICS, *"abcdefgh"])) == MOST_SHOWN


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("dormancy", 0.25, "25.0%"), ("grama_post", 0.5, "50.0%"), ("srank", 12.34, "12.3"), ("churn", 0.01234, "0.0123")],
)
def test_values_as_text(name: str, value: float, text: str) -> None:
    assert find_metric(name).text(value) == text
    assert find_metric(name).text(math.nan) == ""


def test_a_variant_has_the_scale_of_its_family_and_no_place_in_front() -> None:
    assert find_metric("grama_post") == Metric("grama post", "share")
    assert find_metric("effective_rank_of_mine") == Metric("effective rank of mine", "rank")
    assert find_metric("gramarye") == Metric("gramarye")


def live_line(values: dict[str, float]) -> str:
    live = LiveView(10, "run")
    live.console = Console(file=io.StringIO(), force_terminal=False)
    live.log(1, values)
    return live.line()


def test_a_metric_that_nobody_listed_appears_by_itself(tmp_path: Path) -> None:
    tag = plasticity_tag("critic", "churn")
    values = {tag: [0.5, 0.25], plasticity_tag("critic", "grama"): [0.1, 0.2]}
    make_run(tmp_path / "one", [1.0, 2.0], values=values)
    report = Report(load_runs([tmp_path / "one"])[0])
    assert "critic: churn" in report.markdown("svg")
    assert "churn 0.25" in live_line({tag: 0.25})
    seed = Seed(1, tmp_path / "one")
    seed.look()
    assert seed.metrics() == {"grama": 0.2, "churn": 0.25}
    assert "churn" in str(layout([tag]))


def test_one_line_makes_a_headline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "saturation", Metric("saturated", "share", headline=True))
    values = {plasticity_tag("critic", name): [0.5, 0.25] for name in ("saturation", *"abcdefgh")}
    assert "saturated 25.0%" in live_line({tag: series[-1] for tag, series in values.items()})
    assert headlines()[-1] == "saturation"
    make_run(tmp_path / "one", [1.0, 2.0], values=values)
    report = Report(load_runs([tmp_path / "one"])[0])
    text = report.markdown("svg")
    assert "critic: saturation" in text
    assert "measured, and not shown: f, g, h; choose with --metrics" in report.notes
