"""Helpers of the evidence scripts: seeds as processes, paired bootstrap intervals, results as JSON."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2, 3, 4)


def options_of(description: str) -> argparse.ArgumentParser:
    """Return the parser of the options that every script has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that the script works; saves nothing")
    return parser


def arguments(description: str) -> argparse.Namespace:
    """Parse the options that every script has."""
    return options_of(description).parse_args()


def run(work: Callable[..., Any], cases: Sequence[Mapping[str, Any]], jobs: int) -> list[Any]:
    """Call ``work(**case)`` for every case, ``jobs`` at once, one torch thread each; return the results in order."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_one_thread, work, dict(case)) for case in cases]
        results = []
        for case, future in zip(cases, futures, strict=True):
            results.append(future.result())
            print(f"done: {case}", flush=True)
        return results


def resumed(
    name: str, work: Callable[..., Any], cases: Sequence[Mapping[str, Any]], jobs: int, quick: bool
) -> list[Any]:
    """Return what :func:`run` does, seed after seed; a case that is done is a line of ``results/NAME.jsonl``.

    So a study that was interrupted goes on where it was. A quick one leaves the file alone.
    """
    if quick:
        return run(work, cases, jobs)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    plain = [json.loads(json.dumps(case)) for case in cases]
    missing = [case for case in plain if not any(row["case"] == case for row in done)]
    for chunk in (missing[i : i + jobs] for i in range(0, len(missing), jobs)):
        results = run(work, chunk, jobs) if jobs > 1 else [_one_thread(work, chunk[0])]
        rows = [{"case": case, "result": result} for case, result in zip(chunk, results, strict=True)]
        done += rows
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return [next(row["result"] for row in done if row["case"] == case) for case in plain]


def compare(
    work: Callable[..., Mapping[str, float]],
    description: str,
    variants: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    keys: Sequence[str],
    settings: Mapping[str, tuple[Any, Any]],
) -> None:
    """Run ``work(seed=, variant=, **settings)`` for every seed and variant; print and save intervals.

    Of every result for each variant, and of ``keys`` for the differences of ``pairs``, seed by seed. ``settings``: name
    -> value of the whole study, value of a quick one. The results bear the name of the script of ``work``.
    """
    options, started, name = arguments(description), time.perf_counter(), Path(inspect.getfile(work)).stem
    chosen = {key: values[options.quick] for key, values in settings.items()}
    cases = [{"seed": seed, "variant": variant, **chosen} for seed in options.seeds for variant in variants]
    found = resumed(name, work, cases, options.jobs, options.quick)
    results = {(c["variant"], c["seed"]): r for c, r in zip(cases, found, strict=True)}
    summary = {
        v: {key: interval([results[v, s][key] for s in options.seeds]) for key in results[v, options.seeds[0]]}
        for v in variants
    }
    paired = {
        f"{a} - {b}: {key}": interval([results[a, s][key] - results[b, s][key] for s in options.seeds])
        for a, b in pairs
        for key in keys
    }
    for text, value in [*((f"{v}: {k}", x) for v, xs in summary.items() for k, x in xs.items()), *paired.items()]:
        print(show(text, value))
    command = f"python benchmarks/evidence/{name}.py"
    save(name, {"command": command, **chosen, "summary": summary, "paired": paired}, started, options.quick)


def _one_thread(work: Callable[..., Any], case: dict[str, Any]) -> Any:
    import torch

    torch.set_num_threads(1)
    return work(**case)


def interval(values: Sequence[float], level: float = 0.95, resamples: int = 10_000) -> dict[str, float]:
    """Return the mean of ``values`` and its percentile bootstrap interval over seeds."""
    x = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).choice(x, (resamples, len(x))).mean(1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(x.mean()), "low": float(low), "high": float(high), "n": len(x)}


def show(name: str, value: Mapping[str, float]) -> str:
    """Return an interval as text."""
    return (
        f"{name}: {value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}] (mean, 95 % bootstrap, n={value['n']})"
    )


def save(name: str, payload: Mapping[str, Any], started: float, quick: bool) -> None:
    """Write the results beside the scripts; a quick run only prints them."""
    text = json.dumps({**payload, "minutes": round((time.perf_counter() - started) / 60, 1)}, indent=1)
    if quick:
        print(text)
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(f"wrote {RESULTS / name}.json")
