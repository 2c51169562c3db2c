"""The settings of ``plasticity train``: those of every run, and all of one run as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plasticity.metrics import DEFAULT_PROBES
from plasticity.writers import DEFAULT_WRITERS

from .contents import SWITCHED
from .run import plain, with_tuples

PROBE_EVERY = 1000
"""Optimizer steps, or environment steps of agents that learn in rounds, between two measurements by default."""
CONTROL = ("seeds", "jobs", "retries", "dry_run")
"""Settings that say how the command works; they are no part of a run."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state of a run is saved, to go on from."""

    every: int = 100_000
    """Environment steps between two checkpoints, and one at the last step; 0: only when the run is stopped."""
    keep: int = 2
    """Checkpoints to keep, besides the best one by evaluation return; with 1, there is none to go back to."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.keep < 1:
            raise ValueError(f"checkpoint.every must be at least 0 and checkpoint.keep at least 1, got {self}")


@dataclass(frozen=True)
class TrainConfig:
    """Environment, length and measurements of a run; the options of the agent come below."""

    env: str
    """Environment: a Gymnasium id, or a name such as dmc/cartpole-swingup, minatar/breakout; plasticity list envs."""
    steps: int = 100_000
    """Environment steps in all, each one decision of the agent; every parallel environment counts."""
    seed: int = 1
    """Root of every random number of the run."""
    num_envs: int = 1
    """Parallel environments."""
    preset: str | None = None
    """Settings of a published experiment by name: zoo, cleanrl, c-chain (docs/presets.md); options that are given go
    before them."""
    action_repeat: int | None = None
    """Simulator steps per environment step; None: 2 for dm_control and 4 for Atari, as is usual, 1 elsewhere."""
    max_episode_steps: int | None = None
    """Simulator steps per episode, in place of the environment's own limit."""
    task_steps: int | None = None
    """Environment steps of each task of a stream; None: the stream's own."""
    num_tasks: int | None = None
    """Tasks of a stream; None: the stream's own. The last one goes on until the run ends."""
    first_task: int = 0
    """Task with which a stream begins; with --num-tasks 1 a fresh agent learns this one alone."""
    task_seed: int | None = None
    """Root of what is drawn for the tasks of a stream; None: that of the run. Two seeds can share their tasks by it."""
    normaliser: Literal["keep", "reset"] = "keep"
    """Statistics of observations and rewards when a task begins: keep them, or start them anew."""
    probes: tuple[str, ...] = DEFAULT_PROBES
    """Probes to run on every network, and sets of them (activity, gradient, ranks, weights, all); see plasticity list
    probes. Give the flag without names for none."""
    probe_every: int | None = None
    """Optimizer steps between two measurements; None: 1000, for PPO those of 1,000 environment steps or of a round."""
    probe_window: int = 1
    """Optimizer steps in a row over which each measurement is taken; as many as probe_every: every step is measured."""
    eval_every: int = 10_000
    """Environment steps between two evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 10
    """Episodes of each evaluation, with deterministic actions."""
    eval_max_steps: int | None = None
    """Environment steps after which an evaluation episode is cut; None: 27,000, or the environment's longer limit."""
    log_every: int = 500
    """Updates over which losses are averaged and after which they are logged."""
    device: str = "cpu"
    """Where networks and replay live: cpu, cuda, ..."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compiled updates, on a CPU 1.5 to 3 times as fast: auto compiles after 2,000 updates, which is when it begins
    to pay, and goes on without where there is no C++ compiler."""
    precision: Literal["float32", "bf16"] = "float32"
    """Large matrix products of compiled updates: bf16 rounds them to 8 bits, which pays on processors that have units
    for it (AVX-512 BF16; others were not measured)."""
    torch_threads: int = 1
    """Threads of PyTorch on the CPU; more than one slows small networks down."""
    out: Path = Path("runs")
    """Folder for run folders."""
    log: tuple[str, ...] = DEFAULT_WRITERS
    """Writers beside the run's own record (metrics.jsonl): tensorboard, csv, ...; the flag without names for none."""
    name: str | None = None
    """Name of the run folder; default: agent, environment, seed and time."""
    tag: tuple[str, ...] = ()
    """Words of yours by which plasticity runs --tag finds the run."""
    quiet: bool = False
    """Show nothing while training."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints, to resume from with plasticity train --resume RUN."""
    seeds: int = 1
    """Train this many seeds, from --seed on, each as a process with a folder of its own; finished ones are skipped."""
    jobs: int = 1
    """With --seeds: processes at once; one per core is best."""
    retries: int = 1
    """With --seeds: times a seed is started again after a crash."""
    dry_run: bool = False
    """Show the settings, how the networks are wired and what each probe will measure, and stop."""

    def __post_init__(self) -> None:
        if self.eval_max_steps is not None and self.eval_max_steps < 1:
            raise ValueError(f"eval_max_steps must be at least 1, got {self.eval_max_steps}")
        every = PROBE_EVERY if self.probe_every is None else self.probe_every
        if not 1 <= self.probe_window <= max(1, every):
            raise ValueError(f"probe_window must be from 1 to probe_every, {every}, got {self.probe_window}")


def chosen(config: Any, kind: str) -> dict[str, Any]:
    """Return what is switched on, by name; ``kind``: interventions or meters."""
    group = getattr(config, kind)
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}


def eval_limit(settings: Mapping[str, Any]) -> int | None:
    """Return the environment steps after which an evaluation episode is cut; None: as the environment says."""
    from plasticity.agents.evaluate import MAX_STEPS_PER_EPISODE

    limit = settings.get("max_episode_steps")  # which an environment need not show
    return settings.get("eval_max_steps") or (max(MAX_STEPS_PER_EPISODE, limit) if limit else None)


def probe_interval(config: Any, agent: Any) -> int:
    """Return the optimizer steps between two measurements.

    An agent that learns in rounds has ``updates_in(steps)``, the updates of the rounds in so many environment steps:
    a thousand of its updates may be few environment steps, or more than a short run has.
    """
    if config.probe_every is not None:
        return config.probe_every
    updates_in = getattr(agent, "updates_in", None)
    return PROBE_EVERY if updates_in is None else max(config.probe_window, updates_in(PROBE_EVERY))


def resolve(config: Any) -> Any:
    """Return ``config`` with ``anneal_steps`` filled in where the agent left it open: all steps.

    On a stream of tasks it is 0: a rate that falls from task to task would pass for a loss of plasticity.
    """
    from plasticity.envs import is_stream

    if getattr(config.agent, "anneal_steps", 0) is not None:
        return config
    steps = 0 if is_stream(config.env) else config.steps
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, anneal_steps=steps))


def as_saved(config: Any, begun: Any, saved: Mapping[str, Any], given: Container[str]) -> Any:
    """Return ``config`` with the agent's settings of a run, but for those ``given`` now, or changed against ``begun``.

    ``begun``: what the arguments say by which the run was begun. What they do not name is the default, which may be
    another one than in the version that began it.
    """
    before, now = vars(begun.agent), vars(config.agent)
    names = [field.name for field in dataclasses.fields(config.agent) if field.name in saved]
    kept = with_tuples({name: saved[name] for name in names if name not in given and before[name] == now[name]})
    return dataclasses.replace(config, agent=dataclasses.replace(config.agent, **kept))


def unresolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved settings of a run without those that :func:`resolve` makes of others."""
    agent = dict(config.get("agent", {}))
    if agent.get("anneal_steps") == config.get("steps"):
        agent.pop("anneal_steps", None)
    return {**config, "agent": agent}


def settings(config: Any) -> dict[str, Any]:
    """Return all settings of a run as plain values; of interventions and meters only those that are on."""
    skip = {*CONTROL, *SWITCHED}
    rest = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in skip}
    nested = {name: dataclasses.asdict(getattr(config, name)) for name in ("checkpoint", "agent")}
    switched = {kind: {n: plain(one.settings()) for n, one in chosen(config, kind).items()} for kind in SWITCHED}
    return {**plain({**rest, **nested}), **switched}
