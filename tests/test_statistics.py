"""Aggregates and intervals against hand-computed numbers, scipy, exact enumeration and, slowly, rliable."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from plasticity.reports.statistics import (
    bootstrap,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    ranks,
    spearman,
)

TASKS = [np.array([0.0, 1.0, 2.0, 9.0]), np.array([4.0, 6.0])]  # means 3 and 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)  # one each: what a test draws must not depend on the tests before it


def test_mean_median_and_gap_by_hand() -> None:
    assert mean(TASKS) == 4.0
    assert median(TASKS) == 4.0
    assert median([*TASKS, np.array([50.0])]) == 5.0  # of the means 3, 5, 50
    assert median(TASKS[:1]) == 1.5  # one task: of its runs
    assert optimality_gap([np.array([0.5, 2.0]), np.array([1.0, -1.0])]) == (0.5 + 0 + 0 + 2) / 4
    assert optimality_gap([np.array([1.0, 7.0])], target=3.0) == 1.0


def test_iqm_by_hand() -> None:
    assert iqm(TASKS) == 3.25  # 0 1 2 4 6 9 loses one at each end: (1 + 2 + 4 + 6) / 4
    assert iqm([np.array([1.0, 2.0, 6.0])]) == 3.0  # three runs: nothing is cut


@pytest.mark.parametrize("n", range(1, 25))
def test_iqm_is_scipys_trimmed_mean(n: int, rng: np.random.Generator) -> None:
    runs = rng.normal(size=n)
    assert iqm([runs]) == pytest.approx(scipy.stats.trim_mean(runs, 0.25))
    assert iqm([runs, runs[: n // 2]]) == pytest.approx(
        scipy.stats.trim_mean(np.concatenate([runs, runs[: n // 2]]), 0.25)
    )


def test_probability_of_improvement_by_hand_and_as_mann_whitney(rng: np.random.Generator) -> None:
    x, y = [np.array([1.0, 3.0])], [np.array([1.0, 2.0, 4.0])]
    assert probability_of_improvement(x, y) == pytest.approx(2.5 / 6)  # wins: 3>1, 3>2; one tie
    assert probability_of_improvement(y, x) == pytest.approx(3.5 / 6)
    a, b = ([rng.integers(0, 5, n).astype(float) for n in sizes] for sizes in ((6, 4), (3, 7)))
    expected = [scipy.stats.mannwhitneyu(p, q).statistic / (len(p) * len(q)) for p, q in zip(a, b, strict=True)]
    assert probability_of_improvement(a, b) == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="same tasks, got 2 and 1"):
        probability_of_improvement(a, b[:1])


def test_performance_profile_by_hand() -> None:
    # At 1: 2 of 4 and 2 of 2 are above; at 5: 1 of 4 and 1 of 2. A task counts the same with few runs as with many.
    assert performance_profile(TASKS, [-1, 1, 5, 9]).tolist() == [1.0, 0.75, 0.375, 0.0]


def test_ranks_and_spearman_against_scipy(rng: np.random.Generator) -> None:
    x, y = rng.integers(0, 6, 15).astype(float), rng.normal(size=15)
    assert ranks(x).tolist() == scipy.stats.rankdata(x).tolist()
    assert spearman([x], [y]) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman([np.ones(5)], [y[:5]]))


def test_spearman_within_groups_sees_no_difference_between_them() -> None:
    x, y = [np.array([1.0, 2, 3]), np.array([101.0, 102, 103])], [np.array([3.0, 2, 1]), np.array([93.0, 92, 91])]
    assert spearman(x, y) == pytest.approx(-1.0)
    assert spearman([np.concatenate(x)], [np.concatenate(y)]) > 0.5  # pooled, the groups make an association


STATISTICS = {
    "iqm": iqm,
    "mean": mean,
    "median": median,
    "gap": optimality_gap,
    "profile": lambda scores: performance_profile(scores, [0.0, 0.5]),
    "improvement": lambda scores: probability_of_improvement(scores, [scores[1], scores[0]]),
    "spearman": lambda scores: spearman(scores, [scores[0] ** 2, scores[1] ** 3]),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_resamples_at_once_are_what_a_loop_gives(name: str, rng: np.random.Generator) -> None:
    statistic = STATISTICS[name]
    batch = [rng.normal(size=(7, 5)), rng.normal(size=(7, 4))]
    loop = [statistic([task[i] for task in batch]) for i in range(7)]
    np.testing.assert_allclose(statistic(batch), np.stack(loop, axis=-1))


@pytest.mark.parametrize("statistic", [iqm, mean, median])
def test_bootstrap_against_all_resamples_there_are(statistic) -> None:
    runs = np.array([1.0, 2.0, 4.0, 8.0])
    every = [statistic([runs[list(chosen)]]) for chosen in itertools.product(range(4), repeat=4)]
    low, high = np.quantile(every, [0.1, 0.9])
    found = bootstrap(statistic, [runs], level=0.8, resamples=40_000)
    assert found.value == statistic([runs])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.26)  # one step of that distribution


def test_bootstrap_of_two_samples_against_a_naive_loop(rng: np.random.Generator) -> None:
    x, y = [rng.normal(0.3, 1, 6), rng.normal(1, 2, 4)], [rng.normal(size=5), rng.normal(size=7)]
    draws: list[float] = []
    for _ in range(4000):
        redrawn = [[rng.choice(task, len(task)) for task in sample] for sample in (x, y)]
        pairs = [[(a > b) + (a == b) / 2 for a in p for b in q] for p, q in zip(*redrawn, strict=True)]
        draws.append(np.mean([np.mean(task) for task in pairs]))
    found = bootstrap(probability_of_improvement, x, y)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.015)


def test_runs_are_redrawn_within_their_task() -> None:
    found = bootstrap(mean, [np.full(3, 0.0), np.full(5, 10.0)])
    assert found == (5.0, 5.0, 5.0)


def test_paired_samples_keep_their_runs_together(rng: np.random.Generator) -> None:
    x = [rng.normal(size=8)]
    assert bootstrap(spearman, x, x, paired=True, resamples=500) == pytest.approx((1, 1, 1))
    assert bootstrap(spearman, x, x, resamples=500).low < 0


def test_a_curve_is_redrawn_whole(rng: np.random.Generator) -> None:
    runs = rng.normal(size=6)
    found = bootstrap(iqm, [np.stack([runs, 10 * runs, 10 * runs + 1])])
    np.testing.assert_allclose(found.low[1:], [10 * found.low[0], 10 * found.low[0] + 1])
    np.testing.assert_allclose(found.high[1], 10 * found.high[0])


def test_the_seed_and_nothing_else_decides(rng: np.random.Generator) -> None:
    runs, state = [rng.normal(size=50)], np.random.get_state()[1].tolist()
    assert bootstrap(iqm, runs, seed=1) == bootstrap(iqm, runs, seed=1)
    assert bootstrap(iqm, runs, seed=1, resamples=300) != bootstrap(iqm, runs, seed=2, resamples=300)
    assert np.random.get_state()[1].tolist() == state


def test_an_interval_that_is_often_undefined_is_none() -> None:
    # In a quarter of all resamples x is constant.
    x, y = [np.array([0.0, 1.0, 0.0, 0.0])], [np.arange(4.0)]
    found = bootstrap(spearman, x, y, paired=True)
    assert found.value == pytest.approx(scipy.stats.spearmanr(x[0], y[0]).statistic)
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    constant = bootstrap(spearman, [np.ones(4)], y, paired=True)
    assert np.isnan(constant).all()


@pytest.mark.parametrize(
    ("sample", "options", "message"),
    [
        ([np.array([1.0])], {}, "at least two runs in every task, found 1"),
        ([np.array([1.0, 2.0]), np.array([1.0])], {}, "at least two runs"),
        ([np.array([1.0, np.nan])], {}, "finite scores"),
        ([np.array([1.0, 2.0])], {"level": 95}, "level in"),
        ([np.array([1.0, 2.0])], {"resamples": 0}, "resamples of at least 1"),
    ],
)
def test_what_cannot_be_resampled_is_refused(sample, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(iqm, sample, **options)


# -- slow --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "n", "low", "high"),
    [
        (iqm, 3, 0.70, 0.81), (iqm, 5, 0.86, 0.94), (iqm, 10, 0.91, 0.96), (iqm, 20, 0.91, 0.97),
        (mean, 3, 0.70, 0.81), (mean, 5, 0.80, 0.86), (mean, 10, 0.87, 0.93), (mean, 20, 0.90, 0.95),
    ],
)  # fmt: skip
def test_coverage_of_an_interval_is_what_the_page_says(statistic, n: int, low: float, high: float) -> None:
    """Normal scores, whose true mean and IQM are 0; the numbers of docs/reports.md."""
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(2000):
        found = bootstrap(statistic, [rng.normal(size=n)], resamples=1000, seed=i)
        hits += found.low <= 0 <= found.high
    print(f"{statistic.__name__}, n = {n}: covered {hits / 2000:.3f}")
    assert low < hits / 2000 < high


RLIABLE = """
import json, sys
from functools import partial
import numpy as np
from rliable import library, metrics

x, y = (np.array(scores) for scores in json.load(sys.stdin))
points = lambda s: np.array([metrics.aggregate_iqm(s), metrics.aggregate_median(s), metrics.aggregate_mean(s),
                             metrics.aggregate_optimality_gap(s)])
rng = np.random.RandomState
values, intervals = library.get_interval_estimates({"x": x}, points, reps=20000, random_state=rng(0))
pair, pair_interval = library.get_interval_estimates(
    {"x,y": (x, y)}, metrics.probability_of_improvement, reps=2000, random_state=rng(0))
profile, _ = library.create_performance_profile({"x": x}, np.linspace(0, 1, 5), reps=10)
print(json.dumps([values["x"].tolist(), intervals["x"].tolist(), [float(pair["x,y"])],
                  np.asarray(pair_interval["x,y"]).ravel().tolist(), np.asarray(profile["x"]).tolist()]))
"""


@pytest.fixture(scope="module")
def rliable_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with rliable, which needs an environment of its own: it does not import with pandas 3."""
    folder = tmp_path_factory.mktemp("rliable")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "rliable==1.2.0", "pandas<3"]
    result = subprocess.run(install, capture_output=True, text=True, timeout=900)
    if result.returncode:
        pytest.skip(f"rliable cannot be installed here: {result.stderr.strip()[-300:]}")
    works = subprocess.run([str(python), "-c", "import rliable.library"], capture_output=True, text=True)
    if works.returncode:
        pytest.skip(f"rliable does not import: {works.stderr.strip()[-300:]}")
    return python


@pytest.mark.slow
def test_agreement_with_rliable(rliable_python: Path) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.beta(2, 3, (10, 4)), rng.beta(3, 3, (8, 4))  # (runs, tasks), as rliable has them
    result = subprocess.run(
        [str(rliable_python), "-W", "ignore", "-c", RLIABLE],
        input=json.dumps([x.tolist(), y.tolist()]),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    values, intervals, pair, pair_interval, profile = json.loads(result.stdout)
    ours = [bootstrap(statistic, list(x.T), resamples=20_000) for statistic in (iqm, median, mean, optimality_gap)]
    np.testing.assert_allclose([found.value for found in ours], values, rtol=1e-12)
    theirs = np.array(intervals)
    np.testing.assert_allclose([found.low for found in ours], theirs[0], atol=0.004)
    np.testing.assert_allclose([found.high for found in ours], theirs[1], atol=0.004)
    improvement = bootstrap(probability_of_improvement, list(x.T), list(y.T), resamples=20_000)
    assert improvement.value == pytest.approx(pair[0], rel=1e-12)
    assert (improvement.low, improvement.high) == pytest.approx(tuple(pair_interval), abs=0.01)
    np.testing.assert_allclose(performance_profile(list(x.T), np.linspace(0, 1, 5)), profile)
