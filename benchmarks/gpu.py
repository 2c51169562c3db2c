"""Updates per second on a GPU: ours eager, compiled and in bfloat16, and stable-baselines3, interleaved.

python benchmarks/gpu.py [--device cuda] [--rounds 5] [--updates 200] [--hidden 256 1024]

Needs a CUDA device, or says so and ends with exit code 1; `--device cpu` runs the same comparison there. Every
implementation learns from a memory of random transitions of HalfCheetah's sizes, so that no environment takes part.
Prints a Markdown table and writes `results/gpu.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from machine import describe

from plasticity.agents import AGENTS

RESULTS = Path(__file__).parent / "results" / "gpu.json"
OBS, ACTIONS = spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32)
STORED = 10_000
WAYS = {"eager": ("off", "float32"), "compiled": ("on", "float32"), "bf16": ("on", "bf16")}


class Still(gymnasium.Env):
    """An environment of the right sizes in which nothing happens: what stable-baselines3 asks for."""

    observation_space, action_space = OBS, ACTIONS

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(17, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.random.randn(17).astype(np.float32), 0.0, False, False, {}


def ours(name: str, hidden: int, device: str, compile: str, precision: str) -> Callable[[int], None]:
    """Return what takes so many updates of our agent."""
    kind, config = AGENTS[name]
    settings = config(hidden=(hidden, hidden), learning_starts=10, buffer_size=STORED)
    agent = kind(OBS, ACTIONS, settings, num_envs=100, device=device, compile=compile, precision=precision)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STORED // 100):
        row = {"obs": torch.randn(100, 17, generator=generator), "next_obs": torch.randn(100, 17, generator=generator)}
        row |= {"action": 2 * torch.rand(100, 6, generator=generator) - 1, "reward": torch.randn(100)}
        over = torch.zeros(100, dtype=torch.bool, device=device)
        agent.buffer.add(SimpleNamespace(**{k: v.to(device) for k, v in row.items()}, terminated=over, truncated=over))

    def learn(count: int) -> None:
        for _ in range(count):
            agent.update()

    return learn


def theirs(name: str, hidden: int, device: str) -> Callable[[int], None]:
    """Return what takes so many updates of stable-baselines3's agent."""
    kind = {"sac": sb3.SAC, "td3": sb3.TD3}[name]
    policy = {"net_arch": [hidden, hidden]}
    model = kind("MlpPolicy", Still(), batch_size=256, learning_starts=500, policy_kwargs=policy, device=device)
    model.learn(1000)
    return lambda count: model.train(count, 256)


def measure(learners: dict[str, Callable[[int], None]], rounds: int, updates: int, device: str) -> dict[str, Any]:
    """Return updates per second of wall-clock time, a list over rounds for each."""
    found: dict[str, list[float]] = {name: [] for name in learners}
    for learn in learners.values():
        learn(50)
    for _ in range(rounds):
        for name, learn in learners.items():
            wait(device)
            before = time.perf_counter()
            learn(updates)
            wait(device)
            found[name].append(updates / (time.perf_counter() - before))
    return found


def wait(device: str) -> None:
    """Let the device finish what was launched."""
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> int:
    """Measure, write the figures, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu runs the same comparison on the CPU", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    print("| agent, width | | updates per second | against stable-baselines3 |\n|---|---|---|---|")
    for agent in ("sac", "td3"):
        for hidden in options.hidden:
            learners = {"stable-baselines3": theirs(agent, hidden, options.device)}
            for label, how in {
                "eager": ("off", "float32"),
                "compiled": ("on", "float32"),
                "bf16": ("on", "bf16"),
            }.items():
                learners[f"ours, {label}"] = ours(agent, hidden, options.device, *how)
            times = measure(learners, options.rounds, options.updates, options.device)
            results[f"{agent} {hidden}"] = times
            base = times["stable-baselines3"]
            for name, rates in times.items():
                ratios = [a / b for a, b in zip(rates, base, strict=True)]
                span = f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
                print(f"| {agent}, {hidden} | {name} | {median(rates):.0f} | {span} |", flush=True)
    if options.device != "cpu":
        RESULTS.write_text(json.dumps({"machine": describe(), "updates_per_second": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
