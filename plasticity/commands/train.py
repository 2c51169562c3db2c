"""``plasticity train``: an agent in an environment, with probes and interventions, into a run folder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import tyro

from plasticity.agents import AGENTS
from plasticity.probes import make_probes
from plasticity.storage.record import read_record
from plasticity.writers import require_writers

from .differences import NOTED, SAFE, differences, notes
from .run import require_device
from .seeds import Seeds
from .settings import config_type, require_switched_on, resolve, settings
from .training import Run

RESUME = "--resume"

USAGE = f"""usage: plasticity train <agent> --env ENV [options]
       plasticity train --resume RUN [options that may change: --steps, --eval-every, --log-every, --checkpoint.every]
agents: {", ".join(AGENTS)}
plasticity train <agent> --help lists every option."""


def main(arguments: Sequence[str]) -> int:
    """Train, evaluate, save; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    folder, arguments = _take_resume(list(arguments))
    if folder is not None:
        return resume(folder, arguments)
    agent, *rest = arguments
    _require_agent(agent)
    config = parse(agent, rest)
    if config.seeds > 1 and not config.dry_run:
        return Seeds(agent, config, rest, settings(config)).train()
    torch.set_num_threads(config.torch_threads)
    run = Run(agent, config, rest)
    return run.dry_run() if config.dry_run else run.train(run.new_folder())


def resume(folder: Path, changes: Sequence[str]) -> int:
    """Go on with a run from its latest checkpoint; ValueError lists what was asked for that may not change."""
    record = read_record(folder)
    agent = record["agent"]
    _require_agent(agent)
    if changes and not changes[0].startswith("-"):
        if changes[0] != agent:
            raise ValueError(f"{folder} is a run of {agent}, not of {changes[0]}")
        changes = changes[1:]
    if ":" in record["config"]["env"] and not any(change.split("=")[0] == "--env" for change in changes):
        name = record["config"]["env"]
        raise ValueError(f"the run's environment {name} imports a module; pass --env {name} if you trust it")
    config = parse(agent, [*record.get("arguments", []), *changes], record["config"]["agent"])
    now, saved = settings(config), record["config"]
    if different := differences(saved, now, SAFE | NOTED | {"name"}):
        raise ValueError(f"{folder} cannot go on with other settings: {'; '.join(different)}")
    for line in notes(saved, now):
        print(f"note: {line}")
    torch.set_num_threads(config.torch_threads)
    return Run(agent, config, [*record.get("arguments", []), *changes]).train(folder, resume=True)


def parse(agent: str, arguments: Sequence[str], saved: dict[str, Any] | None = None) -> Any:
    """Return the settings that ``arguments`` say, checked; what depends on others is filled in, or as it was saved."""
    require_switched_on(arguments)
    config: Any = tyro.cli(config_type(agent), prog=f"plasticity train {agent}", args=list(arguments))
    for what in ("steps", "seeds"):
        if getattr(config, what) < 1:
            raise ValueError(f"{what} must be at least 1, got {getattr(config, what)}")
    make_probes(config.probes)  # an unknown name fails here, before anything is written
    require_writers(config.log)
    require_device(config.device)
    return resolve(config, saved)


def _take_resume(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Return the folder that ``--resume`` names, None without it, and the other arguments."""
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{RESUME}="):
            return Path(argument.partition("=")[2]), arguments[:index] + arguments[index + 1 :]
        if argument == RESUME:
            if index + 1 == len(arguments):
                raise ValueError(f"{RESUME} needs the folder of a run")
            return Path(arguments[index + 1]), arguments[:index] + arguments[index + 2 :]
    return None, arguments


def _require_agent(agent: str) -> None:
    if agent not in AGENTS:
        close = difflib.get_close_matches(agent, AGENTS, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"no agent {agent!r}; {hint}there are {', '.join(AGENTS)}")
