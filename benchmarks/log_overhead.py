"""What logging one measurement of 60 scalars costs, in CPU time of the training thread.

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

from plasticity.dashboard.live import Live
from plasticity.dashboard.logger import RunLogger
from plasticity.dashboard.sink import Sink

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
        logger = RunLogger(Path(folder) / "logger")
        sink = Sink(Path(folder) / "sink", Live(1, "benchmark", quiet=True))
        writer = SummaryWriter(str(Path(folder) / "writer"))

        def peer(step: int) -> None:
            for tag, value in VALUES.items():
                writer.add_scalar(tag, value, step)

        ways: dict[str, Callable[[int], None]] = {
            "RunLogger": lambda step: logger.log(step, VALUES),
            "Sink, as in a run": lambda step: sink.log(step, VALUES),
            "SummaryWriter.add_scalar": peer,
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(ROUNDS):
            for name, log in ways.items():
                found[name].append(milliseconds(log, round_ * CALLS))
        for close in (logger.close, sink.close, writer.close):
            close()
    for name, times in found.items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{name:<26} {middle:.3f} ms [{low:.3f}, {high:.3f}] for {len(VALUES)} scalars, {ROUNDS} rounds")
    ratio = statistics.median(p / o for p, o in zip(found["SummaryWriter.add_scalar"], found["RunLogger"], strict=True))
    print(f"SummaryWriter / RunLogger: {ratio:.1f}")


if __name__ == "__main__":
    main()
