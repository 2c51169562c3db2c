"""``plasticity report``: the numbers that are drawn, and what a page says of runs that are not as they should be."""

from __future__ import annotations

import csv
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runfolders import make_run

from plasticity import palette
from plasticity.cli import main
from plasticity.reports.document import Report
from plasticity.reports.figures import COLOURS, LINES, MARKERS, Map, draw_curves, draw_maps, shading
from plasticity.reports.pdf import text_table
from plasticity.reports.pictures import Pictures, in_one_order
from plasticity.reports.runs import RecordedRun, load_runs
from plasticity.reports.series import Series, windowed
from plasticity.reports.statistics import Interval, bootstrap, iqm
from plasticity.reports.tables import Table, as_html, cell, comma_separated, latex, markdown, number

TINY = "--env Pendulum-v1 --steps 250 --learning-starts 200 --hidden 16 16 --batch-size 16 --probe-every 20 --quiet"
TINY += " --eval-every 100 --eval-episodes 2 --redo --redo.every 20 --redo.threshold 0.5"


def tags(layers: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    return {f"plasticity/critic/dormancy/{layer}": values for layer, values in layers.items()}


def seeds(root: Path, count: int = 3, **kwargs) -> list[Path]:
    """Runs of one configuration: seed s returns s, 2 s, 3 s, and its layers go dormant one after the other."""
    layers = tags({"q.0": [0.1, 0.2, 0.3], "q.2": [0.0, 0.0, 0.6], "all": [0.05, 0.1, 0.45]})
    return [
        make_run(root / f"{kwargs.get('env', 'run')}_{s}", [s, 2 * s, 3 * s], seed=s, **{"values": layers, **kwargs})
        for s in range(1, count + 1)
    ]


def recycling(step: int, network: str | None = "critic", count: int = 3) -> dict:
    place = {"network": network} if network else {}
    return {"step": step, "event": "redo", **place, "recycled": count, "function_change": 0.25}


def report(*paths: Path, **kwargs) -> Report:
    runs, notes = load_runs(paths)
    return Report(runs, notes, **kwargs)


class Page(HTMLParser):
    """Checks that elements close in order, and gathers the text and the attributes."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in ("1", "2"):
        assert main(["train", "sac", *TINY.split(), "--seed", seed, "--out", str(root), "--name", f"redo{seed}"]) == 0
    return root


def test_real_runs_make_a_page_that_needs_nothing_else(real: Path, tmp_path: Path, capsys) -> None:
    assert main(["report", str(real), "--out", str(tmp_path / "out")]) == 0
    files = list((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["report.html"]
    assert str(files[0]) in capsys.readouterr().out
    text = files[0].read_text()
    shown = Page(text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in shown.seen}
    links = [v for _, a in shown.seen for k, v in a.items() if k in ("src", "href", "xlink:href") and v]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import", text)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(captions) == 5  # learning, plasticity, three metrics by layer
    assert all("n = 2" in caption for caption in captions)
    assert all("95 % stratified bootstrap interval" in caption for caption in captions[:2])
    typed = f"plasticity train sac {TINY} --seed 1 --out {real} --name redo1"
    assert typed in shown.text
    assert "None" not in shown.text
    assert "torch 2" in shown.text
    assert f"plasticity report {real} --out" in shown.text


def test_rows_of_another_tool_are_told_what_they_lack(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [1.0, 2.0], tail='{"iteration": 3, "loss": 0.5}\n{"global_step": 4}\n{"st')
    _, notes = load_runs([run])
    assert f"{run}: left out 1 damaged line of metrics.jsonl" in notes
    line = '{"step": 100, "charts/eval_return": 1.0}'
    assert f"{run}: left out 2 lines of metrics.jsonl without a step: every row needs one, as in {line}" in notes
    (run / "metrics.jsonl").write_text('{"loss": 0.5}\n')
    with pytest.raises(ValueError, match="without a step"):
        load_runs([run])


def test_other_formats(real: Path, tmp_path: Path) -> None:
    assert main(["report", str(real), "--out", str(tmp_path), "--formats", "md", "csv", "png"]) == 0
    made = {file.name for file in tmp_path.iterdir()}
    images = re.findall(r"!\[.*?\]\((.*?)\)", (tmp_path / "report.md").read_text())
    assert len(images) == 5
    assert set(images) == {name for name in made if name.endswith(".png")}
    for name in images:
        with Image.open(tmp_path / name) as image:
            assert image.width > 1500
            assert np.asarray(image.convert("L")).std() > 5  # it is not empty
    rows = list(csv.DictReader((tmp_path / "curves.csv").read_text().splitlines()))
    first = next(r for r in rows if r["tag"] == "charts/eval_return")
    values = [
        json.loads(line)["charts/eval_return"]
        for seed in (1, 2)
        for line in (real / f"redo{seed}" / "metrics.jsonl").read_text().splitlines()
        if '"charts/eval_return"' in line and json.loads(line)["step"] == int(first["step"])
    ]
    assert float(first["iqm"]) == pytest.approx(np.mean(values))
    assert (float(first["low"]), float(first["high"])) == pytest.approx((min(values), max(values)))
    assert first["n"] == "2"


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_curves_are_the_statistics_of_the_seeds(tmp_path: Path) -> None:
    made = report(tmp_path, *seeds(tmp_path, 5))
    drawn = {(tag, step): rest for _, _, tag, step, *rest in made.curves.rows}
    n, value, low, high = drawn["charts/eval_return", 20]
    assert (n, value) == (5, 6.0)
    assert (value, low, high) == bootstrap(iqm, [2.0 * np.arange(1, 6)], resamples=2000)
    assert drawn["plasticity/critic/dormancy/all", 30][1] == pytest.approx(0.45)


def test_maps_show_the_mean_of_the_seeds_by_layer_with_events(tmp_path: Path) -> None:
    one = tags({"q.0": [0.1, 0.2, None], "q.2": [0.0, 0.0, 0.6]})
    two = tags({"q.0": [0.3, 0.4, None], "q.2": [0.0, 0.2, 0.8]})
    make_run(tmp_path / "1", [0, 0, 0], values=one, events=[recycling(20), recycling(25, "actor"), recycling(28, None)])
    make_run(tmp_path / "2", [0, 0, 0], seed=2, values=two, events=[{"step": 10, "event": "unmeasured"}])
    runs, _ = load_runs([tmp_path])
    drawing = Pictures(Report(runs).configurations, "Walk-v0", ["dormancy"])
    shown = drawing._map(*drawing.groups[0][1:], "critic", "dormancy", ["q.0", "q.2"])
    assert shown is not None
    assert shown.steps.tolist() == [10, 20, 30]
    np.testing.assert_allclose(shown.values, [[0.2, 0.3, np.nan], [0.0, 0.1, 0.7]])
    assert shown.marks.tolist() == [20, 28]  # its own, and what names no network; an unmeasured layer is no event
    figure = draw_maps([[shown]], shading("dormancy", "share"), "steps")
    mesh = figure.axes[0].collections[0]
    assert mesh.get_clim() == (0.0, 1.0)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["q.0", "q.2"]


def test_a_map_measured_once_says_so_and_maps_beside_empty_places_are_labelled() -> None:
    once = Map("q: dqn", ["q.0", "q.2"], np.array([504]), np.full((2, 1), 0.2))
    often = Map("actor: ppo", ["pi.0"], np.array([0, 4000, 8000]), np.full((1, 3), 0.2))
    figure = draw_maps([[once, None], [None, often]], shading("dormancy", "share"), "steps")
    (first, _), (_, second) = np.array(figure.axes[:4]).reshape(2, 2)
    assert "one measurement only, at step 504" in "".join(text.get_text() for text in first.texts)
    assert not second.texts
    for place, layers in ((first, ["q.0", "q.2"]), (second, ["pi.0"])):
        assert place.get_xlabel() == "steps"
        assert place.xaxis.get_tick_params()["labelbottom"]
        assert place.yaxis.get_tick_params()["labelleft"]
        assert [label.get_text() for label in place.get_yticklabels()] == layers


@pytest.mark.parametrize(("rows", "layers"), [(1, 1), (1, 3), (2, 3), (3, 6)])
def test_the_words_beside_a_colour_scale_stay_in_the_picture(rows: int, layers: int) -> None:
    one = Map("t", [f"pi.{i}" for i in range(layers)], np.arange(3.0), np.zeros((layers, 3)))
    figure = draw_maps([[one, one]] * rows, shading("effective_rank", "rank"), "steps")
    figure.canvas.draw()
    words, whole = figure.axes[-1].yaxis.label.get_window_extent(), figure.bbox
    assert whole.y0 <= words.y0
    assert words.y1 <= whole.y1
    assert words.x1 <= whole.x1


def test_configurations_differ_in_more_than_colour(tmp_path: Path) -> None:
    for i in range(9):
        make_run(tmp_path / str(i), [0.0, i], batch_size=2**i)
    runs, _ = load_runs([tmp_path])
    made = Report(runs)
    axes = made.pictures["Walk-v0"][0].figure.axes[0]
    looks = {(line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 9
    combinations = {(i % len(COLOURS), i % len(LINES), i % len(MARKERS)) for i in range(200)}
    assert len(combinations) == 200


def test_strips_mark_the_steps_of_events(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 2, events=[recycling(10), recycling(30)], interventions={"redo": {}})
    made = report(*runs)
    figure = made.pictures["Walk-v0"][0].figure
    strip = figure.axes[-1]
    assert [label.get_text() for label in strip.get_yticklabels()] == ["redo"]
    marks = [segment[0][0] for segment in strip.collections[0].get_segments()]
    assert marks == [10, 30]
    table = next(table for table in made.details if table.title == "What interventions did")
    assert list(table.rows[0][2:]) == ["redo", "critic", 2.0, 10, 30, "", 0.25]


def test_what_an_intervention_counts_is_summed(tmp_path: Path) -> None:
    values = {"interventions/redo/recycled": [0.0, 3.0], "interventions/redo/applications": [0.0, 1.0]}
    make_run(tmp_path / "1", [0, 0], values=values, events=[recycling(20, count=3), recycling(20, count=4)])
    make_run(tmp_path / "2", [0, 0], seed=2, values=values)
    table = next(table for table in report(tmp_path).details if table.title == "What interventions did")
    assert table.rows[0][4] == 1.0
    assert table.rows[0][7] == "3.5 recycled"


def test_the_same_runs_make_the_same_bytes(tmp_path: Path) -> None:
    runs = seeds(tmp_path, 2)
    for folder in ("a", "b"):
        report(*runs, tags=["charts/eval_return"]).write(tmp_path / folder, ["html", "csv"])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


# -- runs that are not as they should be -------------------------------------------------------------------------------


def test_a_killed_run_and_one_that_goes_on(tmp_path: Path) -> None:
    seeds(tmp_path, 2)
    make_run(tmp_path / "killed", [9.0, 9.0], seed=7, steps=[10, 20], status="running", tail='{"step": 30, "cha')
    (tmp_path / "killed" / "run.json").write_text(
        (tmp_path / "killed" / "run.json").read_text().replace('"steps": 20', '"steps": 30')
    )
    made = report(tmp_path)
    notes = "\n".join(made.notes)
    assert "killed: left out 1 damaged line of metrics.jsonl" in notes
    assert "killed: not finished (status: running, last step 20)" in notes
    caption = made.pictures["Walk-v0"][0].caption
    assert "the curve of sac ends with its shortest run, at step 20" in caption
    assert max(row[3] for row in made.curves.rows if row[2] == "charts/eval_return") == 20
    assert made.results[0].rows[1] == ["step", "20"]
    assert made.results[0].rows[2][1].value == 5.0  # of 2, 4 and 9, at step 20
    assert "Not measured in all runs of sac: critic: dormancy n = 2" in made.results[0].note


def test_finished_leaves_out_the_others(tmp_path: Path, capsys) -> None:
    seeds(tmp_path / "runs", 2)
    make_run(tmp_path / "runs" / "failed", [9.0, 9.0, 9.0], seed=7, status="failed")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--finished"]) == 0
    assert "failed: status failed, last step 30" in capsys.readouterr().err
    assert "n = 2" in (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "only").mkdir()
    make_run(tmp_path / "only" / "failed", [1.0], status="failed")
    assert main(["report", str(tmp_path / "only"), "--finished"]) == 1


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    seeds(tmp_path, 2)
    empty = make_run(tmp_path / "empty", [1.0], seed=8)
    (empty / "metrics.jsonl").write_text("")
    crashed = make_run(tmp_path / "crashed", [1.0], seed=9, status="failed")
    (crashed / "metrics.jsonl").unlink()
    own = make_run(tmp_path / "own", [4.0, 5.0])
    (own / "run.json").unlink()
    torn = make_run(tmp_path / "torn", [4.0, 5.0])
    (torn / "run.json").write_text('{"agent": "sac", "con')
    holed = make_run(tmp_path / "holed", [3.0, 6.0, 9.0], seed=10)
    rows = (holed / "metrics.jsonl").read_text().splitlines()
    (holed / "metrics.jsonl").write_text("\n".join([rows[0], rows[1][:17], "null", rows[2]]) + "\n")
    made = report(tmp_path)
    notes = "\n".join(made.notes)
    assert "empty: nothing was logged yet" in notes
    assert "crashed: it has no metrics.jsonl (status: failed)" in notes
    assert re.search(r"own: settings unknown, so it stands alone: there is no run.json", notes)
    assert re.search(r"torn: settings unknown.*damaged", notes)
    assert "holed: left out 2 damaged lines" in notes
    assert {c.name: [len(runs) for runs in c.runs.values()] for c in made.configurations} == {
        "sac": [3], str(own): [1], str(torn): [1],
    }  # fmt: skip
    assert f"{own} has one run: no interval, and nothing can be concluded from it" in notes
    made.page()


def test_values_that_are_not_finite_are_said(tmp_path: Path) -> None:
    make_run(tmp_path / "1", [1.0, None, 3.0])
    make_run(tmp_path / "2", [1.0, 2.0, 3.0], seed=2)
    made = report(tmp_path)
    caption = made.pictures["Walk-v0"][0].caption
    assert "1 values of charts/eval_return that are not finite (sac) are bridged by a straight line" in caption
    never = make_run(tmp_path / "3", [None, None, None], seed=3)
    caption = report(tmp_path, never).pictures["Walk-v0"][0].caption
    assert "1 of 3 runs of sac lack charts/eval_return" in caption


def test_runs_with_other_layers_are_no_map(tmp_path: Path) -> None:
    make_run(tmp_path / "1", [1.0], values=tags({"q.0": [0.1], "all": [0.1]}))
    make_run(tmp_path / "2", [1.0], seed=2, values=tags({"body.0": [0.1], "all": [0.1]}))
    made = report(tmp_path)
    assert any("dormancy of q.0, body.0 (critic)" in note and "not all runs of sac" in note for note in made.notes)
    assert not any(picture.name.startswith("layers") for picture in made.pictures["Walk-v0"])


def test_different_versions_are_said(tmp_path: Path) -> None:
    _, second = seeds(tmp_path, 2)
    record = json.loads((second / "run.json").read_text())
    record["versions"]["torch"] = "2.12.0"
    (second / "run.json").write_text(json.dumps(record))
    assert "the runs of sac were not made by the same versions: torch" in report(tmp_path).notes


def test_chosen_metrics_and_curves(tmp_path: Path) -> None:
    values = {**tags({"all": [0.1]}), "plasticity/critic/srank/all": [7.0], "losses/critic_loss": [3.0]}
    make_run(tmp_path / "1", [1.0], values=values)
    made = report(tmp_path, metrics=["srank"], tags=["losses/critic_loss"])
    assert {row[2] for row in made.curves.rows} == {"losses/critic_loss", "plasticity/critic/srank/all"}
    with pytest.raises(ValueError, match="no run measured rank; measured were dormancy, srank"):
        report(tmp_path, metrics=["rank"])
    with pytest.raises(ValueError, match="no format doc; there are html, pdf, md, csv, svg, png"):
        made.write(tmp_path / "out", ["doc"])


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_paths_without_runs(place: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / place)]) == 1
    assert {"nowhere": "is no folder; pass run folders", "empty": "no run in"}[place] in capsys.readouterr().err


def test_foreign_names_do_no_harm(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    make_run(tmp_path / "1", [1.0, 2.0], env=evil, values={f"plasticity/{evil[:8]}/dormancy/all": [0.1, 0.2]})
    made = report(tmp_path)
    assert not any(tag == "script" for tag, _ in Page(made.page()).seen)
    assert all("/" not in picture.name for picture in made.pictures[evil])
    files = made.write(tmp_path / "out", ["md", "svg", "csv"])
    assert {file.parent for file in files} == {tmp_path / "out"}


def test_many_configurations_fit(tmp_path: Path) -> None:
    for i in range(7):
        make_run(tmp_path / str(i), [1.0, 2.0], values=tags({"q.0": [0.1, 0.2], "all": [0.1, 0.2]}), batch_size=i)
    made = report(tmp_path)
    assert [table.title for table in made.results] == [f"Results in Walk-v0, part {i} of 2" for i in (1, 2)]
    maps = next(picture for picture in made.pictures["Walk-v0"] if picture.name.startswith("layers"))
    assert sum(axes.get_visible() and bool(axes.collections) for axes in maps.figure.axes) >= 7
    made.page()


def test_empty_panels_say_so() -> None:
    from plasticity.reports.figures import Panel

    figure = draw_curves([[Panel("actor", "grama", [])]], "steps")
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]


def test_an_empty_or_lonely_panel_says_why(tmp_path: Path) -> None:
    one = {"plasticity/critic/grama/all": [0.1], "plasticity/actor/dormancy/all": [None]}
    make_run(tmp_path / "1", [1.0], values={**one, "plasticity/critic/dormancy/all": [0.2]})
    figure = next(p for p in report(tmp_path).pictures["Walk-v0"] if p.name.startswith("plasticity")).figure
    said = [text.get_text().replace("\n", " ") for axes in figure.axes for text in axes.texts]
    assert "no value was a finite number" in said
    assert "not measured: no run logged grama of actor" in said
    assert said.count("one measurement only: measure more often, --probe-every") == 2
    (tmp_path / "2").mkdir()
    make_run(tmp_path / "2" / "bare", [1.0], values={"losses/loss": [1.0]})
    notes = "\n".join(report(tmp_path / "2").notes)
    assert "no curve of plasticity in Walk-v0: no run measured a network" in notes
    assert "no learning curve in Walk-v0: no run logged charts/none" in "\n".join(
        report(tmp_path / "2", tags=["charts/none"]).notes
    )


# -- settings, commands, windows, colours ------------------------------------------------------------------------------


def test_settings_that_were_left_open_are_told_as_what_they_came_to(tmp_path: Path, capsys) -> None:
    flags = "--env sanity/constant --steps 40 --hidden 4 4 --num-steps 8 --num-minibatches 2 --quiet --eval-episodes 1"
    for seed, name in (("1", "a"), ("2", "b")):
        arguments = ["train", "ppo", *flags.split(), "--seed", seed, "--out", str(tmp_path), "--name", name]
        assert main(arguments) == 0
    made = report(tmp_path)
    told = dict(next(t for t in made.details if t.title == "Settings of all").rows)
    assert (told["lr"], told["num_epochs"], told["target_kl"]) == ("0.00025", "4", "no such limit")
    assert told["activation"] == "tanh"
    assert told["action_repeat"].startswith("2 for dm_control")
    assert "None" not in told.values()
    # An older record does not say what they came to.
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    del record["resolved"]
    (tmp_path / "a" / "run.json").write_text(json.dumps(record))
    runs, _ = load_runs([tmp_path / "a"])
    assert runs[0].told["lr"] == "default"


def test_a_short_run_of_ppo_has_a_curve(tmp_path: Path) -> None:
    arguments = (
        "--env sanity/constant --steps 80 --hidden 4 4 --num-steps 8 --num-minibatches 2 --quiet --eval-episodes 1"
    )
    assert main(["train", "ppo", *arguments.split(), "--out", str(tmp_path), "--name", "a"]) == 0
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["resolved"]["probe_every"] == record["resolved"]["told"]["probe_every"] <= 1000


@pytest.mark.parametrize(
    ("recorded", "typed"),
    [
        (["__main__.py", "train", "sac", "--seeds", "2", "--env", "a b", "--seeds", "1"],
         "plasticity train sac --env 'a b' --seeds 1"),
        (["/usr/bin/plasticity", "train", "ppo", "--lr=1", "--x", "--lr", "2"], "plasticity train ppo --x --lr 2"),
        (["plasticity", "train", "sac", "--hidden", "64", "64"], "plasticity train sac --hidden 64 64"),
        (["other.py", "--x", "-1"], "other.py --x -1"),
        ([], ""),
    ],
)  # fmt: skip
def test_recorded_commands_can_be_typed(recorded: list[str], typed: str, tmp_path: Path) -> None:
    run = RecordedRun(tmp_path, {"command": recorded, "agent": "sac", "config": {}}, {})
    assert shlex.join(run.command) == typed
    own = {"agent": "sac", "config": {}, "arguments": ["--env", "x", "--seeds", "3", "--seeds", "1"], "imports": ["m"]}
    expected = "plasticity --import m train sac --env x --seeds 1"
    assert shlex.join(RecordedRun(tmp_path, own, {}).command) == expected


def test_training_returns_are_means_over_a_window_and_say_so(tmp_path: Path) -> None:
    steps = list(range(1, 101))
    noisy = [0.0 if step % 2 else 10.0 for step in steps[:-1]] + [-700.0]
    for seed in (1, 2):
        make_run(tmp_path / str(seed), [1.0] * 100, seed=seed, steps=steps, values={"charts/episodic_return": noisy})
    made = report(tmp_path)
    row = next(row for row in made.results[0].rows if row[0].startswith("return of training episodes"))
    assert row[0] == "return of training episodes, mean over 10% of the steps"
    assert row[1].value == pytest.approx(np.mean(noisy[-10:]))
    drawn = {step: value for _, _, tag, step, _, value, *_ in made.curves.rows if tag == "charts/episodic_return"}
    assert drawn[50] == pytest.approx(5.0)
    titles = [axes.get_title(loc="left") for axes in made.pictures["Walk-v0"][0].figure.axes]
    assert any("mean over 10% of the steps" in title for title in titles)
    series = Series(np.array([1.0, 2.0, 4.0]), np.array([2.0, np.nan, 4.0]))
    assert windowed(series, 3).values.tolist() == [2.0, 4.0]
    assert windowed(series, 4).values.tolist() == [2.0, 3.0]


def test_ranks_are_drawn_as_what_is_lost_since_the_first_measurement(tmp_path: Path) -> None:
    for seed, first in ((1, 8.0), (2, 4.0)):
        ranks = [None, first, first / 2, 3 * first]
        values = {"plasticity/critic/effective_rank/q": ranks}
        make_run(tmp_path / str(seed), [0.0] * 4, seed=seed, values=values)
    runs, _ = load_runs([tmp_path])
    drawing = Pictures(Report(runs).configurations, "Walk-v0", ["effective_rank"])
    shown = drawing._map(*drawing.groups[0][1:], "critic", "effective_rank", ["q"])
    assert shown is not None
    np.testing.assert_allclose(shown.values, [[0.0, 0.5, -1.0]])
    assert "its change against the first measurement" in drawing._maps("effective_rank").caption


def test_colours_are_those_of_the_tab() -> None:
    static = Path(palette.__file__).parent / "dashboard" / "tab" / "static" / "palette.js"
    text = static.read_text()
    light = re.findall(r"light: (\{.*?\}|\[.*?\])", text, re.DOTALL)
    assert tuple(re.findall(r"#\w{6}", light[1])) == palette.LINE_COLOURS == COLOURS
    assert tuple(re.findall(r"#\w{6}", light[0])) == (*palette.WORSE, *palette.NEUTRAL)
    assert len(set(palette.LINE_COLOURS)) == 12
    assert [palette.shade(t) for t in (0, 0.25, 0.125, 2)] == ["#eef1f4", "#f7d79a", "#f2e4c7", "#4f1014"]


# -- PDF ---------------------------------------------------------------------------------------------------------------


def test_a_report_is_a_pdf_too(tmp_path: Path) -> None:
    runs = seeds(tmp_path / "runs", 2)
    files = [report(*runs).write(tmp_path / name, ["pdf"])[0] for name in ("a", "b")]
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert first.startswith(b"%PDF-")
    assert first.count(b"/Type /Page\n") + first.count(b"/Type /Page ") >= 5
    table = Table("Wide", [f"column {i}" for i in range(9)], [["a" * 40] * 9], "A note.")
    lines = text_table(table)
    assert max(map(len, lines)) <= 150
    assert lines[-1] == "A note."
    gaps = text_table(Table("Wide", [f"a long column {i}" for i in range(9)], [["a" * 40, *[""] * 7, "b" * 40]]))
    assert gaps[2:4] == [
        f"a long column 0: {'a' * 40}",
        f"a long column 8: {'b' * 40}",
    ]  # nothing of empty cells
    command = "plasticity train sac --env Pendulum-v1 --learning-starts 500 --eval-every 500 --checkpoint.every 600"
    pieces = " ".join(text_table(Table("T", ["folder", "command"], [["runs/a", command]]))[3:]).split()
    assert pieces == ["runs/a", *command.split()]  # options are not broken at their hyphens
    assert text_table(Table("T", ["a", "b"], [["x", 1.5], ["long", None]])) == [
        "T",
        "-",
        "a     b",
        "x     1.5",
        "long",
    ]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_numbers_as_text() -> None:
    found = [number(v) for v in (0.0312345, 12.345, 999.4, 1234.5, -1466.2, 2.5e7, float("nan"), 5e-17)]
    assert found == ["0.0312", "12.3", "999", "1234", "-1466", "2.5e+07", "-", "0"]
    assert cell(Interval(1.0, 0.5, 2.25)) == "1 [0.5, 2.25]"
    assert cell(Interval(1.0, float("nan"), float("nan"))) == "1 [-]"
    assert cell(None) == ""
    assert cell(3) == "3"


def test_one_table_in_four_languages() -> None:
    rows = [["a|b & <c>", Interval(1.0, 0.5, 2.0), 3], ["plain_1", None, 4]]
    table = Table("Title 5 %", ["name", "score", "n"], rows, "A note.")
    assert markdown(table) == (
        "## Title 5 %\n\n| name | score | n |\n| --- | --- | --- |\n"
        "| a\\|b & <c> | 1 [0.5, 2] | 3 |\n| plain_1 |  | 4 |\n\nA note.\n"
    )
    assert comma_separated(table) == ("name,score,score low,score high,n\na|b & <c>,1.0,0.5,2.0,3\nplain_1,,,,4\n")
    assert r"1 {[}$-$2, 2.5$\cdot 10^{7}${]}" in latex(Table("", ["a"], [[Interval(1.0, -2.0, 2.5e7)]]))
    assert r"$-$1466 & a-1 \\" in latex(Table("", ["a", "b"], [[-1466.2, "a-1"]]))
    assert r"a|b \& $<$c$>$ & 1 {[}0.5, 2{]} & 3 \\" in latex(table)
    assert r"plain\_1 &  & 4 \\" in latex(table)
    assert r"\caption{Title 5 \%. A note.}" in latex(table)
    assert "a|b &amp; &lt;c&gt;" in as_html(table)
    # A column of numbers that ends in empty cells is still one.
    assert as_html(Table("T", ["x", "y"], [["a", 1.5], ["b", ""]], "")).count('class="n"') == 3
    Page(as_html(table))


def test_layers_of_several_configurations_are_in_one_order() -> None:
    mixed = ["trunk.0", "trunk.3", "head.0", "trunk.2", "trunk.10", "head.mean"]
    assert in_one_order(mixed) == ["trunk.0", "trunk.2", "trunk.3", "trunk.10", "head.mean", "head.0"]
