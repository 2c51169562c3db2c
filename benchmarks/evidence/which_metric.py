"""Metrics that predict later learning: at the end of every task of a stream, against the return of the next.

python benchmarks/evidence/which_metric.py --out FOLDER [--jobs 2] [--seeds 0 1] [--quick]

Agents x streams x methods x seeds, 60 runs by default, each a short stream of tasks. A run that is in FOLDER is not run
again, so that the command can be stopped and goes on. Of each task but the last: every metric, the mean over networks
of its last reading, and the mean return of the next task. Both are ranked among the runs of one agent, stream and task,
so that no task is compared with another. ``rho`` is the correlation of these ranks; ``beside dormancy`` the partial
one, with the ranks of dormancy held fixed: about 0 where a metric adds nothing to it. Intervals are of a bootstrap over
runs.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import run, save

STREAMS = {
    "permute/CartPole-v1": ("dqn", "ppo"),
    "permute/Acrobot-v1": ("dqn",),
    "permute/Pendulum-v1": ("sac", "td3"),
}
LENGTHS = {"permute/CartPole-v1": 6000, "permute/Acrobot-v1": 6000, "permute/Pendulum-v1": 2000}
"""Stream -> steps of a task."""
METHODS: dict[str, tuple[str, ...]] = {
    "none": (),
    "redo": ("--redo", "--redo.every", "500"),
    "regrama": ("--regrama", "--regrama.every", "500"),
    "shrink_perturb": ("--shrink-perturb",),
    "high lr": (),
    "layer norm": ("--norm", "layer"),
}
HIGH_LR = {
    **dict.fromkeys(("dqn", "ppo"), ("--lr", "0.003")),
    **dict.fromkeys(("sac", "td3"), ("--actor-lr", "0.003", "--critic-lr", "0.003")),
}
OFF_POLICY = ("--hidden", "64", "64", "--batch-size", "64", "--learning-starts", "200")
AGENTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sac", "td3"), OFF_POLICY),
    "dqn": (*OFF_POLICY, "--target-every", "50"),
    "ppo": ("--hidden", "64", "64", "--num-steps", "256"),
}
COMMON = ("--churn", "--policy", "--feature-dot", "--fit-probe", "--overestimation")
METERS: dict[str, tuple[str, ...]] = {
    "dqn": (*COMMON, "--replay", "--target-distance"),
    "ppo": COMMON,
    **dict.fromkeys(("sac", "td3"), (*COMMON, "--replay", "--target-distance", "--critic-disagreement")),
}
DORMANCY = "dormancy"
TASKS = 4
LEAST = 8
"""Pairs of a metric and an outcome without which there is no correlation."""
Row = dict[str, Any]


def name_of(agent: str, stream: str, method: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return "-".join((agent, stream.replace("/", "_"), method.replace(" ", "_"), str(seed)))


def train(agent: str, stream: str, method: str, seed: int, length: int, out: str) -> list[Row]:
    """Return a row per task but the last of one run, which is trained unless its rows are there."""
    from plasticity.cli import main

    folder = Path(out) / name_of(agent, stream, method, seed)
    done = folder.with_suffix(".rows.json")
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a stopped run left
        words = ["train", agent, "--env", stream, "--seed", str(seed), "--steps", str(TASKS * length), "--task-steps"]
        words += [str(length), "--probe-every", str(60 if agent == "ppo" else max(1, length // 6)), "--eval-every", "0"]
        words += ["--checkpoint.every", "0", "--probes", "all", "sharpness", "--quiet", "--log", "--out", out]
        words += ["--name", folder.name, *AGENTS[agent], *METERS[agent], *METHODS[method]]
        code = main([*words, *(HIGH_LR[agent] if method == "high lr" else ())])
        if code:
            raise RuntimeError(f"{folder.name} failed with {code}")
        group = {"group": f"{agent} {stream}", "run": folder.name}
        done.write_text(json.dumps([{**group, **row} for row in rows_of(folder, length)]))
    return json.loads(done.read_text())


def rows_of(folder: Path, length: int) -> list[Row]:
    """Return task number, its last metrics, and the mean return of the next task, of every task but the last."""
    from plasticity.storage.rows import read_metrics
    from plasticity.tags import ALL, EPISODIC_RETURN, parse_tag

    returns: defaultdict[int, list[float]] = defaultdict(list)
    metrics: defaultdict[int, dict[tuple[str, str], float]] = defaultdict(dict)
    for row in read_metrics(folder):
        task = max(0, int(row["step"]) - 1) // length
        for tag, value in row.items():
            if tag == EPISODIC_RETURN:
                returns[task].append(float(value))
            elif (parts := parse_tag(tag)) and parts.layer == ALL and isinstance(value, float) and math.isfinite(value):
                metrics[task][parts.network, parts.metric] = value
    found = []
    for task in range(TASKS - 1):
        if returns[task + 1]:
            by_metric: defaultdict[str, list[float]] = defaultdict(list)
            for (_, metric), value in metrics[task].items():
                by_metric[metric].append(value)
            means = {metric: float(np.mean(values)) for metric, values in by_metric.items()}
            found.append({"task": task, "next": float(np.mean(returns[task + 1])), "metrics": means})
    return found


def ranked(rows: Sequence[Row], metric: str) -> dict[str, list[tuple[float, float, float]]]:
    """Return run -> (rank of the metric, of the outcome, of dormancy), in [-1, 1] within agent, stream and task."""
    from scipy.stats import rankdata

    groups: defaultdict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if metric in row["metrics"] and DORMANCY in row["metrics"]:
            groups[row["group"], row["task"]].append(row)
    found: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for group in groups.values():
        if len(group) < 3:
            continue
        columns = [
            [r["metrics"][metric] for r in group],
            [r["next"] for r in group],
            [r["metrics"][DORMANCY] for r in group],
        ]
        ranks = [2 * (rankdata(c) - 1) / (len(group) - 1) - 1 for c in columns]
        for row, *three in zip(group, *ranks, strict=True):
            found[row["run"]].append((float(three[0]), float(three[1]), float(three[2])))
    return found


def correlations(triples: np.ndarray) -> tuple[float, float]:
    """Return the correlation of the first two columns, and the one with the third held fixed; NaN without variation."""
    x, y, z = triples.T
    if min(x.std(), y.std()) == 0:
        return math.nan, math.nan
    xy = float(np.corrcoef(x, y)[0, 1])
    if z.std() == 0:
        return xy, xy
    xz, yz = float(np.corrcoef(x, z)[0, 1]), float(np.corrcoef(y, z)[0, 1])
    left = (1 - xz**2) * (1 - yz**2)
    return xy, (xy - xz * yz) / math.sqrt(left) if left > 1e-9 else math.nan


def judge(rows: Sequence[Row], metric: str, resamples: int = 1000) -> dict[str, Any] | None:
    """Return both correlations of a metric with intervals over runs; None where there is too little of it."""
    by_run = [np.array(triples) for triples in ranked(rows, metric).values()]
    if sum(map(len, by_run)) < LEAST:
        return None
    whole, random = correlations(np.concatenate(by_run)), np.random.default_rng(0)
    draws = random.integers(len(by_run), size=(resamples, len(by_run)))
    drawn = [correlations(np.concatenate([by_run[i] for i in draw])) for draw in draws]
    found: dict[str, Any] = {"runs": len(by_run), "pairs": sum(map(len, by_run))}
    for name, value, values in zip(("rho", "beside"), whole, np.array(drawn).T, strict=True):
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (math.nan, math.nan)
        found[name] = {"value": value, "low": float(low), "high": float(high)}
    return found


def table(judged: Mapping[str, dict[str, Any]]) -> str:
    """Return the Markdown table, the strongest correlation first."""

    def text(of: Mapping[str, float]) -> str:
        return f"{of['value']:+.2f} [{of['low']:+.2f}, {of['high']:+.2f}]"

    def strength(metric: str) -> float:
        value = judged[metric]["rho"]["value"]
        return -abs(value) if math.isfinite(value) else 1.0

    lines = ["| metric | rho with the next task's return | beside dormancy | runs |", "|---|---|---|---|"]
    for metric in sorted(judged, key=strength):
        found = judged[metric]
        beside = "" if metric == DORMANCY else text(found["beside"])
        lines.append(f"| `{metric}` | {text(found['rho'])} | {beside} | {found['runs']} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print and save the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="runs/which_metric", help="folder of the runs, to go on from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that the script works; saves nothing")
    options = parser.parse_args()
    started = time.perf_counter()
    pairs = [(agent, stream) for stream, agents in STREAMS.items() for agent in agents]
    cases = [
        {"agent": agent, "stream": stream, "method": method, "seed": seed, "out": options.out}
        | {"length": 300 if options.quick else LENGTHS[stream]}
        for seed in options.seeds[: 1 if options.quick else None]
        for agent, stream in (pairs[:1] if options.quick else pairs)
        for method in METHODS
    ]
    rows = [row for found in run(train, cases, options.jobs) for row in found]
    metrics = sorted({metric for row in rows for metric in row["metrics"]})
    judged = {metric: found for metric in metrics if (found := judge(rows, metric)) is not None}
    print(table(judged))
    save("which_metric", {"lengths": LENGTHS, "runs": len(cases), "metrics": judged}, started, options.quick)


if __name__ == "__main__":
    main()
