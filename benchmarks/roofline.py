"""How close an update of SAC is to the arithmetic: its multiplications, the machine's rate at them, and its time.

python benchmarks/roofline.py
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from gymnasium import spaces
from machine import describe, multiply_rate, results_file

from plasticity.agents.products import onednn_is_faster
from plasticity.agents.sac import SAC, SACConfig

OBS, ACTIONS, WIDTH, BATCH, ROUNDS = 17, 6, 256, 256, 11


def layers(*sizes: int) -> list[int]:
    """Return FLOP of one product of each layer of an MLP, for the whole batch."""
    return [2 * BATCH * a * b for a, b in pairwise(sizes)]


def flop() -> int:
    """Return the floating-point operations of all matrix products of one update, as stable-baselines3 does them too."""
    actor, critic = layers(OBS, WIDTH, WIDTH, 2 * ACTIONS), layers(OBS + ACTIONS, WIDTH, WIDTH, 1)
    forward_target = sum(actor) + 2 * sum(critic)
    critics = 2 * (sum(critic) + sum(critic) + sum(critic[1:]))  # forward, weights, inputs but the first
    through_critics = 2 * (sum(critic) + sum(critic[1:]) + layers(ACTIONS, WIDTH)[0])  # forward, down to the action
    own = sum(actor) + sum(actor) + sum(actor[1:])
    return forward_target + critics + through_critics + own


def update_time(compile: str, precision: str) -> float:
    """Return milliseconds of CPU time per update, replay included: the median of rounds."""
    spaces_ = spaces.Box(-np.inf, np.inf, (OBS,), np.float32), spaces.Box(-1, 1, (ACTIONS,), np.float32)
    settings = SACConfig(buffer_size=20_000, learning_starts=10)
    agent = SAC(*spaces_, settings, num_envs=1000, compile=compile, precision=precision)
    never = torch.zeros(1000, dtype=torch.bool)
    for _ in range(20):
        parts = {"obs": torch.randn(1000, OBS), "action": torch.rand(1000, ACTIONS), "reward": torch.randn(1000)}
        agent.buffer.add(SimpleNamespace(**parts, next_obs=torch.randn(1000, OBS), terminated=never, truncated=never))
    found = []
    for _ in range(ROUNDS):
        agent.update()
        before = time.process_time()
        for _ in range(30):
            agent.update()
        found.append((time.process_time() - before) / 30 * 1e3)
    return sorted(found)[ROUNDS // 2]


def main() -> int:
    """Measure, write the figures, print them."""
    torch.set_num_threads(1)
    rates = {name: multiply_rate(256, name) for name in ("mkl", "onednn", "bf16")}
    best = max(rates["mkl"], rates["onednn"]) if onednn_is_faster() else rates["mkl"]
    total = flop() / 1e6
    results = {"MFLOP of an update": total, **{f"GFLOP/s, 256 x 256, {k}": v for k, v in rates.items()}}
    for label, how, rate in (
        ("eager", ("off", "float32"), rates["mkl"]),
        ("compiled", ("on", "float32"), best),
        ("compiled, bf16", ("on", "bf16"), rates["bf16"]),
    ):
        taken, floor = update_time(*how), total / rate
        results |= {f"ms, {label}": taken, f"ms of products alone, {label}": floor, f"share, {label}": floor / taken}
    for name, value in results.items():
        print(f"| {name} | {value:.3g} |")
    results_file("roofline").write_text(json.dumps({"machine": describe(), **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
