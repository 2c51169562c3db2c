"""``plasticity eval``: play episodes with the agent of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .arguments import read_arguments


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
    eval_max_steps: int | None = None
    """Environment steps after which an episode is cut; None: as in training."""
    device: str = "cpu"
    """Device of the networks."""
    task: int | None = None
    """Task to play in all episodes, where the environment has tasks; None: those that it plays by itself."""


def main(arguments: Sequence[str]) -> int:
    """Print the returns, of several their mean and standard deviation."""
    config = read_arguments(EvalConfig, "eval", arguments, imports="torch")
    for option in ("episodes", "eval_max_steps"):
        if (value := getattr(config, option)) is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")

    from plasticity.agents.evaluate import evaluate
    from plasticity.storage.randomness import seed_globally

    from .return_text import return_text
    from .run import find_run, load_agent, make_run_env, steps_of
    from .settings import eval_limit

    _, record = find_run(config.run)
    settings = record["config"]
    name = config.env or settings["env"]
    seed_globally(config.seed)  # for environments that draw from the global generators
    env = make_run_env(record, name=config.env, seed=config.seed, device=config.device, num_envs=config.episodes)
    try:
        if config.task is not None and not env.set_task(config.task):
            raise ValueError(f"--task: {name} has no set_task(task), so its tasks cannot be chosen; leave --task out")
        agent = load_agent(config.run, record, env, config.device)
        returns = evaluate(agent, env, config.episodes, config.eval_max_steps or eval_limit(settings))
    finally:
        env.close()
    task = "" if config.task is None else f", task {config.task}"
    print(f"{record['agent']} on {name}{task}, trained for {steps_of(config.run)} steps, seed {settings['seed']}")
    print("returns: " + " ".join(map(return_text, returns.tolist())))
    if len(returns) > 1:  # one episode has no deviation
        mean, spread = return_text(returns.mean().item()), return_text(returns.std().item())
        print(f"mean {mean}, standard deviation {spread}, {len(returns)} episodes")
    return 0
