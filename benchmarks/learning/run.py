"""Train and evaluate the seeds of one row of the learning-quality table, a process each, through the command line.

python benchmarks/learning/run.py ROW [--seeds 1 2 3] [--jobs 2]

A seed that is done with the row's present command is not run again, unless with --force.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from results import RESULTS, add, load, summary
from rows import ROWS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the summary; return 1 if a seed failed."""
    options = parse(arguments)
    row, done = ROWS[options.row], load(options.row, options.results)
    missing = [seed for seed in options.seeds or row.seeds if options.force or seed not in done]
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        out = options.out or Path(scratch)
        waiting = {pool.submit(train, options.row, seed, out): seed for seed in missing}
        for future in as_completed(waiting):
            seed = waiting[future]
            try:
                record = future.result()
            except RuntimeError as error:
                failed += 1
                print(f"{options.row} seed {seed} failed:\n{error}", file=sys.stderr, flush=True)
                continue
            add(options.row, seed, record, options.results)
            mean = sum(record["returns"]) / len(record["returns"])
            print(f"{options.row} seed {seed}: {mean:.1f} in {record['minutes']} minutes", flush=True)
    report(options.row, load(options.row, options.results))
    return int(failed > 0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: those of the row")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--force", action="store_true", help="run seeds that are done again")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write the figures")
    return parser.parse_args(arguments)


def train(name: str, seed: int, out: Path) -> dict[str, Any]:
    """Return the record of one seed; raise RuntimeError with what the process said if it fails."""
    command, started = ROWS[name].command(seed), time.perf_counter()
    folder = f"{name}-seed{seed}"
    result = subprocess.run(
        [sys.executable, "-m", *command, "--out", str(out), "--name", folder, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:] or result.stdout[-2000:])
    run = json.loads((out / folder / "run.json").read_text())
    return {
        "returns": run["eval_returns"],
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "command": " ".join(command),
        "versions": run["versions"],
        "commit": run["git"] and run["git"]["commit"],
    }


def report(name: str, records: dict[int, dict[str, Any]]) -> None:
    """Print median, interquartile mean and interval beside bar and reference."""
    row = ROWS[name]
    if records:
        values = summary(records)
        interval = f" [{values['low']:.4g}, {values['high']:.4g}] (95 % bootstrap)" if "low" in values else ""
        print(f"{name}: median {values['median']:.4g}, IQM {values['iqm']:.4g}{interval}, n = {len(records)}")
        print(f"the bar is {row.bar:g}: {'passed' if values['median'] >= row.bar else 'FAILED'}")
    print(f"reference: {row.reference}, {row.source}")


if __name__ == "__main__":
    sys.exit(main())
