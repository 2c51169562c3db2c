"""``plasticity diagnose``: whether the networks of a saved agent can still learn, and what would help."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .arguments import read_arguments
from .contents import matching

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from plasticity.diagnosis import Diagnosis


@dataclass(frozen=True)
class DiagnoseConfig:
    """Say whether the networks of a saved agent can still learn, where that is lost, and what would help."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of the run, or of one of its checkpoints."""
    at: int | None = None
    """Environment steps of the checkpoint to examine; None: the latest."""
    budget: str = "60s"
    """Time for all networks together, such as 60s, 5m or 1h; what is not tried by then is left out, and said so."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to examine; empty for all."""
    steps: int = 40
    """Updates of a fit."""
    teachers: int = 4
    """Random teachers, whose spread gives the intervals; at least 2."""
    remedies: bool = True
    """Try the installed methods where something is lost."""
    env: str | None = None
    """Environment in which data is collected, in place of the run's."""
    seed: int = 0
    """Seed of environment, teachers and fresh networks."""
    device: str = "cpu"
    """Device of the networks."""
    out: Path | None = None
    """Folder for the verdict and what a later call with the same options goes on from; None: diagnosis in the run."""


def main(arguments: Sequence[str]) -> int:
    """Print a verdict per network, and write it beside the trials that it rests on."""
    config = read_arguments(DiagnoseConfig, "diagnose", arguments, imports="torch")
    from plasticity.reports.verdicts import VERDICT

    title, out, verdicts = examined(config)
    text = "\n\n".join([title, *map(str, verdicts)]) + "\n"
    (out / "verdict.txt").write_text(text, encoding="utf-8")
    (out / VERDICT).write_text(json.dumps(verdicts_as_json(out.name, verdicts), indent=1), encoding="utf-8")
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(text, end="")
    return 0


def verdicts_as_json(folder: str, verdicts: Sequence[Diagnosis]) -> dict[str, Any]:
    """Return what a report shows of verdicts: their step, and by network the cause, the findings and the advice."""
    networks = {
        one.examination.patient.name: {
            "cause": one.cause,
            "findings": [finding.sentence for finding in one.findings],
            "advice": one.advice,
        }
        for one in verdicts
    }
    return {"step": int(folder.rpartition("-")[2]), "networks": networks}


def examined(config: DiagnoseConfig) -> tuple[str, Path, list[Diagnosis]]:
    """Return what was examined, the folder of the trials, and the verdict on each network; ValueError for bad options.

    The networks share the budget: each gets an equal part of what the ones before have left.
    """
    began, seconds = perf_counter(), seconds_of(config.budget)
    if config.steps < 2 or config.teachers < 2:
        raise ValueError(f"diagnose needs at least 2 steps and 2 teachers; got {config.steps} and {config.teachers}")

    from plasticity.diagnosis.adaptation import rehearse
    from plasticity.diagnosis.comparison import Size
    from plasticity.diagnosis.examine import examine
    from plasticity.diagnosis.trials import Budget, Trials
    from plasticity.diagnosis.verdict import judge

    from .patients import step_of
    from .rehearsal import copies_of
    from .run import find_run

    folder, record = find_run(config.run)
    state, step = state_at(config.run, folder, config.at)
    agent, inputs, patients = _patients(config, record, state)
    out = (config.out or folder / "diagnosis") / f"step-{step}"
    out.mkdir(parents=True, exist_ok=True)
    verdicts = []
    for number, patient in enumerate(patients):
        share = (seconds - (perf_counter() - began)) / (len(patients) - number)
        trials = Trials(patient, config.steps, Budget(share, _progress()), out / f"{patient.name}.json", config.seed)
        verdicts.append(judge(examine(trials, Size(teachers=config.teachers), remedies=config.remedies)))
        if patient.name == "actor" and trials.budget.left() > 0:
            made = copies_of(agent, inputs[step_of(agent, "actor")])
            verdicts[-1].more.extend(rehearse(patient, made, config.steps, config.teachers).lines())
    return f"{record['agent']} of {folder}, step {step:,}", out, verdicts


def _patients(
    config: DiagnoseConfig, record: Mapping[str, Any], state: Mapping[str, Any]
) -> tuple[Any, Mapping[str, list[Any]], list[Any]]:
    """Return the agent, the inputs of its gradient steps, and the networks to examine.

    ValueError for names of networks that there are not.
    """
    from plasticity.diagnosis.examine import MAX_BATCHES
    from plasticity.storage.randomness import seed_globally
    from plasticity.surgery.origin import Origins

    from .patients import patients_of, record_inputs
    from .run import load_weights, make_agent, make_run_env

    def recorded(replayed: bool) -> tuple[Any, Origins, dict[str, list[Any]]]:
        seed_globally(config.seed)
        env = make_run_env(record, name=config.env, seed=config.seed, device=config.device)
        try:
            agent = make_agent(record, env, config.device, {} if replayed else _small(record))
            origins = Origins.of(agent.networks)  # the laws of this architecture; methods add to it, then it is loaded
            load_weights(agent, config.run, record, state, lambda: origins.add(agent.networks))
            if replayed:
                agent.buffer.load_state_dict(state["buffer"])
            return agent, origins, record_inputs(agent, env, MAX_BATCHES)
        finally:
            env.close()

    remembers = bool(state.get("buffer"))
    agent, origins, inputs = recorded(remembers)
    fresh_inputs = cache(lambda: recorded(False)[2]) if remembers else None
    patients = patients_of(agent, origins, inputs, fresh_inputs)
    chosen = matching(config.networks or ["*"], [patient.name for patient in patients], "network to examine")
    return agent, inputs, [patient for patient in patients if patient.name in chosen]


def _small(record: Mapping[str, Any]) -> dict[str, int]:
    """Return settings under which an agent without its memory soon learns from fresh transitions."""
    settings = record["config"]["agent"]
    samples = 8 * settings.get("batch_size", 32)
    return {"learning_starts": samples, "buffer_size": samples + 1000 * record["config"]["num_envs"]}


def state_at(path: Path, folder: Path, step: int | None) -> tuple[Mapping[str, Any], int]:
    """Return the state of a run or checkpoint and its step: the checkpoint of ``step``, or the latest, or the model.

    A checkpoint goes before the model, because it holds the memory. ValueError, with the steps that there are, where
    there is none of that step.
    """
    from plasticity.storage.checkpoint import load
    from plasticity.storage.folder import Checkpoints
    from plasticity.storage.record import CHECKPOINTS, MODEL
    from plasticity.storage.upgrade import upgraded_state

    if path != folder:
        return upgraded_state(load(path)), _step(path)
    saved = {_step(one): one for kind in (MODEL, CHECKPOINTS) for one in Checkpoints(folder / kind).all()}
    if not saved:
        raise ValueError(f"{folder} has neither a model nor a checkpoint: its training did not get so far")
    if step is not None and step not in saved:
        raise ValueError(f"{folder} has no checkpoint at step {step}; there are {', '.join(map(str, sorted(saved)))}")
    chosen = max(saved) if step is None else step
    return upgraded_state(load(saved[chosen])), chosen


def _step(checkpoint: Path) -> int:
    found = re.search(r"-step-(\d+)$", checkpoint.name)
    return int(found.group(1)) if found else 0


def seconds_of(budget: str) -> float:
    """Return the seconds of a time such as ``60s``, ``5m``, ``1h`` or ``90``; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if found is None:
        raise ValueError(f"--budget is a time such as 60s, 5m or 1h; got {budget!r}")
    return float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)]


def _progress() -> Callable[[str], None]:
    """Return what shows, in a terminal, the number of trials and the present one, on one line."""
    count = 0

    def tell(what: str) -> None:
        nonlocal count
        count += 1
        if sys.stderr.isatty():
            print(f"\r\x1b[K{count} trials; {what}"[:100], end="", file=sys.stderr, flush=True)

    return tell
