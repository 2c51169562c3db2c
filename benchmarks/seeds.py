"""Wall-clock time of several seeds at once, relative to one: does `--seeds N --jobs J` use J cores fully?

python benchmarks/seeds.py [--seeds 2] [--jobs 2] [--steps 4000] [--rounds 3]

Runs of the command line, start-up and compiling included, in turn: one seed, as many runs as there are jobs started by
hand at the same time, and all seeds by one command. N seeds on J cores that do not disturb each other take N / J times
as long as one; printed is by how much more they take. What the runs by hand take more is the machine's doing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from statistics import median
from subprocess import DEVNULL

from machine import describe, results_file

TASK = ("sac", "--env", "HalfCheetah-v5", "--learning-starts", "1000", "--compile", "on", "--eval-every", "0")


def seconds(steps: int, *commands: list[str]) -> float:
    """Return how long training commands take that are started at the same time, given their last arguments."""
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "-m", "plasticity", "train", *TASK, "--steps", str(steps), "--out", folder]
        before = time.perf_counter()
        runs = [subprocess.Popen([*train, *command], stdout=DEVNULL, stderr=DEVNULL) for command in commands]
        codes = [run.wait() for run in runs]
        if any(codes):
            raise RuntimeError(f"a run failed: {' '.join(train)} with {commands}")
        return time.perf_counter() - before


def main() -> int:
    """Measure, write the figures, print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seeds, jobs, share = options.seeds, options.jobs, options.seeds / options.jobs
    alone, by_hand, ratios = [], [], []
    for _ in range(options.rounds):
        alone.append(seconds(options.steps, ["--seed", "0"]))
        hand = seconds(options.steps, *(["--seed", str(i), "--name", f"run-{i}"] for i in range(jobs)))
        command = seconds(options.steps, ["--seeds", str(seeds), "--jobs", str(jobs)])
        by_hand.append(hand / alone[-1])
        ratios.append(command / alone[-1] / share)
        print(f"one {alone[-1]:.1f} s, by hand {by_hand[-1]:.3f} x it, seeds {ratios[-1]:.3f} x N/J of it", flush=True)
    figures: dict[str, float] = {"seconds of one seed": median(alone)}
    for name, found in {
        f"{seeds} seeds with {jobs} jobs, times N/J of one seed's time": ratios,
        f"{jobs} runs started by hand, times one seed's time": by_hand,
        "the command, times N/J of the runs by hand": [r / h for r, h in zip(ratios, by_hand, strict=True)],
    }.items():
        figures |= {f"{name}, median": median(found), f"{name}, least": min(found), f"{name}, greatest": max(found)}
    results_file("seeds").write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
