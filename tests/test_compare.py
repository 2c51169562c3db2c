"""``plasticity compare``: who is compared with whom, with which numbers, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from runfolders import make_run

from plasticity.cli import main
from plasticity.reports.groups import configurations
from plasticity.reports.runs import load_runs
from plasticity.reports.series import Series, aligned, band, columns, score, until
from plasticity.reports.statistics import Interval, bootstrap, iqm, probability_of_improvement

PLAIN = {1: 3.0, 2: 5.0, 3: 4.0, 4: 9.0, 5: 6.0}
HELPED = {1: 7.0, 2: 8.0, 3: 5.5, 4: 10.0, 5: 12.0}
REDO = {"redo": {"every": 10, "threshold": 0.1}}


def two_configurations(root: Path, env: str = "Walk-v0", scale: float = 1.0) -> Path:
    """Five seeds without and with ReDo; dormancy falls with the score in both."""
    for name, scores, methods in (("plain", PLAIN, None), ("redo", HELPED, REDO)):
        for seed, last in scores.items():
            values = {"plasticity/critic/dormancy/all": [0.5, (1 if methods else 2) / (1 + last)]}
            make_run(root / f"{env}_{name}_{seed}", [0.0, scale * last], seed=seed, env=env, values=values,
                     interventions=methods)  # fmt: skip
    return root


def compare(capsys: pytest.CaptureFixture[str], *arguments: object, resamples: int = 300) -> str:
    command = ["compare", *map(str, arguments), "--resamples", str(resamples)]
    assert main(command) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["compare", *map(str, arguments)]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def row(text: str, title: str, label: str) -> list[str]:
    """Return the cells after ``label`` in the table under ``title``."""
    block = text.split(f"## {title}\n")[1].split("\n## ")[0]
    line = next(line for line in block.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def numbers(cell: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", cell)]


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = compare(capsys, two_configurations(tmp_path), resamples=10_000)
    plain, helped = (np.array(list(scores.values())) for scores in (PLAIN, HELPED))
    cells = row(text, "Aggregate scores", "no intervention")
    assert cells[0] == "5"
    assert numbers(cells[1]) == pytest.approx([5.0, *bootstrap(iqm, [plain])[1:]], rel=0.01)  # of 4, 5, 6
    assert numbers(cells[2])[0] == 5.0
    assert numbers(cells[3])[0] == 5.4
    assert numbers(row(text, "Aggregate scores", "redo")[1])[0] == pytest.approx((7 + 8 + 10) / 3, rel=0.01)
    pair = numbers(row(text, "Probability of improvement", "no intervention over redo")[0])
    wins = sum((a > b) + (a == b) / 2 for a in plain for b in helped) / 25
    assert pair == pytest.approx(list(bootstrap(probability_of_improvement, [plain], [helped])), abs=0.01)
    assert pair[0] == pytest.approx(wins)
    assert row(text, "Performance profiles", "3")[0] == "0.8 [0.4, 1]"  # the lowest score itself is not above it
    assert "10,000 resamples, seed 0" in text
    assert "redrawn with replacement within each environment and configuration" in text
    assert "Score of a run: last value of charts/eval_return in Walk-v0. Scores are not normalised." in text
    assert "1: 3, 2: 5, 3: 4, 4: 9, 5: 6" in text


@pytest.mark.parametrize(("count", "said"), [(4, False), (5, True)])
def test_no_association_from_fewer_than_five_runs(
    count: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(count):
        values = {"plasticity/critic/dormancy/all": [0.1 * seed]}
        make_run(tmp_path / str(seed), [float(seed)], seed=seed, values=values)
    found = compare(capsys, tmp_path)
    assert ("## Association with the score" in found) == said
    assert ("no association with the score is given: ranks need 5 runs" in found) == (not said)


def test_the_score_of_training_returns_is_a_mean_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = list(range(1, 51))
    for seed in (1, 2):
        values = {"charts/episodic_return": [10.0 * seed] * 49 + [-1000.0]}
        make_run(tmp_path / str(seed), [1.0] * 50, seed=seed, steps=steps, values=values)
    found = compare(capsys, tmp_path, "--metric", "charts/episodic_return")
    assert "mean over the last 10% of the steps of charts/episodic_return" in found
    assert "1: -192, 2: -184" in found  # four of 10 or 20, and -1000


def test_association_within_and_across_configurations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = compare(capsys, two_configurations(tmp_path))
    within, n, pooled, n_pooled = row(text, "Association with the score", "critic: dormancy")
    assert numbers(within) == [-1, -1, -1]  # in each configuration, the more dormant the worse
    assert n == n_pooled == "10"
    metric = [2 / (1 + s) for s in PLAIN.values()] + [1 / (1 + s) for s in HELPED.values()]
    rho = scipy.stats.spearmanr(metric, [*PLAIN.values(), *HELPED.values()]).statistic
    assert numbers(pooled)[0] == pytest.approx(rho, rel=0.01)
    mean = compare(capsys, tmp_path, "--association", "mean")
    assert "rho of the mean value" in mean


def test_normalised_scores_over_two_environments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_configurations(tmp_path, "Walk-v0")
    two_configurations(tmp_path, "Swim-v0", scale=100)
    text = compare(capsys, tmp_path, "--normalise", "Walk-v0=0,10", "Swim-v0=0,1000")
    cells = row(text, "Aggregate scores", "no intervention")
    assert cells[0] == "5 + 5"
    assert [numbers(cell)[0] for cell in cells[1:]] == pytest.approx([0.5, 0.54, 0.54, 0.46], abs=0.001)
    # The ten runs of both are 3 3 4 4 5 5 6 6 9 9 tenths: two are cut at each end.
    assert "Swim-v0: 0 is 0, 1000 is 1; Walk-v0: 0 is 0, 10 is 1" in text
    assert numbers(row(text, "Environment by environment", "Swim-v0")[0])[0] == 0.5
    assert "no scale for Walk-v0" in refusal(capsys, tmp_path, "--normalise", "Swim-v0=0,1")
    assert "no runs in Fly-v0" in refusal(capsys, tmp_path, "--normalise", "Fly-v0=0,1")
    assert "LOW must be below HIGH" in refusal(capsys, tmp_path, "--normalise", "5,1")
    assert "and both finite" in refusal(capsys, tmp_path, "--normalise", "0,inf")
    assert "neither LOW,HIGH nor" in refusal(capsys, tmp_path, "--normalise", "nonsense")
    one = compare(capsys, tmp_path, "--env", "Walk-v0")
    assert numbers(row(one, "Aggregate scores", "redo")[3])[0] == 8.5
    assert "no runs in Fly-v0; there are" in refusal(capsys, tmp_path, "--env", "Fly-v0")


def test_without_a_common_scale_every_environment_is_compared_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    walk = two_configurations(runs / "walk")
    swim = two_configurations(runs / "swim", "swim/Swim-v0", scale=100)
    for seed in (1, 2):
        make_run(runs / f"fly_{seed}", [0.0, 1.0], seed=seed, env="Fly-v0", interventions=REDO)
        make_run(runs / f"bad_{seed}", [0.0, float("nan")], seed=seed, env="Bad-v0")
    make_run(runs / "lone", [0.0, 1.0], env="Fly-v0")
    text = compare(capsys, runs, "--out", tmp_path / "out")
    parts = dict(zip(["Fly-v0", "Walk-v0", "swim/Swim-v0"], text.split("# Comparison in ")[1:], strict=True))
    for env, folder in (("Walk-v0", walk), ("swim/Swim-v0", swim)):
        alone = compare(capsys, folder)
        assert (
            parts[env].split("## Aggregate")[1].split("Made by")[0] == alone.split("## Aggregate")[1].split("Made")[0]
        )
    assert "left out Bad-v0: " in parts["Fly-v0"]
    assert "is not finite, so the run has no score" in parts["Fly-v0"]
    assert f"left out {runs / 'lone'}: the only run of its configuration in Fly-v0" in parts["Fly-v0"]
    assert (tmp_path / "out" / "aggregates_swim-Swim-v0.png").is_file()
    assert (tmp_path / "out" / "compare.md").read_text() == text
    latex = compare(capsys, runs, "--latex")
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") > 10


def test_a_configuration_as_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = compare(capsys, two_configurations(tmp_path), "--normalise", "no intervention")
    assert numbers(row(text, "Aggregate scores", "no intervention")[3])[0] == 1.0  # its mean is 1 by definition
    assert "Walk-v0: 0 is 0, 5.4 is 1, the first and the compared value of no intervention" in text
    worse = [make_run(tmp_path / "x" / str(s), [9.0, 1.0 + s], seed=s) for s in (1, 2)]
    assert "cannot be the reference" in refusal(capsys, *worse, "--normalise", "sac")


def test_last_best_and_area(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        make_run(tmp_path / str(seed), [0, 6.0 + seed, 1.0 * seed], steps=[10, 20, 40], seed=seed)
    expected = {"last": "1: 1, 2: 2", "best": "1: 7, 2: 8"}
    expected["auc"] = "1: 3.83, 2: 4.67"  # (3.5 * 10 + 4 * 20) / 30 and (4 * 10 + 5 * 20) / 30
    for at, scores in expected.items():
        text = compare(capsys, tmp_path, "--at", at)
        assert scores in text
        assert ("above what the agent is worth" in text) == (at == "best")
    assert "1: 7, 2: 8" in compare(capsys, tmp_path, "--until", "20")
    assert "did not log charts/x; it has charts/eval_return" in refusal(capsys, tmp_path, "--metric", "charts/x")


def test_output_files_and_latex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = two_configurations(tmp_path / "runs")
    latex = compare(capsys, root, "--latex", "--out", tmp_path / "out")
    assert latex.count(r"\begin{table}") == latex.count(r"\end{table}") == 5
    assert r"5.0 {[}" in latex or r"5 {[}" in latex
    assert "95\\% percentile" in latex
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"compare.md", "compare.tex"} | {
        f"{n}.{k}" for n in ("profiles", "aggregates") for k in ("svg", "png")
    }
    assert (tmp_path / "out" / "compare.tex").read_text() == latex
    assert (tmp_path / "out" / "profiles.png").read_bytes().startswith(b"\x89PNG")


def test_text_needs_no_matplotlib(tmp_path: Path) -> None:
    root = two_configurations(tmp_path / "runs")
    code = "import sys; sys.modules['matplotlib'] = None\nfrom plasticity.cli import main\nsys.exit(main(sys.argv[1:]))"
    plain = subprocess.run([sys.executable, "-c", code, "compare", str(root)], capture_output=True, text=True)
    assert plain.returncode == 0, plain.stderr
    assert "## Aggregate scores" in plain.stdout
    report = subprocess.run([sys.executable, "-c", code, "report", str(root)], capture_output=True, text=True)
    assert report.returncode == 1
    assert "figures need matplotlib, which is not installed: pip install matplotlib" in report.stderr
    assert report.stderr.count("\n") == 1


# -- what is refused or said -------------------------------------------------------------------------------------------


def test_one_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "alone", [0.0, 1.0], interventions={"swd": {"floor": 0.1}})
    text = refusal(capsys, tmp_path)
    assert "has one run in Walk-v0" in text
    assert "nothing can be said about chance from one; train more seeds" in text


def test_one_seed_in_one_of_two_environments_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_configurations(tmp_path)
    two_configurations(tmp_path, "Swim-v0")
    for seed in (1, 2):
        swd = {"swd": {"floor": 0.1}}
        make_run(tmp_path / f"swim_{seed}", [0.0, 1.0], seed=seed, env="Swim-v0", interventions=swd)
    make_run(tmp_path / "lone", [0.0, 1.0], interventions={"swd": {"floor": 0.1}})
    assert "swd has one run in Walk-v0" in refusal(capsys, tmp_path, "--normalise", "0,1")


@pytest.mark.parametrize("alone", [{"env": "Swim-v0"}, {"interventions": {"swd": {"floor": 0.1}}}])
def test_runs_without_a_second_seed_are_left_out_and_named(tmp_path: Path, capsys, alone: dict) -> None:
    two_configurations(tmp_path / "runs")
    without = compare(capsys, tmp_path / "runs")
    make_run(tmp_path / "runs" / "alone", [0.0, 1.0], **alone)
    text = compare(capsys, tmp_path / "runs")
    assert f"left out {tmp_path / 'runs' / 'alone'}: the only run of its configuration" in text
    assert row(text, "Aggregate scores", "no intervention") == row(without, "Aggregate scores", "no intervention")


def test_an_environment_that_one_lacks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_configurations(tmp_path)
    for seed in (1, 2):
        make_run(tmp_path / f"more_{seed}", [0.0, 1.0], seed=seed, env="Swim-v0")
    assert "redo has no run in Swim-v0" in refusal(capsys, tmp_path, "--normalise", "0,1")


def test_unfinished_runs_are_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_configurations(tmp_path)
    late = make_run(tmp_path / "late", [0.0, 99.0], seed=6, status="running", tail='{"step": 30, "time"')
    early = make_run(tmp_path / "early", [50.0], seed=7, status="failed")
    text = compare(capsys, tmp_path)
    assert row(text, "Aggregate scores", "no intervention")[0] == "5"
    assert f"left out {late}: status running, last step 20" in text
    assert f"left out {early}: status failed, last step 10; if its training broke down" in text
    assert f"{late}: left out 1 damaged line of metrics.jsonl" in text
    text = compare(capsys, tmp_path, "--until", "20")
    assert row(text, "Aggregate scores", "no intervention")[0] == "6"
    assert f"left out {early}: it ends at step 10, before 20" in text
    assert "logged its first charts/eval_return at step 10, beyond --until 5" in refusal(
        capsys, tmp_path, "--until", "5"
    )


def test_a_score_that_is_not_finite_is_no_reason_to_forget_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_configurations(tmp_path)
    run = make_run(tmp_path / "diverged", [20.0, None], seed=6)
    text = refusal(capsys, tmp_path)
    assert f"{run}: last charts/eval_return is not finite" in text
    assert "--nonfinite" in text
    assert "6: -1" in compare(capsys, tmp_path, "--nonfinite", "-1")


def test_few_runs_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path / str(seed), [0.0, float(seed)], seed=seed)
    assert "fewer than 5 runs of sac: such intervals are too narrow" in compare(capsys, tmp_path)
    assert "fewer than" not in compare(capsys, two_configurations(tmp_path / "more"))


def test_copies_are_not_independent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_configurations(tmp_path)
    again = make_run(tmp_path / "again", [1.0], seed=1, status="interrupted", steps=[20])
    text = compare(capsys, tmp_path)
    assert row(text, "Aggregate scores", "no intervention")[0] == "5"
    assert f"left out {again}: same settings and seed as {tmp_path / 'Walk-v0_plain_1'}" in text
    assert "no folder" in refusal(capsys, tmp_path / "nowhere")


# -- configurations ----------------------------------------------------------------------------------------------------


def names(root: Path) -> list[str]:
    runs, _ = load_runs([root])
    return [c.name for c in configurations(runs)]


def test_configurations_are_named_by_what_differs(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"a{seed}", [1.0], seed=seed, checkpoint={"every": seed}, quiet=seed == 1)
    assert names(tmp_path) == ["sac"]
    make_run(tmp_path / "b", [1.0], interventions=REDO)
    assert names(tmp_path) == ["no intervention", "redo"]
    make_run(tmp_path / "c", [1.0], interventions={"redo": {"every": 10, "threshold": 0.3}})
    assert names(tmp_path) == ["no intervention", "redo, redo.threshold=0.1", "redo, redo.threshold=0.3"]
    make_run(tmp_path / "d", [1.0], interventions={**REDO, "swd": {"floor": 0.5}})
    assert names(tmp_path)[-1] == "redo + swd, redo.threshold=0.1"


def test_settings_of_the_agent(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0])
    make_run(tmp_path / "b", [1.0], batch_size=64, hidden=[32, 32])
    assert names(tmp_path) == ["batch_size=32, hidden=64 64", "batch_size=64, hidden=32 32"]
    for seed in (1, 2):  # another agent has other settings by nature: its name says it
        make_run(tmp_path / "two" / f"sac{seed}", [1.0], seed=seed)
        make_run(tmp_path / "two" / f"ppo{seed}", [1.0], seed=seed, kind="ppo", batch_size=2048)
    assert names(tmp_path / "two") == ["ppo", "sac"]


def test_what_differs_between_environments_only_is_no_configuration(tmp_path: Path) -> None:
    for env, repeat in (("Walk-v0", 2), ("Swim-v0", 4)):
        make_run(tmp_path / env, [1.0], env=env, action_repeat=repeat)
    assert names(tmp_path) == ["sac"]
    runs, _ = load_runs([tmp_path])
    assert set(configurations(runs)[0].runs) == {"Walk-v0", "Swim-v0"}


def test_a_setting_that_older_runs_did_not_record_splits_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "old", [1.0])
    make_run(tmp_path / "new", [2.0], seed=2, norm="none")
    assert names(tmp_path) == ["sac"]
    assert "not recorded by every run of sac, and taken as the same: norm" in compare(capsys, tmp_path)


# -- series ------------------------------------------------------------------------------------------------------------


def test_columns_keep_the_last_value_of_a_step_and_null_as_nan() -> None:
    rows = [
        {"step": 10, "time": 0.0, "a": 1.0, "b": None},
        {"step": 5, "time": 0.0, "a": 7, "note": "text", "flag": True},
        {"step": 10, "time": 0.0, "a": 2.0},
        {"step": 10, "event": "redo", "a": 9.0},
        {"step": None, "a": 9.0},
    ]
    found = columns(rows)
    assert set(found) == {"a", "b"}
    assert found["a"].steps.tolist() == [5, 10]
    assert found["a"].values.tolist() == [7, 2]
    assert np.isnan(found["b"].values).all()


def test_seeds_measured_at_different_steps_are_interpolated_where_all_have_values() -> None:
    a, b = Series(np.array([0.0, 10, 20]), np.array([0.0, 10, 20])), Series(np.array([5.0, 25]), np.array([0.0, 20]))
    steps, values, interpolated = aligned([a, b])
    assert steps.tolist() == [5, 10, 20]
    assert values.tolist() == [[5, 0], [10, 5], [20, 15]]
    assert interpolated
    steps, _, interpolated = aligned([a, a])
    assert steps.tolist() == [0, 10, 20]
    assert not interpolated
    apart = Series(np.array([30.0]), np.array([1.0]))
    assert len(aligned([a, apart])[0]) == 0
    assert band([a, apart]) == (None, False)
    gap = Series(a.steps, np.array([0.0, np.nan, 20]))
    assert aligned([gap])[0].tolist() == [0, 20]
    long = Series(np.arange(1000.0), np.arange(1000.0) ** 2)
    steps, values, _ = aligned([long, long])
    assert len(steps) == 200
    assert (steps[0], steps[-1]) == (0, 999)
    assert (values == steps[:, None] ** 2).all()


def test_scores_of_a_series() -> None:
    series = Series(np.array([0.0, 10, 30]), np.array([1.0, 5, 2]))
    assert [score(series, at) for at in ("last", "best")] == [2, 5]
    assert score(series, "auc") == pytest.approx((30 + 70) / 30)
    broken = Series(series.steps, np.array([1.0, np.nan, 2]))
    assert score(broken, "last") == score(broken, "best") == 2
    assert np.isnan(score(broken, "auc"))
    assert np.isnan(score(until(series, -1), "last"))
    with pytest.raises(ValueError, match="at must be one of"):
        score(series, "first")


def test_a_band_is_the_bootstrap_of_the_interquartile_mean() -> None:
    runs = [Series(np.array([0.0, 10]), np.array([float(i), 10.0 * i])) for i in range(5)]
    drawn, _ = band(runs)
    assert drawn is not None
    assert drawn.value.tolist() == [2, 20]
    assert drawn.n == 5
    expected = bootstrap(iqm, [np.arange(5.0)], resamples=2000)
    assert Interval(drawn.value[0], drawn.low[0], drawn.high[0]) == expected
    alone, _ = band(runs[:1])
    assert alone is not None
    assert alone.low is None
