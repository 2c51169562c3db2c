"""The effect of bfloat16 products on learning and the plasticity metrics: SAC with both precisions, over seeds.

python benchmarks/precision.py [--env Pendulum-v1] [--steps 10000] [--seeds 1 2 3]

Trains through the command line, a process per seed, every update compiled. Printed are returns and the last values of
the whole networks' metrics.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from machine import describe

RESULTS = Path(__file__).parent / "results" / "precision.json"
PRECISIONS = ("float32", "bf16")
METRICS = ("dormancy", "grama", "effective_rank", "stable_rank")


def train(env: str, steps: int, seed: int, precision: str, out: Path) -> dict[str, float]:
    """Return the mean evaluation return and the last metrics of one run."""
    name = f"{precision}-{seed}"
    command = [
        sys.executable, "-m", "plasticity", "train", "sac", "--env", env, "--steps", str(steps), "--seed", str(seed),
        "--learning-starts", "1000", "--actor-lr", "1e-3", "--compile", "on", "--precision", precision, "--quiet",
        "--eval-every", "0", "--eval-episodes", "20", "--out", str(out), "--name", name,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    last: dict[str, Any] = {}
    for line in (out / name / "metrics.jsonl").read_text().splitlines():
        last |= json.loads(line)
    found = {"return": last["charts/eval_return"]}
    for network in ("actor", "critic_1"):
        found |= {f"{network} {metric}": last[f"plasticity/{network}/{metric}/all"] for metric in METRICS}
    return found


def main() -> int:
    """Train, write the figures, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        results = {
            precision: [train(options.env, options.steps, s, precision, Path(scratch)) for s in options.seeds]
            for precision in PRECISIONS
        }
    print(f"| mean [least, greatest] over {len(options.seeds)} seeds | {' | '.join(PRECISIONS)} |\n|---|---|---|")
    for name in results["float32"][0]:
        columns = ([run[name] for run in results[precision]] for precision in PRECISIONS)
        print(f"| {name} | {' | '.join(f'{mean(c):.3g} [{min(c):.3g}, {max(c):.3g}]' for c in columns)} |")
    record = {"machine": describe(), "env": options.env, "steps": options.steps, "runs": results}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
