"""Replay at a million transitions: memory, insertion, sampling uniformly and by age (SWD), images stored once.

python benchmarks/replay.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from machine import describe, results_file

from plasticity.agents.replay import ReplayBuffer
from plasticity.callback import Context
from plasticity.interventions import SampleWeightDecay

SIZE, ROUNDS = 1_000_000, 9


def micros(call: Callable[[], Any], count: int = 300) -> float:
    """Return microseconds of CPU time per call, the median of rounds."""
    found = []
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in range(count):
            call()
        found.append((time.process_time() - before) / count * 1e6)
    return sorted(found)[ROUNDS // 2]


def filled() -> ReplayBuffer:
    """Return a full memory of HalfCheetah's sizes, written in rows of 1000 and read as if by one environment."""
    buffer = ReplayBuffer(SIZE, (17,), (6,))
    for values in buffer.storage.values():
        values.copy_(torch.rand(values.shape) > 0.9 if values.dtype == torch.bool else torch.randn(values.shape))
    buffer.clock = SIZE + 123
    return buffer


def main() -> int:
    """Measure, write the figures, print the table."""
    torch.set_num_threads(1)
    buffer = filled()
    zeros = torch.zeros(1, dtype=torch.bool)
    row = SimpleNamespace(
        obs=torch.randn(1, 17), action=torch.randn(1, 6), reward=torch.randn(1), next_obs=torch.randn(1, 17),
        terminated=zeros, truncated=zeros,
    )  # fmt: skip
    results: dict[str, float] = {
        "bytes of a million transitions": float(sum(v.numel() * v.element_size() for v in buffer.storage.values())),
        "insert, us": micros(lambda: buffer.add(row)),
        "sample 256 uniformly, us": micros(lambda: buffer.sample(256)),
    }
    for preset in ("paper", "official"):
        method = SampleWeightDecay(preset=preset)
        ctx = Context(buffer=buffer)
        method.on_train_start(ctx)
        results[f"sample 256 with SWD ({preset}), us"] = micros(lambda: buffer.sample(256))
        method.on_train_end(ctx)
    images = ReplayBuffer(1000, (4, 84, 84), (), obs_dtype=torch.uint8, action_dtype=torch.int64)
    results["bytes of a transition of 84 x 84 x 4"] = images.storage["obs"].numel() / 1000
    for name, value in results.items():
        print(f"| {name} | {value:,.1f} |")
    results_file("replay").write_text(json.dumps({"machine": describe(), **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
