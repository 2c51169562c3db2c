"""The cost of probes: CPU time per update of SAC, DQN and PPO with and without, eager and compiled, interleaved.

python benchmarks/probes.py [--rounds 15] [--agents sac dqn ppo] [--no-growth]

Updates are on batches of random numbers of HalfCheetah's (SAC, PPO) and CartPole's (DQN) shapes. One agent is updated
with and without probes in turn, a window of updates each, for some rounds: two agents would differ by some percent
for where their weights lie in memory alone. Overhead is taken within each round, so that a machine whose speed drifts
does not matter. Printed are medians and quartiles in percent. CPU time of the thread is what counts.

Gathering at every update is timed in the middle of a window that never ends; what the one reading in 1,000 updates adds
is a thousandth of the overhead of reading after every update.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from machine import describe, results_file

from plasticity.agents import DQN, PPO, SAC, DQNConfig, PPOConfig, SACConfig, native
from plasticity.agents.replay import Batch
from plasticity.agents.rollout import Experience
from plasticity.watching import Watcher

EVERY = 1000
NEVER = 10**9
OBS, ACTION = spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32)
BOTH, THREE = ("dormancy", "grama"), ("dormancy", "grama", "rank")
Percent = list[float]


@dataclass(frozen=True)
class Task:
    """An agent, what it learns from, and how many updates a window has."""

    make: Callable[[str], Any]
    batch: Callable[[], Any]
    updates: int


def replayed(size: int, obs: int, action: int | None) -> Batch:
    """Return a random batch of replay; ``action``: dimensions, None for two discrete actions."""
    chosen = torch.randint(2, (size,)) if action is None else 2 * torch.rand(size, action) - 1
    age = torch.ones(size, dtype=torch.int64)
    seen, following = torch.randn(2, size, obs)
    return Batch(seen, chosen, torch.randn(size), following, torch.rand(size) < 0.01, age, age)


def sac(width: int = 256, size: int = 256, updates: int = 60) -> Task:
    """Return SAC with two hidden layers."""
    config = SACConfig(hidden=(width, width), batch_size=size, learning_starts=10, buffer_size=100)
    return Task(lambda c: SAC(OBS, ACTION, config, compile=c), lambda: replayed(size, 17, 6), updates)


def dqn() -> Task:
    """Return CleanRL's DQN on CartPole."""
    config, cart = DQNConfig(hidden=(120, 84), batch_size=128, learning_starts=10, buffer_size=200), 4
    space = spaces.Box(-np.inf, np.inf, (cart,), np.float32)
    return Task(lambda c: DQN(space, spaces.Discrete(2), config, compile=c), lambda: replayed(128, cart, None), 300)


def ppo() -> Task:
    """Return PPO with two hidden layers of 64 and minibatches of 64."""

    def experience() -> Experience:
        return Experience(torch.randn(64, 17), torch.randn(64, 6), *(torch.randn(64) for _ in range(4)))

    return Task(lambda c: PPO(OBS, ACTION, PPOConfig(hidden=(64, 64)), compile=c), experience, 200)


TASKS: dict[str, Callable[[], Task]] = {"sac": sac, "dqn": dqn, "ppo": ppo}


class Way:
    """A way of measuring an agent, which is taken off and put on again."""

    def __init__(self, agent: Any, **settings: Any) -> None:
        self.optimizers = list(agent.optimizers.values())
        # The first step is due: it ends, and the window that is timed begins.
        self.watcher = Watcher(agent.networks, self.optimizers, lambda *reading: None, strict=True, **settings)

    def take_off(self) -> None:
        """Take every hook off."""
        self.attached = [monitor for monitor in self.watcher.monitors.values() if monitor.attached]
        self.watcher.close()

    def put_on(self) -> None:
        """Go on measuring: with the same objects, for loading a state would compile anew."""
        self.watcher._handles = [o.register_step_post_hook(self.watcher._after_step) for o in self.optimizers]
        for monitor in self.attached:
            monitor.attach()


def cost(agent: Any, batches: Sequence[Any]) -> float:
    """Return microseconds of CPU time per update."""
    before = time.thread_time()
    for batch in batches:
        agent.learn(batch)
    return (time.thread_time() - before) / len(batches) * 1e6


def overheads(task: Task, compile: str, settings: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Return the percent that each way of measuring adds, round by round, and the time per update without any."""
    agent, batches = task.make(compile), [task.batch() for _ in range(task.updates)]
    cost(agent, batches[:20])  # compiles
    ways = {}
    for name, setting in settings.items():
        ways[name] = Way(agent, **setting)
        cost(agent, batches[:20])
        ways[name].take_off()
    times: Percent = []
    found: dict[str, Percent] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            part = batches[: max(10, task.updates // 6)] if settings[name].get("every") == 1 else batches
            before = cost(agent, part)
            way.put_on()
            during = cost(agent, part)
            way.take_off()
            after = cost(agent, part)
            times += [before, after]
            found[name].append(100 * (2 * during / (before + after) - 1))
    return {"us": times, "percent": found}


def each_update(probes: Sequence[str]) -> dict[str, Any]:
    """Return the settings of gathering at every update."""
    return {"probes": probes, "every": NEVER, "window": NEVER}


WAYS: dict[str, dict[str, Any]] = {
    "idle": {"probes": THREE, "every": NEVER},
    "dormancy and grama": each_update(BOTH),
    "dormancy": each_update(["dormancy"]),
    "grama": each_update(["grama"]),
    "grama_weight": each_update(["grama_weight"]),
    "grama_post": each_update(["grama_post"]),
    "read: dormancy and grama": {"probes": BOTH, "every": 1},
    "read: rank": {"probes": ["rank"], "every": 1},
    "read: all three": {"probes": THREE, "every": 1},
}


def show(percent: Percent, scale: float = 1.0) -> str:
    """Return the median and the quartiles."""
    low, _, high = quantiles(percent, n=4)
    return f"{median(percent) * scale:.2f} [{low * scale:.2f}, {high * scale:.2f}]"


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table of one task."""
    lines = ["| | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    cells = [f"{median(r['us']):.0f}" for r in results.values()]
    lines.append(f"| update without probes, us | {' | '.join(cells)} |")
    for name in WAYS:
        rows = {name: 1.0} if not name.startswith("read: ") else {f"{name} at every update": 1.0}
        if name.startswith("read: "):
            rows[f"{name} once in {EVERY}"] = 1 / EVERY
        for label, scale in rows.items():
            cells = [show(r["percent"][name], scale) for r in results.values()]
            lines.append(f"| {label}, % | {' | '.join(cells)} |")
    return "\n".join(lines)


def growth(rounds: int) -> dict[str, Any]:
    """Return what dormancy and grama at every update of compiled SAC cost, by width and by batch size."""
    found = {}
    for width, size in ((64, 256), (256, 256), (1024, 256), (256, 64), (256, 1024)):
        task = sac(width, size, 10 if width == 1024 else 50)
        found[f"width {width}, batch {size}"] = overheads(task, "on", {"both": each_update(BOTH)}, rounds)
    return found


def main() -> int:
    """Measure, write the figures, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-growth", action="store_true", help="not by width and batch size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # about the few samples of a rank
    native.available()  # loaded by agents that act; updates take it, too
    file = results_file("probes")
    saved = json.loads(file.read_text()) if file.exists() else {}
    saved["machine"] = describe()
    for name in options.agents:
        modes = {"eager": "off", "compiled": "on"}
        saved[name] = {mode: overheads(TASKS[name](), c, WAYS, options.rounds) for mode, c in modes.items()}
        print(f"\n{name}\n\n{table(saved[name])}", flush=True)
        file.write_text(json.dumps(saved, indent=1) + "\n")
    if not options.no_growth:
        saved["growth"] = growth(options.rounds)
        print("\n| SAC, compiled | update, us | dormancy and grama at every update, % |\n|---|---|---|")
        for name, result in saved["growth"].items():
            print(f"| {name} | {median(result['us']):.0f} | {show(result['percent']['both'])} |")
        file.write_text(json.dumps(saved, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
