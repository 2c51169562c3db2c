"""CPU time per environment step, everything included, against stable-baselines3 and CleanRL's loops, interleaved.

python benchmarks/speed.py [TASK ...] [--rounds 5] [--bf16]

Every implementation trains in this one process with one thread: they take turns, a window of steps each, for some
rounds, after all have begun to learn and have compiled what they compile. A ratio is taken within each round, so that
a machine whose speed drifts does not matter; printed are their median and range. CPU time of the process is what
counts: another program on the machine disturbs it least. Ours runs the loop of `plasticity train` with the callbacks
that log episodes, losses and speed to TensorBoard and metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from machine import describe, results_file
from peers import cleanrl, games, sb3
from tables import speed

from plasticity.agents import AGENTS
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.train import context, train
from plasticity.envs import make_env
from plasticity.writers import open_writers

Learn = Callable[[int], Any]


@dataclass(frozen=True)
class Task:
    """A case: the agent, its settings, and for how many steps before and while it is timed."""

    agent: str
    env: str
    warm_up: int
    window: int
    settings: dict[str, Any]
    peer: dict[str, Any]
    num_envs: int = 1

    def make(self) -> gymnasium.Env:
        """Return the environment that the peers get."""
        return gymnasium.make(self.env)


START = {"learning_starts": 1000}
GREEDY = {**START, "epsilon": 0.05}
DQN = {
    **START, "hidden": (120, 84), "train_every": 10, "target_every": 50, "buffer_size": 10_000, "loss": "mse",
    "max_grad_norm": float("inf"), "exploration_steps": 0, "epsilon_end": 0.05,
}  # fmt: skip
TASKS = {
    "sac-halfcheetah": Task("sac", "HalfCheetah-v5", 1500, 300, START, START),
    "td3-halfcheetah": Task("td3", "HalfCheetah-v5", 1500, 400, START, START),
    "ppo-halfcheetah": Task("ppo", "HalfCheetah-v5", 4096, 4096, {}, {}),
    "ppo-halfcheetah, 16 environments": Task(
        "ppo", "HalfCheetah-v5", 4096, 4096, {"num_steps": 128}, {"num_envs": 16}, num_envs=16
    ),
    "sac-halfcheetah, 4 updates per step": Task(
        "sac", "HalfCheetah-v5", 1200, 80, {**START, "updates_per_step": 4}, {**START, "updates": 4}
    ),
    "dqn-cartpole": Task("dqn", "CartPole-v1", 4000, 5000, DQN, GREEDY),
    "dqn-breakout": Task("dqn", "FlatBreakout-v0", 4000, 5000, DQN, GREEDY),
}


def ours(task: Task, compile: str, precision: str = "float32") -> Learn:
    """Return our agent in its loop, logging as `plasticity train` does."""
    kind, config = AGENTS[task.agent]
    env = make_env(task.env, num_envs=task.num_envs, seed=1)
    how: dict[str, Any] = {"num_envs": task.num_envs, "compile": compile, "precision": precision}
    agent = kind(env.observation_space, env.action_space, config(**task.settings), **how)
    ctx = context(agent)
    ctx.writer = open_writers(Path(tempfile.mkdtemp()) / "run")
    callbacks = [Episodes(), Losses()]
    return lambda steps: train(env, agent, ctx.step + steps, callbacks, ctx)


def cleanrl_loop(task: Task) -> Learn:
    """Return CleanRL's loop."""
    steps: Iterator[int] = getattr(cleanrl, task.agent)(task.make, **task.peer)

    def learn(count: int) -> None:
        for _ in range(count // task.num_envs):
            next(steps)

    return learn


def implementations(task: Task, bf16: bool) -> dict[str, Learn]:
    """Return all that take turns, by name."""
    found = {
        "CleanRL": cleanrl_loop(task),
        "stable-baselines3": getattr(sb3, task.agent)(task.make, **task.peer),
        "ours, eager": ours(task, "off"),
        "ours": ours(task, "on"),
    }
    return {**found, "ours, bf16": ours(task, "on", "bf16")} if bf16 else found


def measure(task: Task, rounds: int, bf16: bool) -> dict[str, list[float]]:
    """Return microseconds of CPU time per environment step, a list over rounds for each implementation."""
    learners = implementations(task, bf16)
    for learn in learners.values():
        learn(task.warm_up)
    found: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(rounds):
        for name, learn in learners.items():
            before = time.process_time()
            learn(task.window)
            found[name].append((time.process_time() - before) / task.window * 1e6)
    return found


def main() -> int:
    """Measure, write the figures, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=[], help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="also with large products in bfloat16")
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no task {', '.join(unknown)}; there are {', '.join(TASKS)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)  # gymnasium's, about float64 observations
    file = results_file("speed")
    saved = json.loads(file.read_text())["tasks"] if file.exists() else {}
    for name in options.tasks or TASKS:
        saved[name] = measure(TASKS[name], options.rounds, options.bf16)
        print(speed({"tasks": {name: saved[name]}}), flush=True)
        file.write_text(json.dumps({"machine": describe(), "tasks": saved}, indent=1) + "\n")
    return 0


assert games.FlatBreakout  # importing registers it
if __name__ == "__main__":
    sys.exit(main())
