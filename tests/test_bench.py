"""Benchmarks on streams: numbers against plain loops, methods by text, finished runs are skipped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plasticity.cli import main
from plasticity.commands import bench_report, fleet, random_actions
from plasticity.commands.bench import BenchConfig
from plasticity.commands.bench_cells import Cell, find_cells, method_of, place_of
from plasticity.commands.bench_kept import file_of, kept_streams, read_kept
from plasticity.commands.bench_numbers import CellNumbers, all_numbers, numbers_of, plans_of
from plasticity.commands.bench_options import options_beside
from plasticity.commands.bench_page import verdict
from plasticity.commands.bench_picture import _returns, drawn_methods
from plasticity.commands.bench_report import BenchReport
from plasticity.commands.bench_runs import Bench
from plasticity.commands.method_names import method_arguments, split_methods
from plasticity.commands.parsing import parse
from plasticity.commands.random_actions import random_returns
from plasticity.commands.settings import settings
from plasticity.commands.suites import SUITES, Suite
from plasticity.commands.training import TrainingRun
from plasticity.envs import is_stream
from plasticity.reports.bench_tables import bench_tables, without_oracles
from plasticity.reports.runs import load_runs
from plasticity.reports.series import Series
from plasticity.reports.tables import markdown
from plasticity.reports.tasks import BINS, Protocol, forward_transfer, gaps, in_order, slope, task_curves
from plasticity.storage.files import RunLock
from plasticity.storage.record import write_record


def test_bins_of_a_task_average_the_episodes_that_end_in_them() -> None:
    rng = np.random.default_rng(0)
    steps = np.sort(rng.choice(np.arange(1, 801), 90, replace=False))
    values = rng.normal(size=90)
    values[5] = np.nan
    found = task_curves(Series(steps, values), 2, 400)
    previous = values[0]
    for index in range(2 * BINS):
        low, high = index * 10, (index + 1) * 10
        inside = [v for s, v in zip(steps, values, strict=True) if low < s <= high and np.isfinite(v)]
        if inside:
            previous = np.mean(inside)
        assert found.reshape(-1)[index] == pytest.approx(previous)
    assert np.isnan(task_curves(Series(np.array([3]), np.array([np.nan])), 2, 400)).all()


def test_gap_slope_and_transfer_by_hand() -> None:
    ours = np.array([[10.0, 10.0], [4.0, 6.0], [1.0, 1.0]])
    oracle = np.array([[10.0, 10.0], [9.0, 11.0], [11.0, 11.0]])
    random = np.array([0.0, 5.0, 1.0])
    assert gaps(ours, oracle, random) == pytest.approx([0.0, 1.0, 1.0])
    assert np.isnan(gaps(ours, oracle, np.array([10.0, 0, 0]))[0])
    assert slope(np.array([0.0, 1.0, 2.0])) == pytest.approx(1)
    assert slope(np.array([0.0, np.nan, 1.0])) == pytest.approx(0.5)
    assert np.isnan(slope(np.array([1.0, np.nan])))
    assert forward_transfer(ours, oracle, 20.0) == pytest.approx(np.mean([-5 / 10, -10 / 9]))
    assert in_order({"a": 3, "c": 1}, ["a", "b", "c"])
    assert not in_order({"a": 1, "c": 3}, ["a", "b", "c"])


def test_methods_are_read_from_text() -> None:
    assert split_methods("none, l2-init:coef=0.1,norms=False,redo+nap") == (
        "none",
        "l2-init:coef=0.1,norms=False",
        "redo+nap",
    )
    assert split_methods("shrink_perturb:every=9,sync_targets=True,optimizer=adaptive_upgd") == (
        "shrink-perturb:every=9,sync-targets=True",
        "optimizer=adaptive_upgd",
    )
    assert split_methods("l2-init:coef=0.1,optimizer=trac,cbp+redo:every=9,threshold=0.1,norm=layer") == (
        "l2-init:coef=0.1",
        "optimizer=trac",
        "cbp+redo:every=9,threshold=0.1",
        "norm=layer",
    )
    assert method_arguments("l2_init:coef=0.1,norms=False") == [
        "--l2-init", "--l2-init.coef", "0.1", "--l2-init.norms", "False",
    ]  # fmt: skip
    assert split_methods("lr=1e+3+l2_init:coef=1E+2") == ("lr=1e+3+l2-init:coef=1E+2",)
    assert method_arguments("lr=1e+3+redo:every=+9") == ["--lr", "1e+3", "--redo", "--redo.every", "+9"]
    assert method_arguments("redo+norm=layer") == ["--redo", "--norm", "layer"]
    assert method_arguments("none") == method_arguments("oracle") == []
    for wrong in ("", "none,none", "l2_init:coef=1,l2-init:coef=1"):
        with pytest.raises(ValueError, match="at least one method"):
            split_methods(wrong)
    assert split_methods("l2_init:,redo:,redo:every=9,") == ("l2-init", "redo", "redo:every=9")
    for wrong in ("redo+redo", "none,redo:every=9,every=8", "norm=layer+nap+norm=batch"):
        with pytest.raises(ValueError, match="more than once"):
            split_methods(wrong)
    for wrong in ("none+redo", "redo+oracle", "oracle:every=9", "redo++nap"):
        with pytest.raises(ValueError, match="none and oracle stand alone"):
            split_methods(wrong)


def test_what_does_not_exist_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, text in (
        (["cgim"], "did you mean cgym"),
        (["cgym", "--envs", "cgym/pong"], "has no cgym/pong"),
        (["cgym", "--methods", "none,redoo"], "method 'redoo': no option --redoo"),
        (["cgym", "--methods", "redo", "--", "--lrr", "3"], "bench: no option --lrr"),
        (["cgym", "--seeds", "0"], "--seeds is at least 1 and --seed at least 0, got 0 and 1"),
        (["cgym", "--seed", "-1"], "got 5 and -1"),
        (["cgym", "--methods", "none,seed=3"], "--seed: the bench says this for every run"),
        (["cgym", "--methods", "none", "--", "--steps=100"], "--steps: the bench says this for every run"),
        (["cgym", "--methods", "none", "--envs", "cgym/cartpole", "--agent", "sac"], "sac"),
    ):
        suite, *rest = arguments
        assert main(["bench", suite, "--out", str(tmp_path / "out"), *rest]) != 0
        assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_settings_that_its_agent_knows(name: str) -> None:
    suite = SUITES[name]
    if name in ("cminatar", "supervised"):
        pytest.importorskip("minatar" if name == "cminatar" else "sklearn")
    bench = Bench(BenchConfig(name, seeds=1), suite)
    assert len(bench.cells) == sum(1 + (bench.plans[env].num or 0) for env in suite.envs)
    for env in reversed(suite.envs):
        config = parse(suite.agent, bench._arguments(next(cell for cell in bench.cells.values() if cell.env == env)))
        assert getattr(config.agent, "anneal_steps", 0) == 0, "a rate that falls would pass for a loss of plasticity"
    run = TrainingRun(suite.agent, config)  # raises where the network does not take the observations
    run.env.close()


def test_the_rate_stays_on_streams_unless_it_is_told_to_fall() -> None:
    for env, more, expected in (
        ("CartPole-v1", [], 5000),
        ("cgym/cartpole", [], 0),
        ("slippery-ant", [], 0),
        ("permute/CartPole-v1", [], 0),
        ("slippery-ant", ["--anneal-steps", "70"], 70),
    ):
        assert parse("ppo", ["--env", env, "--steps", "5000", *more]).agent.anneal_steps == expected
    assert [name for name in ("bitflip", "cminatar", "sanity/drift", "dmc/walker-run", "none/such")
            if is_stream(name)] == ["bitflip", "cminatar"]  # fmt: skip


def test_finished_runs_are_skipped_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BenchConfig("cgym-short", "none,oracle", ("cgym-short/cartpole",), seeds=2, task_steps=400, num_tasks=2)
    config = BenchConfig(**{**vars(config), "out": tmp_path})
    bench = Bench(config, SUITES["cgym-short"])
    levels = {("none", 0): 100.0, ("none", 1): 20.0, ("oracle", 0): 100.0, ("oracle", 1): 110.0}
    records: dict[Path, dict[str, Any]] = {}
    for folder, cell in bench.cells.items():
        folder.mkdir(parents=True)
        own = settings(parse("ppo", bench._arguments(cell)))
        records[folder] = {"agent": "ppo", "status": "finished", "config": own, "eval_returns": []}
        write_record(folder, records[folder])
        rows: list[dict[str, Any]] = []
        for step in range(5, 1 + (800 if cell.task is None else 400), 5):
            task = (step - 1) // 400 if cell.task is None else cell.task
            rows.append(
                {"step": step, "charts/episodic_return": levels[cell.method, task] + cell.seed, "charts/SPS": 9.0}
            )
        rows.append({"step": 390, "plasticity/actor/dormancy/all": 0.25, "plasticity/critic/dormancy/all": 0.75})
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ["bench", "cgym-short", "--methods", "none,oracle", "--envs", "cgym-short/cartpole", "--seeds", "2"]
    arguments += ["--task-steps", "400", "--num-tasks", "2", "--out", str(tmp_path)]
    elsewhere = next(folder for folder, cell in bench.cells.items() if cell.task is None)
    write_record(elsewhere, {**records[elsewhere], "status": "running"})
    lock = RunLock(elsewhere)  # as the process of another command

    def finish() -> None:
        write_record(elsewhere, records[elsewhere])
        lock.__exit__(None, None, None)

    with lock, pytest.MonkeyPatch.context() as patched:
        patched.setattr(fleet.time, "sleep", lambda _: finish())  # after one look
        assert Bench(config, SUITES["cgym-short"]).run() == 0
    assert capsys.readouterr().err == "cgym-short: 1 elsewhere, 5 skipped\ncgym-short: 6 skipped\n"
    assert not list(tmp_path.rglob("*unfinished*"))
    assert main(arguments) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("| none"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:3] == ["none", "2", "61.5 [61, 62]"]
    assert cells[4:6] == ["102 [101, 102]", "21.5 [21, 22]"]
    random = json.loads((tmp_path / "cgym-short" / "cgym-short-cartpole" / "random.json").read_text())
    gap = np.mean([[0, (110 - 20) / (110 + seed - random[f"{seed} 2"][1])] for seed in (1, 2)])
    assert float(cells[6].split()[0]) == pytest.approx(gap, abs=0.005)
    assert cells[-1] == "0.5"
    assert (tmp_path / "cgym-short" / "bench.md").read_text() in text
    runs, left_out = without_oracles(load_runs([tmp_path])[0])
    assert [run.folder.name for run in runs] == ["seed_1", "seed_2"]
    assert left_out == ["left out 4 runs of agents that are fresh in a task: their numbers are in the tables of bench"]
    tables, notes = bench_tables(runs)
    assert (len(tables), notes) == (4, [])
    assert markdown(tables[0]).splitlines()[4:6] == text.splitlines()[4:6]
    assert markdown(tables[2]).splitlines()[2:] == text.split("plasticity gap by task")[1].splitlines()[2:7]
    table = tmp_path / "cgym-short" / "cgym-short-cartpole" / "gaps.csv"
    table.write_text(table.read_text() + "a line too short\n")
    assert "gaps.csv is left out: no table of plasticity bench" in bench_tables(runs)[1][0]
    assert (
        main(["compare", str(tmp_path), "--metric", "charts/episodic_return", "--at", "auc", "--resamples", "9"]) == 0
    )
    assert "left out 4 runs of agents that are fresh in a task" in capsys.readouterr().out
    page = tmp_path / "page"
    assert main(["bench", "cgym", "--out", str(tmp_path), "--page", str(page)]) != 0
    assert "holds no finished run of cgym" in capsys.readouterr().err
    assert main(["bench", "cgym-short", "--out", str(tmp_path), "--page", str(page)]) == 0
    said = (page / "cgym-short.md").read_text()
    assert (
        "2 tasks of 400 steps. **Plasticity is lost.** Without a method the return goes from 102 in the first" in said
    )
    assert "to 21.5 in the last, where a fresh agent has 112;" in said
    assert "## Not there\n\ncgym-short/acrobot; cgym-short/lunarlander." in said
    assert (page / "cgym-short-cgym-short-cartpole.svg").is_file()
    _page_grows_without_its_runs(tmp_path, page, [folder for folder, cell in bench.cells.items() if cell.seed == 1])
    assert main([*arguments, "--", "--lr", "0.1"]) != 0
    said = capsys.readouterr().err
    assert "other settings: agent.lr" in said
    assert "pass another --out" in said
    for place, kept in records.items():  # a number of tasks that the others do not have
        if place.parent.name == "none" and place.name == "seed_2":
            write_record(place, {**kept, "config": {**kept["config"], "num_tasks": 3}})
    assert main(["bench", "cgym-short", "--out", str(tmp_path), "--page", str(page)]) != 0
    assert "seed 2: 3 tasks of 400 steps, where other runs have 2 of 400" in capsys.readouterr().err


def _page_grows_without_its_runs(out: Path, page: Path, first: list[Path]) -> None:
    """A page is the same from its file alone, and from the file of some runs beside the folders of the others."""
    files = {file: file.read_bytes() for file in page.iterdir()}
    assert len(files) == 3
    arguments = ["bench", "cgym-short", "--page", str(page)]
    assert main([*arguments, "--out", str(out / "nothing")]) == 0
    assert {file: file.read_bytes() for file in page.iterdir()} == files
    kept = page / "cgym-short-cgym-short-cartpole.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len([row for row in rows if "random" in row]) == 2
    assert [(row["method"], row["seed"], row.get("task")) for row in rows if "random" not in row] == [
        *(("none", seed, None) for seed in (1, 2)), *(("oracle", seed, task) for seed in (1, 2) for task in (0, 1)),
    ]  # fmt: skip
    kept.write_text("".join(f"{json.dumps(row)}\n" for row in rows if row.get("seed") == 1))
    away = [folder.rename(folder.with_name(f"away_{folder.name}")) for folder in first]
    assert main([*arguments, "--out", str(out)]) == 0
    assert {file: file.read_bytes() for file in page.iterdir()} == files
    for place, folder in zip(away, first, strict=True):
        place.rename(folder)
    run = {"env": "cgym-short/cartpole", "method": "none", "seed": 9, "steps": 400, "returns": [[1.0], [1.0]]}
    damaged: dict[str, Any] = {
        "KeyError('method')": {"env": "cgym-short/cartpole"},
        "TypeError(\"seed is '9'\")": {**run, "seed": "9"},
        "AttributeError": {**run, "metrics": []},
        "the file is of cgym-short/cartpole, the line of cgym/cartpole": {**run, "env": "cgym/cartpole"},
        "could not convert string to float": {"random": "1 2", "returns": ["a", "b"]},
    }
    for said, row in damaged.items():
        kept.write_bytes(files[kept] + json.dumps(row).encode())
        with pytest.raises(ValueError, match=rf"cartpole\.jsonl, line 9: no numbers of a run \(.*{re.escape(said)}"):
            read_kept(kept, "cgym-short/cartpole")
    kept.write_bytes(files[kept])


def finished(folder: Path, rows: list[dict[str, Any]], **changed: Any) -> None:
    """Write a finished run of a bench."""
    folder.mkdir(parents=True)
    config = {"env": "cgym/cartpole", "num_envs": 1, "task_steps": 400, "num_tasks": 2, **changed}
    write_record(folder, {"agent": "ppo", "status": "finished", "config": config})
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_what_a_folder_holds_besides_good_runs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, none = tmp_path / "cgym-cartpole" / "none" / "seed_1", tmp_path / "cgym-cartpole" / "none" / "seed_2"
    finished(good, [{"step": 400, "charts/episodic_return": 3.0}])
    finished(none, [{"step": 400, "losses/policy": 3.0}])
    assert [run.cell.seed for run in all_numbers(find_cells(tmp_path).finished, SUITES["cgym"])] == [1]
    assert capsys.readouterr().err == f"{none} is left out: no episode ended in it\n"
    finished(tmp_path / "a" / "b" / "seed_1", [], num_tasks=None)  # of plasticity train
    with pytest.raises(ValueError, match="seed_1 is no run of plasticity bench: its settings lack num_tasks"):
        find_cells(tmp_path)


def test_a_task_of_several_environments_is_as_long_as_they_make_it(tmp_path: Path) -> None:
    folder = tmp_path / "seed_1"
    rows = [{"step": step, "charts/episodic_return": (step - 1) // 405} for step in range(3, 811, 3)]
    finished(folder, rows, num_envs=15)
    found = numbers_of(folder, Cell("cgym/cartpole", "none", 1, None), Suite((), "ppo", ""))
    assert found is not None
    assert found.steps == 405
    assert found.curves.tolist() == [[0.0] * BINS, [1.0] * BINS]


def lived(method: str, seed: int = 1, tasks: int = 10, **more: Any) -> CellNumbers:
    """Return the numbers of a run on `cgym/cartpole`."""
    curves = np.ones((tasks, more.pop("bins", 200)))
    return CellNumbers(Cell("cgym/cartpole", method, seed, None), 160_000, curves, **more)


def test_published_areas_stand_beside_the_form_of_the_paper_alone(tmp_path: Path) -> None:
    def published(*runs: CellNumbers) -> list[str]:
        found = BenchReport(SUITES["cgym"], tmp_path, plans_of(runs), runs).protocol("cgym/cartpole")
        assert found is not None
        return sorted({*found.published} - {"oracle"})

    tuned, joined = "l2-init:coef=0.0001", "l2-init:coef=0.0001+redo"
    assert published(lived("none"), lived("l2-init"), lived(joined), lived("optimizer=trac")) == [
        "l2-init", "none", "optimizer=trac",
    ]  # fmt: skip
    assert published(lived("l2-init"), lived(tuned), lived("l2-init:coef=0.1"), lived("chain")) == ["chain", tuned]
    assert published(lived("none", tasks=2)) == []  # the paper has ten
    assert published(lived("none", options="--lr 0.1")) == []


def test_runs_of_other_settings_share_no_page() -> None:
    suite = SUITES["cgym"]
    usual = ["--env", "cgym/cartpole", "--seed=3", "--log", *suite.arguments.split(), "--name", "seed_3", "--quiet"]
    for agent, words, method, expected in (
        ("ppo", usual, "none", ""),
        ("ppo", [*usual, "--redo", "--redo.every=9"], "redo:every=9", ""),
        ("ppo", [*usual, "--num_envs", "4", "--hidden", "64", "64"], "none", "--hidden 64 64 --num-envs 4"),
        ("ppo", [*usual, "--probes", "all", "--churn", "--churn.every", "9", "--compile", "off"], "none", ""),
        ("ppo", ["--env", "cgym/cartpole"], "none", "ppo"),  # without the settings of the suite
        ("dqn", ["--lr", "0.1"], "none", "dqn --lr 0.1"),
    ):
        assert options_beside({"agent": agent, "arguments": words}, suite, method) == expected
    assert options_beside({"agent": "ppo"}, suite, "none") == ""
    plans_of([lived("none", options="--lr 0.1"), lived("none", 2, options="--lr 0.1")])
    for other, words in (
        (lived("none", 2, options="--lr 0.1"), "seed 2: --lr 0.1, where other runs have those of the suite"),
        (lived("none", 2, bins=40), "seed 2: 40 returns in a task, where other runs have 200"),
    ):
        with pytest.raises(ValueError, match=words):
            plans_of([lived("none"), other])


def test_damaged_returns_of_random_actions_are_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_report, "random_returns", lambda *_, **__: [7.0] * 10)
    file = tmp_path / "cgym-cartpole" / "random.json"
    for damaged in ('{"1 10": [', "[]", '{"1 10": [3.0]}'):
        file.parent.mkdir(exist_ok=True)
        file.write_text(damaged)
        report = BenchReport(SUITES["cgym"], tmp_path, plans_of([lived("none")]), [lived("none")])
        assert report.random("cgym/cartpole", 1).tolist() == [7.0] * 10
        assert json.loads(file.read_text()) == {"1 10": [7.0] * 10}


def test_a_page_finds_its_streams_among_the_files_beside_it(tmp_path: Path) -> None:
    for suite, env in (("cgym", "cgym/cartpole"), ("cgym", "permute/Other-v1"), ("cgym-short", "cgym-short/cartpole")):
        rows = [{"random": "1 2", "returns": [1.0]}, {"env": env}]
        file_of(tmp_path, suite, env).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "cgym-damaged.jsonl").write_text("[]\n{")
    assert kept_streams(tmp_path, "cgym") == ["cgym/cartpole", "permute/Other-v1"]
    assert kept_streams(tmp_path, "cgym-short") == ["cgym-short/cartpole"]
    assert kept_streams(tmp_path / "nothing", "cgym") == []


def test_random_actions_play_the_tasks_of_their_seed_in_episodes_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_actions, "RANDOM_STEPS", 60)
    assert random_returns("permute/CartPole-v1", 1, 2, max_episode_steps=5) == [5.0, 5.0]
    slippery = [random_returns("slippery-hopper", seed, 1) for seed in (1, 2, 1)]
    assert slippery[0] == slippery[2] != slippery[1]


def test_a_page_pairs_seeds_and_says_what_it_cannot_judge() -> None:
    ones = np.ones((2, 4, 3))
    levels = np.array([1.0, 0.8, 0.2, 0.2])[None, :, None]
    fresh = ones[:1] * 2
    both = {"none": ones * levels * [[[1.0]], [[2.0]]]}
    protocol = Protocol("e", both, fresh, np.zeros(4), {}, {}, {}, {"oracle": [7], "none": [6, 7]})
    assert protocol.gaps_of("none") == pytest.approx(np.array([[0.0, 0.2, 0.8, 0.8]]))  # of seed 7 alone
    assert "**Plasticity is lost.**" in verdict(protocol)
    assert "its gap to that is 0.8" in verdict(protocol)
    kept = Protocol("e", {"none": ones * 2}, ones * 2, np.zeros(4), {}, {}, {})
    assert "**No loss of plasticity is shown.**" in verdict(kept)
    assert "no fresh agent" in verdict(Protocol("e", both, None, None, {}, {}, {}))
    assert "no fresh agent" in verdict(
        Protocol("e", both, fresh, np.zeros(4), {}, {}, {}, {"oracle": [1], "none": [6, 7]})
    )
    assert "nothing was trained without" in verdict(Protocol("e", {"redo": ones}, None, None, {}, {}, {}))
    assert "one task only" in verdict(Protocol("e", {"none": ones[:, :1]}, fresh[:, :1], np.zeros(1), {}, {}, {}))
    assert Protocol("e", {}, fresh, np.zeros(4), {}, {}, {}).gaps_by_task() is None


def test_a_picture_has_only_what_was_trained() -> None:
    """Published methods come first, of those that there are: the oracle may have been left out."""
    curves = {name: np.full((1, 2, 3), area) for name, area in {"redo": 3.0, "trac": 1.0}.items()}
    published = {"oracle": 9.0, "none": 1.0, "trac": 5.0}
    assert drawn_methods(Protocol("e", curves, None, None, {}, published, {})) == ["trac", "redo"]


@pytest.mark.parametrize("method", ["none", "l2-init:coef=0.1", "l2_init:coef=0.1", "redo+norm=layer", "optimizer=trac",
                                    "l2-init:coef=0.1+cbp:rate=0.01", "shrink-perturb",
                                    "l2-init:coef=0.1,norms=False", "lr=1e+3+l2-init:coef=1e+2"])  # fmt: skip
def test_a_method_is_read_from_the_name_of_its_folder(method: str) -> None:
    assert method_of(place_of(method)) == method


@pytest.mark.slow
def test_a_bench_trains_and_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "cgym-short", "--methods", "none,oracle,l2-init", "--envs", "cgym-short/cartpole"]
    arguments += ["--task-steps", "1600", "--num-tasks", "2", "--jobs", "2", "--out", str(tmp_path)]
    assert main([*arguments, "--seeds", "1"]) == 0
    before = {file: file.stat().st_mtime for file in tmp_path.rglob("metrics.jsonl")}
    assert len(before) == 4
    assert main([*arguments, "--seeds", "2"]) == 0
    assert all(file.stat().st_mtime == time for file, time in before.items())
    assert len(list(tmp_path.rglob("metrics.jsonl"))) == 8
    assert "| l2-init | 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(("tasks", "points"), [(2, 20), (10, 20), (11, 1), (100, 1)])
def test_a_curve_of_many_tasks_has_the_mean_of_each(tasks: int, points: int) -> None:
    """Every nth of their points would be the beginning of one task and the end of another."""
    rising = np.tile(np.linspace(0.0, 1.0, 40), (1, tasks, 1))
    protocol: Any = SimpleNamespace(everyone=lambda: {"none": rising})
    curve = _returns(protocol, "none", 0, 400)
    assert curve is not None
    np.testing.assert_allclose(curve.band.steps, (np.arange(tasks * points) + 0.5) * 400 / points)
    np.testing.assert_allclose(curve.band.value, rising.reshape(tasks * points, -1).mean(1))
