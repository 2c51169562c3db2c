"""``plasticity train``: an agent in an environment, with probes and interventions, into a run folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .contents import contents, nearest
from .imports import require_imports
from .waiting import say_importing

RESUME = "--resume"


def main(arguments: Sequence[str]) -> int:
    """Train, evaluate, save; return the exit code. The first line comes before anything is imported that takes long."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    folder, arguments = _take_resume(list(arguments))
    if folder is None and arguments[0].startswith("-") and not {"-h", "--help"} & set(arguments):
        if "--quiet" not in arguments:
            say_importing("train")
        from .inherited import agent_of, take_sources  # the agent stands in the file or the run

        arguments = [agent_of(take_sources(arguments)[0]) or "", *arguments]
    agent, *rest = arguments or [""]
    if folder is None:
        _require_agent(agent)
    if {"-h", "--help"} & set(arguments):
        show_help(None if folder else agent, rest)
        return 0
    if "--quiet" not in arguments:
        say_importing(f"train {agent if folder is None else folder}")
    return start_run(agent, rest) if folder is None else resume(folder, arguments)


def usage() -> str:
    """Return the usage line."""
    return f"""usage: plasticity train <agent> --env ENV [options]
       plasticity train --config FILE.toml, or --like RUN [options that differ]
       plasticity train --resume RUN [options that may change: --steps, --eval-every, --log-every, --checkpoint.every]
agents: {", ".join(contents("agents"))}
plasticity train <agent> --help lists all options; plasticity help NAME describes an agent, a method or a probe."""


def show_help(agent: str | None, arguments: Sequence[str]) -> None:
    """Print the options of an agent, or those of the methods that are switched on."""
    if agent is None:
        print(usage())
        return
    from . import help

    named = [name for a in arguments if a.startswith("--") for name in [a[2:]] if help.is_switch(name)]
    if named:
        help.main(named)
        print(f"\nplasticity train {agent} --help lists the options of the run and of the agent.")
        return
    print(f"usage: plasticity train {agent} --env ENV | --config FILE | --like RUN [options]", flush=True)
    from plasticity.agents import find_agent

    from .settings import TrainConfig

    print("\n".join(help.train_options(agent, TrainConfig, find_agent(agent)[1])))


def start_run(agent: str, arguments: Sequence[str]) -> int:
    """Train a new run, or several seeds of it, or only show what would be trained."""
    import torch

    from .inherited import with_sources
    from .parsing import parse
    from .presets import notes_of_presets
    from .seeds import Seeds
    from .settings import settings
    from .task_notes import notes_of_tasks
    from .training import TrainingRun

    arguments = with_sources(agent, arguments)  # once: the file or the run may be another one later
    config = parse(agent, arguments)
    for line in [] if config.quiet else [*notes_of_presets(agent, arguments), *notes_of_tasks(config)]:
        print(line, file=sys.stderr)
    if config.seeds > 1 and not config.dry_run:
        return Seeds(agent, config, arguments, settings(config)).train()
    torch.set_num_threads(config.torch_threads)
    run = TrainingRun(agent, config, arguments)
    return run.dry_run() if config.dry_run else run.train(run.new_folder())


def resume(folder: Path, changes: Sequence[str]) -> int:
    """Go on with a run from its latest checkpoint; ValueError lists what was asked for that may not change."""
    import torch

    from plasticity.storage.record import read_record

    from .differences import NOTED, SAFE, differences, notes
    from .parsing import parse
    from .settings import CONTROL, as_saved, settings
    from .training import TrainingRun

    given = {change.partition("=")[0].removeprefix("--").replace("-", "_") for change in changes}
    if meant := [f"--{name.replace('_', '-')}" for name in CONTROL if name in given]:
        raise ValueError(
            f"{', '.join(meant)}: --resume goes on with one run; several seeds go on by the command that began them"
        )
    record = read_record(folder)
    require_imports(record, folder)
    agent = record["agent"]
    _require_agent(agent)
    if changes and not changes[0].startswith("-"):
        if changes[0] != agent:
            raise ValueError(f"{folder} is a run of {agent}, not of {changes[0]}")
        changes = changes[1:]
    if ":" in record["config"]["env"] and not any(change.split("=")[0] == "--env" for change in changes):
        name = record["config"]["env"]
        raise ValueError(f"the run's environment {name} imports a module; pass --env {name} if you trust it")
    saved, words = record["config"], record.get("arguments", [])
    asked = parse(agent, [*words, *changes])
    begun = parse(agent, [*words, f"--steps={asked.steps}"])  # on which a rate that falls depends
    config = as_saved(asked, begun, saved["agent"], given | {name.removeprefix("no_") for name in given})
    now = settings(config)
    if different := differences(saved, now, SAFE | NOTED | {"name"}):
        raise ValueError(f"{folder} cannot go on with other settings: {'; '.join(different)}")
    for line in notes(saved, now):
        print(f"note: {line}")
    torch.set_num_threads(config.torch_threads)
    return TrainingRun(agent, config, [*words, *changes]).train(folder, resume=True)


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
    agents = contents("agents")
    if not agent:
        said = 'an agent is needed: plasticity train AGENT ..., or agent = "NAME" in the file of --config'
        raise ValueError(f"{said}; there are {', '.join(agents)}")
    if agent not in agents:
        raise ValueError(f"no agent {agent!r}; {nearest(agent, agents)}there are {', '.join(agents)}")
