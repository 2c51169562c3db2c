"""Updates per second on a GPU, ours beside stable-baselines3, and steps of simulators whose tensors live there.

python benchmarks/gpu.py [--device cuda] [--rounds 5] [--updates 200] [--hidden 256 1024] [--num-envs 4096]

Needs a CUDA device, or says so and ends with exit code 1; `--device cpu` runs the same there. First, eager, compiled
and in bfloat16, beside stable-baselines3, all learn from a memory of random transitions of HalfCheetah's sizes, so
that no environment takes part. Then the whole loop of `plasticity train` steps a simulator on the device, with episodes
counted there; how often the host waited for the device is counted, too. Ways take turns. Prints two Markdown tables
and writes `results/gpu.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
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
from tables import ranged
from torch import Tensor

from plasticity.agents import AGENTS
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.envs.on_device import OnDevice

RESULTS = Path(__file__).parent / "results" / "gpu.json"
OBS, ACTIONS = spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32)
STORED, LENGTH = 10_000, 200
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


class Points:
    """A batch of points that forces push, of HalfCheetah's sizes, in episodes of `LENGTH` steps; all on one device."""

    observation_space, action_space = OBS, ACTIONS

    def __init__(self, num_envs: int, device: str) -> None:
        self.num_envs, self.push = num_envs, torch.randn(6, 17, device=device)
        self.state = torch.zeros(num_envs, 17, device=device)
        self.age = torch.arange(num_envs, device=device) % LENGTH
        self.never = torch.zeros(num_envs, dtype=torch.bool, device=device)

    def reset(self, done: Tensor | None) -> Tensor:
        if done is not None:
            self.state, self.age = torch.where(done[:, None], 0.0, self.state), torch.where(done, 0, self.age)
        return self.state

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.state, self.age = 0.9 * self.state + 0.1 * action @ self.push, self.age + 1
        return self.state, -self.state.square().mean(1), self.never, self.age >= LENGTH


def simulated(name: str, num_envs: int, device: str, compile: str) -> Callable[[int], None]:
    """Return what takes so many steps of every environment, updates included."""
    kind, config = AGENTS[name]
    env = OnDevice("points", Points(num_envs, device), device)
    replayed = {"learning_starts": num_envs, "updates_per_step": 1 / num_envs}  # an update for a step of them all
    settings = config(**({"num_steps": 16} if name == "ppo" else replayed))
    agent = kind(OBS, ACTIONS, settings, num_envs=num_envs, device=device, compile=compile)
    ctx, callbacks = context(agent), [Episodes(), Losses()]

    def learn(steps: int) -> None:
        train(env, agent, ctx.step + steps * num_envs, callbacks, ctx)

    return learn


def waited(learn: Callable[[int], None], steps: int, device: str) -> int | None:
    """Return how often the host waited for the device in so many steps; None where nothing tells."""
    if device == "cpu":
        return None
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        learn(steps)
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in heard)


def measure(
    learners: dict[str, Callable[[int], None]], rounds: int, updates: int, device: str, before_it: int = 50
) -> dict[str, list[float]]:
    """Return updates per second of wall-clock time, a list over rounds for each."""
    found: dict[str, list[float]] = {name: [] for name in learners}
    for learn in learners.values():
        learn(before_it)
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
    parser.add_argument("--num-envs", type=int, default=4096, help="of the simulator on the device")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu runs the same comparison on the CPU", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    results = {"updates_per_second": updates(options), "steps_per_second": steps(options)}
    if options.device != "cpu":
        RESULTS.write_text(json.dumps({"machine": describe(), **results}, indent=1) + "\n")
    return 0


def updates(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print updates per second, without an environment."""
    results: dict[str, Any] = {}
    print("| agent, width | | updates per second | against stable-baselines3 |\n|---|---|---|---|")
    for agent in ("sac", "td3"):
        for hidden in options.hidden:
            learners = {"stable-baselines3": theirs(agent, hidden, options.device)}
            learners |= {f"ours, {label}": ours(agent, hidden, options.device, *how) for label, how in WAYS.items()}
            times = measure(learners, options.rounds, options.updates, options.device)
            results[f"{agent} {hidden}"] = times
            for name, rates in times.items():
                ratios = [a / b for a, b in zip(rates, times["stable-baselines3"], strict=True)]
                print(f"| {agent}, {hidden} | {name} | {median(rates):.0f} | {ranged(ratios)} |", flush=True)
    return results


def steps(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print steps per second of a simulator on the device, and how often the host waited for it."""
    results: dict[str, Any] = {}
    heads = ["agent, environments", "", "steps per second", "times eager", "waits in 64 steps"]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for agent in ("ppo", "sac"):
        num = options.num_envs
        learners = {way: simulated(agent, num, options.device, WAYS[way][0]) for way in ("eager", "compiled")}
        rates = measure(learners, options.rounds, 32, options.device, before_it=64)
        waits = {way: waited(learn, 64, options.device) for way, learn in learners.items()}
        results[agent] = {"environments": num, "rates": rates, "waits": waits}
        for way, found in rates.items():
            times = ranged([a / b for a, b in zip(found, rates["eager"], strict=True)])
            print(f"| {agent}, {num} | {way} | {num * median(found):,.0f} | {times} | {waits[way]} |", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
