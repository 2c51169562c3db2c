"""CPU time per step beside sbx (JAX) and LeanRL, which need environments of their own: processes that take turns.

python benchmarks/beside.py [sac td3 ppo dqn] [--rounds 3] [--sbx PYTHON] [--leanrl PYTHON FOLDER]

Each implementation trains in a process of its own with one thread, a window of steps each, for some rounds, after it
has begun to learn and has compiled what it compiles (`peers/turns.py`). A ratio is taken within each round; printed are
their median and range. The CPU time of all threads of a process counts. LeanRL runs as it is,
`--compile` on the CPU but for PPO.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import describe, results_file
from tables import beside

TURNS = Path(__file__).parent / "peers" / "turns.py"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}  # fmt: skip


def measure(task: str, pythons: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Return microseconds per step, a list over rounds for each implementation that runs."""
    running: dict[str, Any] = {}
    for name, (python, *folder) in pythons.items():
        command = [python, str(TURNS), name, task, *folder]
        running[name] = subprocess.Popen(
            command, env={**os.environ, **ONE_THREAD}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    for name, process in list(running.items()):
        if (said := process.stdout.readline().strip()) != "ready":
            print(f"{name} does not run on {task}: {said or 'see above'}", flush=True)
            del running[name]
    found: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, process in running.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            if not (said := process.stdout.readline()):
                raise RuntimeError(f"{name} ended in the middle of {task}: its own error stands above, if it said one")
            found[name].append(float(said))
    for process in running.values():
        process.kill()
    return found


def main() -> int:
    """Measure, write the figures, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=[], help="sac, td3, ppo, dqn; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sbx", metavar="PYTHON", help="a Python that has sbx")
    parser.add_argument("--leanrl", nargs=2, metavar=("PYTHON", "FOLDER"), help="one that runs LeanRL, and its scripts")
    options = parser.parse_args()
    pythons = {"ours": [sys.executable]}
    pythons |= {"sbx": [options.sbx]} if options.sbx else {}
    pythons |= {"leanrl": options.leanrl} if options.leanrl else {}
    file = results_file("beside")
    saved = json.loads(file.read_text())["tasks"] if file.exists() else {}
    for task in options.tasks or ["sac", "td3", "ppo", "dqn"]:
        saved[task] = measure(task, pythons, options.rounds)
        print(beside({"tasks": {task: saved[task]}}), flush=True)
        file.write_text(json.dumps({"machine": describe(), "tasks": saved}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
