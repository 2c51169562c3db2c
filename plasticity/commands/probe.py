"""``plasticity probe``: measure the networks of a saved agent on fresh data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from plasticity.metrics import DEFAULT_PROBES
from plasticity.tags import ALL

from .arguments import read_arguments

BY_A_METHOD = "added by a method, which trains it; the update of an agent alone does not"


@dataclass(frozen=True)
class ProbeConfig:
    """Let a saved agent collect data, and measure its networks on the passes of one update."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of one of its checkpoints."""
    probes: tuple[str, ...] = DEFAULT_PROBES
    """Probes to run; see plasticity list probes."""
    samples: int = 2048
    """Transitions to collect with the exploring policy, and the size of the batch. Ranks need more than the widths."""
    env: str | None = None
    """Environment, in place of the one the run was trained in."""
    seed: int = 0
    """Seed of the environment."""
    device: str = "cpu"
    """Device of the networks."""
    json: bool = False
    """Print JSON in place of tables."""


def main(arguments: Sequence[str]) -> int:
    """Print a table per network: every layer, what could not be measured and why."""
    config = read_arguments(ProbeConfig, "probe", arguments, imports="torch")
    if config.samples < 2:
        raise ValueError(f"samples must be at least 2, got {config.samples}")

    from plasticity.agents.train import context, train
    from plasticity.measuring import Measure
    from plasticity.storage.randomness import seed_globally

    from .run import UPDATE_WITHIN, find_run, load_weights, make_agent, make_run_env, require_update

    folder, record = find_run(config.run)
    seed_globally(config.seed)  # for methods and environments that draw from the global generators, such as dropout
    env = make_run_env(record, name=config.env, seed=config.seed, device=config.device)
    try:
        agent = make_agent(record, env, config.device, _one_batch(record, config.samples))
        own = list(agent.networks)
        load_weights(agent, config.run, record)
        measure = Measure(config.probes, every=1, networks=[n for n in own if n in agent.networks], strict=True)
        start, ctx = agent.updates, context(agent)
        # The update changes this copy of the agent only, which is thrown away.
        train(env, agent, max(UPDATE_WITHIN, 2 * config.samples), [measure], ctx, stop=lambda: agent.updates > start)
        require_update(agent, start, ctx.step)
    finally:
        env.close()
    where = f"{record['agent']} of {folder}, {ctx.step:,} fresh transitions of {config.env or record['config']['env']}"
    added = sorted(agent.networks.keys() - own)
    if config.json:
        readings = {name: reading.flat() for name, reading in measure.last.items()}
        unmeasured = {
            name: [{"layer": gap.layer, "probe": gap.probe, "reason": gap.reason} for gap in reading.unmeasured]
            for name, reading in measure.last.items()
        }
        unmeasured |= {name: [{"layer": ALL, "probe": ALL, "reason": BY_A_METHOD}] for name in added}
        print(json.dumps({"measured": where, "values": readings, "unmeasured": unmeasured}, indent=2))
        return 0
    print(where)
    for name, reading in measure.last.items():
        print(f"\n{name}\n{reading}")
    if added:
        print(f"\nnot measured: {', '.join(added)} ({BY_A_METHOD})")
    return 0


def _one_batch(record: dict[str, Any], samples: int) -> dict[str, Any]:
    """Return the settings under which the first update takes in all fresh transitions at once."""
    known, num_envs = record["config"]["agent"], record["config"]["num_envs"]
    wanted = {
        "batch_size": samples, "learning_starts": samples - 1, "buffer_size": samples + 2 * num_envs,
        "num_steps": -(-samples // num_envs), "num_minibatches": 1,
        "policy_every": 1, "train_every": 1, "updates_per_train": 1,
    }  # fmt: skip
    return {key: value for key, value in wanted.items() if key in known}
