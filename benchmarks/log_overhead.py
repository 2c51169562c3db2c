"""The cost of logging one measurement of 60 scalars, in CPU time of the training thread.

python benchmarks/log_overhead.py

Three ways, in turns: this package's writer (TensorBoard and ``metrics.jsonl``), the same with what a run adds (layout,
live panel), and ``torch.utils.tensorboard`` with one ``add_scalar`` each, which writes the first of the two files only.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from plasticity.dashboard.live import LiveView
from plasticity.writers import open_writers

ROUNDS, CALLS = 15, 200
VALUES = {f"plasticity/critic_1/metric_{i % 6}/layer_{i // 6}": i / 7 for i in range(60)}


def milliseconds(log: Callable[[int], None], start: int) -> float:
    """Return the CPU time of one call, averaged over ``CALLS``."""
    began = time.thread_time()
    for step in range(start, start + CALLS):
        log(step)
    return (time.thread_time() - began) / CALLS * 1e3


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.tensorboard import SummaryWriter
    with tempfile.TemporaryDirectory() as folder:
        run = open_writers(Path(folder) / "run")
        live = open_writers(Path(folder) / "live", also=[LiveView(1, "benchmark", quiet=True)])
        table = open_writers(Path(folder) / "csv", ["tensorboard", "csv"])
        writer = SummaryWriter(str(Path(folder) / "writer"))

        def peer(step: int) -> None:
            for tag, value in VALUES.items():
                writer.add_scalar(tag, value, step)

        ways: dict[str, Callable[[int], None]] = {
            "open_writers": lambda step: run.log(step, VALUES),
            "with the live view": lambda step: live.log(step, VALUES),
            "with csv": lambda step: table.log(step, VALUES),
            "SummaryWriter.add_scalar": peer,
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(ROUNDS):
            for name, log in ways.items():
                found[name].append(milliseconds(log, round_ * CALLS))
        for close in (run.close, live.close, table.close, writer.close):
            close()
    for name, times in found.items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{name:<26} {middle:.3f} ms [{low:.3f}, {high:.3f}] for {len(VALUES)} scalars, {ROUNDS} rounds")
    ratio = statistics.median(
        p / o for p, o in zip(found["SummaryWriter.add_scalar"], found["open_writers"], strict=True)
    )
    print(f"SummaryWriter / open_writers: {ratio:.1f}")


if __name__ == "__main__":
    main()
