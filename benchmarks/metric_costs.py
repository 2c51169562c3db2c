"""The cost of every metric: CPU time of one reading of each probe and meter, SAC and DQN, eager and compiled.

python benchmarks/metric_costs.py [--rounds 3] [--only NAME ...] [--agents sac dqn] [--modes eager compiled]

Updates and batches are those of ``probes.py``. A reading is timed as the difference of an update that is read and one
that is not, in turn; ``once in 1000`` is a thousandth of it, in percent of an update. A step that is read so rarely is
not worth a compiled graph of its own: the probes see an eager pass beside the graph, which is in the figure. ``every
update`` is what gathering at every eager update adds, for probes that are sums of what a pass shows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from machine import describe, results_file
from probes import EVERY, NEVER, TASKS, Percent, Task, Way, cost

from plasticity.agents.train import context
from plasticity.callback import Context, fire, start
from plasticity.measuring import _objective
from plasticity.meters import METERS
from plasticity.metrics import SETS
from plasticity.probes import make_probes

MODES = {"eager": "off", "compiled": "auto"}
LATE = 10_000
"""Updates so far, as of an agent whose updates are compiled."""
EPISODE = 200
BATCHES = 40
PARTS = {"reading": 3, "every": BATCHES}
"""Updates that are timed in a row: readings are long, what gathering adds is not."""
Costs = dict[str, dict[str, Percent]]
"""Row -> figure -> values by round: milliseconds."""


def names_of(only: Sequence[str]) -> list[str]:
    """Return the probes by set, the two sets with a bound, and the meters; or those asked for."""
    known = [*dict.fromkeys(name for names in SETS.values() for name in names), "basic", "all", *METERS]
    return [name for name in known if not only or name in only]


def agent_of(task: Task, compile: str) -> tuple[Any, list[Any], Context]:
    """Return an agent that learns at full speed, batches, and its context with made-up transitions to look at."""
    agent, batches = task.make(compile), [task.batch() for _ in range(BATCHES)]
    agent.updates = LATE
    cost(agent, batches[:2])
    ctx = context(agent)

    def peek(num: int, generator: torch.Generator) -> Any:
        batch = task.batch()
        return type(batch)(**{name: v[:num] for name, v in vars(batch).items() if v is not None})

    ctx.peek = peek
    return agent, batches, ctx


def of_probe(agent: Any, batches: list[Any], ctx: Context, name: str, rounds: int, mode: str) -> dict[str, Percent]:
    """Return the cost of readings, and, of sums and eager updates, that of gathering at every update."""
    lent = {network: _objective(ctx, network) for network in agent.networks}
    ways = {"reading": Way(agent, probes=[name], due=lambda network, step: True, objectives=lent)}
    sums = all(probe.COST == "sums" for probe in make_probes([name]).values())
    if sums and mode == "eager":
        ways["every"] = Way(agent, probes=[name], every=NEVER, window=NEVER)
    for way in ways.values():
        cost(agent, batches[:1])  # the first is looked at anew
        way.take_off()
    return timed(agent, batches, {key: (way.put_on, way.take_off, None) for key, way in ways.items()}, rounds)


def of_meter(agent: Any, batches: list[Any], ctx: Context, name: str, rounds: int) -> dict[str, Percent]:
    """Return the cost of measuring at an update."""
    meter = METERS[name](every=1, strict=True)
    start([meter], ctx)
    for step in range(EPISODE):
        fire([meter], "on_step", ctx, played(batches[0], last=step == EPISODE - 1))

    def learn(batch: Any) -> None:
        fire([meter], "on_update_start", ctx)
        fire([meter], "on_update_end", ctx, agent.learn(batch))

    for batch in batches[:3]:
        learn(batch)
    return timed(agent, batches, {"reading": (lambda: None, lambda: None, learn)}, rounds)


def played(batch: Any, last: bool) -> Any:
    """Return a step of one environment, as a batch of one."""
    row = type(batch)(**{name: v[:1].clone() for name, v in vars(batch).items() if v is not None})
    object.__setattr__(row, "terminated", torch.tensor([last]))
    object.__setattr__(row, "truncated", torch.tensor([False]))
    return row


Change = tuple[Callable[[], None], Callable[[], None], Callable[[Any], None] | None]


def timed(agent: Any, batches: list[Any], changes: dict[str, Change], rounds: int) -> dict[str, Percent]:
    """Return milliseconds that each change adds to an update, and those of an update without, just before and after."""
    found: dict[str, Percent] = {"update": [], **{key: [] for key in changes}}
    for _ in range(rounds):
        for key, (on, off, learn) in changes.items():
            part = batches[: max(8, PARTS[key])]
            before = cost(agent, part)
            on()
            (learn or agent.learn)(batches[0])  # what is put on again is traced anew
            began = time.thread_time()
            for batch in batches[: PARTS[key]]:
                (learn or agent.learn)(batch)
            during = (time.thread_time() - began) / PARTS[key] * 1e6
            off()
            plain = (before + cost(agent, part)) / 2
            found["update"].append(plain / 1e3)
            found[key].append((during - plain) / 1e3)
    return found


def measured(agent_name: str, mode: str, names: Sequence[str], rounds: int) -> Costs:
    """Return the costs of all rows of one agent."""
    found: Costs = {}
    agent, batches, ctx = agent_of(TASKS[agent_name](), MODES[mode])
    for name in names:
        try:
            if name in METERS:
                found[name] = of_meter(agent, batches, ctx, name, rounds)
            else:
                found[name] = of_probe(agent, batches, ctx, name, rounds, mode)
        except ValueError as error:
            print(f"{agent_name}: {name}: {error}", file=sys.stderr)  # two critics, for one
    return found


def main() -> int:
    """Measure, write the figures; ``tables.py`` puts them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="probes, basic, all, or meters; the others stay")
    parser.add_argument("--agents", nargs="+", default=["sac", "dqn"], choices=("sac", "dqn"))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning)  # about the few samples of a rank
    file = results_file("metric_costs")
    saved = json.loads(file.read_text()) if file.exists() else {"costs": {}}
    saved |= {"machine": describe(), "every": EVERY}
    for agent in options.agents:
        for mode in options.modes:
            costs = saved["costs"].setdefault(agent, {}).setdefault(mode, {})
            costs |= measured(agent, mode, names_of(options.only), options.rounds)
            file.write_text(json.dumps(saved, indent=1) + "\n")
            print(f"{agent}, {mode}: {len(costs)} rows", flush=True)
            for name in ("basic", "all"):
                if name in costs:
                    share = 100 * median(costs[name]["reading"]) / (EVERY * median(costs[name]["update"]))
                    print(f"  {name} once in {EVERY}: {share:.2f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
