"""``plasticity video``: a film of the agent of a run, without a screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .arguments import read_arguments


@dataclass(frozen=True)
class VideoConfig:
    """Film whole episodes of the deterministic policy of a run, as mp4 or GIF; needs no screen."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of one of its checkpoints."""
    out: Path | None = None
    """File to write, .mp4 or .gif; default: video.mp4 in the folder of the run."""
    episodes: int = 1
    """Episodes to film, one after another."""
    max_steps: int = 1000
    """Environment steps after which an episode is cut."""
    fps: float | None = None
    """Pictures per second; None: as the environment says, or 30."""
    env: str | None = None
    """Environment, in place of the one the run was trained in."""
    seed: int = 0
    """Seed of the environment."""
    task: int | None = None
    """Task to play in all episodes, where the environment has tasks; None: those that it plays by itself."""
    device: str = "cpu"
    """Device of the networks."""


def main(arguments: Sequence[str]) -> int:
    """Play, write the file, and print its name and the returns."""
    config = read_arguments(VideoConfig, "video", arguments, imports="torch")
    for option in ("episodes", "max_steps", "fps"):
        if (value := getattr(config, option)) is not None and not value > 0:
            raise ValueError(f"{option} must be positive, got {value}")

    from plasticity.storage.randomness import seed_globally

    from .film import require_film, write_film
    from .return_text import return_text
    from .run import find_run, load_agent, make_run_env

    folder, record = find_run(config.run)
    path = config.out or folder / "video.mp4"
    require_film(path)  # before anything is played
    name = config.env or record["config"]["env"]
    seed_globally(config.seed)
    env = make_run_env(record, name=config.env, seed=config.seed, device=config.device, num_envs=1)
    returns: list[float] = []
    try:
        if config.task is not None and not env.set_task(config.task):
            raise ValueError(f"--task: {name} has no set_task(task), so its tasks cannot be chosen; leave --task out")
        agent = load_agent(config.run, record, env, config.device)
        write_film(path, pictures(agent, env, config, returns), config.fps or env.fps or 30.0)
    finally:
        env.close()
    print(f"{path}: {record['agent']} on {name}, returns " + " ".join(map(return_text, returns)))
    return 0


def pictures(agent: Any, env: Any, config: VideoConfig, returns: list[float]) -> Iterator[Any]:
    """Yield a picture of every step of every episode, and add their returns to ``returns``."""
    from plasticity.agents.aside import evaluating

    with evaluating(agent.networks.values()):
        for _ in range(config.episodes):
            obs, total, steps, over = env.reset(), 0.0, 0, False
            yield env.picture()
            while not over and steps < config.max_steps:
                transition = env.step(agent.act(obs, explore=False))
                obs, total, steps = transition.next_obs, total + float(transition.reward), steps + 1
                over = bool(transition.terminated | transition.truncated)
                yield env.picture()
            returns.append(total)
