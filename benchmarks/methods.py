"""The time of an update with each method, over that without: what ``plasticity list methods`` prints as its cost.

python benchmarks/methods.py [METHOD ...] [--updates 60] [--rounds 5]

Eager updates of SAC on 17 observations and 6 actions, two hidden layers of 256, batches of 256, on one core. Agents
with and without the method take turns, a window of updates each; a ratio is that of the CPU times of one round, and
printed is the median. Settings are the defaults, so that what is done seldom counts by what it does in every update.
PPO stands in where a method needs its rollouts, DQN on small images where it shifts these. Writes
``plasticity/interventions/costs.py``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from plasticity.agents import AGENTS
from plasticity.agents.train import context
from plasticity.callback import fire, start
from plasticity.interventions import INTERVENTIONS
from plasticity.interventions.costs import COSTS

PATH = Path(__file__).parents[1] / "plasticity" / "interventions" / "costs.py"
HEAD = '"""Time of an update with a method over that without: ``python benchmarks/methods.py`` writes this file."""'
DOC = '"""Method -> ratio of CPU times, of eager updates at the defaults, on one core of the machine at hand."""'
STAND_INS = {"pfo": "ppo", "random_shift": "dqn", "horizon": "dqn"}
"""Method -> the agent that it is measured on, where that is not SAC."""
OPTIONS: dict[str, dict[str, Any]] = {"horizon": {"n_step": 10}}
"""Method -> settings that the agent needs for it, with the method and without."""


def steps(obs: spaces.Box, action: spaces.Space, seed: int) -> Iterator[SimpleNamespace]:
    """Yield random transitions of one environment."""
    rng = np.random.default_rng(seed)

    def draw() -> torch.Tensor:
        if obs.dtype == np.uint8:
            return torch.from_numpy(rng.integers(0, 256, (1, *obs.shape), dtype=np.uint8))
        return torch.from_numpy(rng.normal(size=(1, *obs.shape)).astype(np.float32))

    never, seen = torch.zeros(1, dtype=torch.bool), draw()
    while True:
        after = draw()
        chosen = torch.from_numpy(np.asarray(action.sample())[None])
        yield SimpleNamespace(
            obs=seen, action=chosen, reward=torch.randn(1), next_obs=after, terminated=never, truncated=never
        )
        seen = after


def learner(kind: str, name: str | None, options: dict[str, Any]) -> Callable[[int], float]:
    """Return a function that takes so many updates, with a method or without, and returns their CPU time in seconds."""
    image = kind == "dqn"
    obs = spaces.Box(0, 255, (4, 10, 10), np.uint8) if image else spaces.Box(-10, 10, (17,))
    action = spaces.Discrete(6) if image else spaces.Box(-1, 1, (6,))
    make, config = AGENTS[kind]
    settings = {**options, **({"network": "minatar_cnn"} if image else {})}
    if kind != "ppo":
        settings |= {"buffer_size": 3000, "learning_starts": 0}
    agent = make(obs, action, config(**settings), compile="off")
    stream, methods = steps(obs, action, 0), [] if name is None else [INTERVENTIONS[name]()]
    ctx = context(agent)
    start(methods, ctx)

    def gather() -> None:
        step = next(stream)
        if kind == "ppo":
            step.action = agent.act(step.obs, explore=True)
        ctx.step += 1
        fire(methods, "on_step", ctx, step)
        agent.observe(step)

    for _ in range(0 if kind == "ppo" else 2000):
        gather()

    def run(updates: int) -> float:
        began = time.process_time()
        for _ in range(updates):
            while kind == "ppo" and not agent.ready():
                gather()
            fire(methods, "on_update_start", ctx)
            fire(methods, "on_update_end", ctx, agent.update())
        return time.process_time() - began

    return run


def ratio(name: str, updates: int, rounds: int) -> float:
    """Return the median over rounds of the time with the method over that without."""
    kind = STAND_INS.get(name, "sac")
    plain, treated = (learner(kind, one, OPTIONS.get(name, {})) for one in (None, name))
    for run in (plain, treated):
        run(20)
    return statistics.median(treated(updates) / plain(updates) for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", default=[])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = dict(COSTS)
    for name in options.methods or INTERVENTIONS:
        found[name] = round(ratio(name, options.updates, options.rounds), 2)
        print(f"{name:<24} {found[name]:.2f}", flush=True)
        ordered = {name: found[name] for name in INTERVENTIONS if name in found}
        rows = "".join(f'    "{name}": {value},\n' for name, value in ordered.items())
        PATH.write_text(f"{HEAD}\n\nCOSTS: dict[str, float] = {{\n{rows}}}\n{DOC}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
