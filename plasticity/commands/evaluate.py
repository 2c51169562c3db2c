"""``plasticity eval``: play episodes with the agent of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class EvalConfig:
    """Play whole episodes with the deterministic policy of a finished run and print their returns."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of one of its checkpoints."""
    episodes: int = 10
    """Episodes to play."""
    env: str | None = None
    """Environment, in place of the one the run was trained in."""
    seed: int = 0
    """Seed of the evaluation environments."""
    device: str = "cpu"
    """Device of the networks."""


def main(arguments: Sequence[str]) -> int:
    """Print the returns, their mean and standard deviation."""
    config = tyro.cli(EvalConfig, prog="plasticity eval", args=list(arguments))
    if config.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {config.episodes}")

    from plasticity.agents.evaluate import evaluate

    from .run import find_run, load_agent, make_run_env

    _, record = find_run(config.run)
    settings = record["config"]
    name = config.env or settings["env"]
    env = make_run_env(record, name=config.env, seed=config.seed, device=config.device, num_envs=config.episodes)
    try:
        agent = load_agent(config.run, record, env, config.device)
        returns = evaluate(agent, env, config.episodes)
    finally:
        env.close()
    spread = returns.std().item() if len(returns) > 1 else 0.0
    print(f"{record['agent']} on {name}, trained for {settings['steps']} steps, seed {settings['seed']}")
    print("returns: " + " ".join(f"{r:.1f}" for r in returns.tolist()))
    print(f"mean {returns.mean().item():.1f}, standard deviation {spread:.1f}, {len(returns)} episodes")
    return 0
