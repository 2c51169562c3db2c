"""Wall-clock time of several seeds at once, relative to one: does `--seeds N --jobs J` use J cores fully?

python benchmarks/seeds.py [--seeds 2] [--jobs 2] [--steps 4000] [--rounds 3]

Runs of the command line, start-up and compiling included, in turn: one seed, then all of them. N seeds on J cores
that do not disturb each other take N / J times as long as one; printed is by how much more they take.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from statistics import median

from machine import describe, results_file

TASK = ("sac", "--env", "HalfCheetah-v5", "--learning-starts", "1000", "--compile", "on", "--eval-every", "0")


def seconds(steps: int, seeds: int, jobs: int) -> float:
    """Return how long a run of so many seeds takes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "plasticity", "train", *TASK, "--steps", str(steps), "--out", folder]
        several = ["--seeds", str(seeds), "--jobs", str(jobs)] if seeds > 1 else ["--seed", "0"]
        before = time.perf_counter()
        subprocess.run([*command, *several], check=True, capture_output=True)
        return time.perf_counter() - before


def main() -> int:
    """Measure, write the figures, print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ratios, alone = [], []
    for _ in range(options.rounds):
        one = seconds(options.steps, 1, 1)
        ratios.append(seconds(options.steps, options.seeds, options.jobs) / one / (options.seeds / options.jobs))
        alone.append(one)
        print(f"one seed {one:.1f} s; {options.seeds} on {options.jobs}: {ratios[-1]:.3f} x N/J of it", flush=True)
    name = f"{options.seeds} seeds with {options.jobs} jobs, times N/J of one seed's time"
    figures = {
        "seconds of one seed": median(alone),
        f"{name}, median": median(ratios),
        f"{name}, least": min(ratios),
        f"{name}, greatest": max(ratios),
    }
    results_file("seeds").write_text(json.dumps({"machine": describe(), **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
