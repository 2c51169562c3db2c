"""A run folder: what is in it, and how it is written so that a crash leaves nothing half done."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from plasticity.callback import Callback, listeners, noting, rebuild
from plasticity.storage.checkpoint import load
from plasticity.storage.folder import Checkpoints, step_of_name
from plasticity.storage.record import CHECKPOINTS, MODEL, RECORD, read_record
from plasticity.storage.upgrade import upgraded_state

from .contents import nearest
from .imports import IMPORTED, import_flags, require_imports

UPDATE_WITHIN = 100_000
"""Environment steps within which a dry run or a probe must see an update."""
PACKAGES = ("plasticity-toolkit", "torch", "numpy", "gymnasium", "mujoco", "dm-control", "tensorboard")


def describe(agent: str, config: Mapping[str, Any], arguments: list[str]) -> dict[str, Any]:
    """Return what ``run.json`` says of a run: settings, the command that makes it, versions, hardware, git state."""
    return {
        "agent": agent,
        "status": "running",
        "config": config,
        "command": ["plasticity", *import_flags(), "train", agent, *arguments],
        "arguments": arguments,
        "imports": list(IMPORTED),
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := _version(p))}},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "git": _git(),
    }


def plain(value: Any) -> Any:
    """Return nested settings as what JSON knows: paths become strings, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def find_run(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the record of the run that ``path`` is, or is a checkpoint of.

    Raises ValueError if it is none, or if it needs a module that was not imported.
    """
    for folder in (path, *path.parents[:2]):
        if (folder / RECORD).is_file():
            record = read_record(folder)
            require_imports(record, folder)
            return folder, record
    if not path.exists():
        beside = [folder.name for folder in path.parent.glob("*/") if (folder / RECORD).is_file()]
        raise ValueError(f"there is no folder {path}; {nearest(path.name, beside)}".removesuffix("; ").rstrip())
    return path, read_record(path)


def save_model(folder: Path, agent: Any, step: int, callbacks: Mapping[str, Callback]) -> None:
    """Write the agent without its memory, and the states of those callbacks that changed its structure."""
    structural = {name: c.state_dict() for name, c in callbacks.items() if listeners([c], "restructure")}
    Checkpoints(folder / MODEL, keep=1).save(step, {"agent": agent.state_dict(), "callbacks": structural})


def load_state(path: Path) -> Mapping[str, Any]:
    """Return the state of a run (its model, or else its latest checkpoint) or of one checkpoint.

    It has ``agent``, and by name under ``callbacks`` the states of those that changed the agent's structure, at least.
    Raises ValueError if there is none that can be read.
    """
    if (path / RECORD).is_file():
        for kind in (MODEL, CHECKPOINTS):
            if (found := Checkpoints(path / kind)).latest() is not None:
                return upgraded_state(found.load_latest()[1])
        raise ValueError(f"{path} has neither a model nor a checkpoint: its training did not get so far")
    return upgraded_state(load(path))


def steps_of(path: Path) -> int:
    """Return the environment steps after which the state that :func:`load_state` returns was saved; 0 for none."""
    if not (path / RECORD).is_file():
        return step_of_name(path)
    saved = (Checkpoints(path / kind).latest() for kind in (MODEL, CHECKPOINTS))
    return next((step_of_name(folder) for folder in saved if folder is not None), 0)


def require_device(device: str) -> None:
    """Raise ValueError for a device that this PyTorch, or this machine, does not have."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        reason = str(error).splitlines()[0][:100]
        raise ValueError(
            f"--device {device} cannot be used; PyTorch {torch.__version__} sees {there} here, pass one of these "
            f"({reason})"
        ) from error


def make_run_env(
    record: Mapping[str, Any], *, name: str | None, seed: int, device: str, num_envs: int | None = None
) -> Any:
    """Make the environment of a run, or ``name`` in its place; ValueError for one that would import a module."""
    from plasticity.envs import TaskPlan, make_env

    require_device(device)
    settings = record["config"]
    if name is None and ":" in settings["env"]:
        raise ValueError(f"the run's environment {settings['env']} imports a module; pass --env if you trust it")
    own = settings.get("task_seed")
    task_seed = settings["seed"] if own is None else own
    plan = TaskPlan(task_seed)
    if name is None:
        counts = settings.get("task_steps"), settings.get("num_tasks"), settings.get("first_task", 0)
        plan = TaskPlan(task_seed, *counts)
    return make_env(
        name or settings["env"],
        num_envs=settings["num_envs"] if num_envs is None else num_envs,
        seed=seed,
        device=device,
        action_repeat=settings["action_repeat"],
        max_episode_steps=settings["max_episode_steps"],
        tasks=plan,
    )


def load_agent(path: Path, record: Mapping[str, Any], env: Any, device: str) -> Any:
    """Return the agent of a run or checkpoint, for the spaces of ``env``, with an empty memory of the least size.

    Raises the ValueErrors of :func:`make_agent` and :func:`load_weights`.
    """
    # Only the networks matter: a memory of full size would be reserved for nothing.
    small = {"buffer_size": 2 * env.num_envs, "learning_starts": 0, "batch_size": 1}
    # Nor need what is learned from be divided evenly among critics and minibatches: nothing is learned.
    small |= {"num_steps": 2, "num_minibatches": 1, "critic_split": False}
    agent = make_agent(record, env, device, small)
    load_weights(agent, path, record)
    return agent


def make_agent(record: Mapping[str, Any], env: Any, device: str, overrides: Mapping[str, Any]) -> Any:
    """Return a new agent with the settings of a run, for the spaces of ``env``; ValueError for one that is unknown.

    ``overrides``: settings in place of the saved ones, where the agent has them.
    """
    from plasticity.agents import AGENTS, find_agent

    name = record["agent"]
    if name not in AGENTS:
        raise ValueError(f"the run has the agent {name!r}; this version knows {', '.join(AGENTS)}")
    kind, config_kind = find_agent(name)
    settings = with_tuples(record["config"].get("agent", {}))
    known = {field.name for field in dataclasses.fields(config_kind)}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(
            f"the run has settings that this version's {name} does not know: {', '.join(unknown)}; it was written by "
            f"version {record.get('version', 'unknown')}: install that one, or take them out of {RECORD}"
        )
    settings |= {key: value for key, value in overrides.items() if key in settings}
    spaces = env.observation_space, env.action_space
    with noting(f"raised while making the agent {name}"):
        try:
            config = config_kind(**settings)
        except TypeError as error:
            raise ValueError(f"{RECORD} has a setting of the wrong type: {error}") from error
        return kind(*spaces, config, num_envs=env.num_envs, device=device, name=name)


def load_weights(
    agent: Any,
    path: Path,
    record: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    restructured: Callable[[], object] = lambda: None,
) -> None:
    """Restructure a new agent by the methods of its run, and load its saved state; ValueError where these do not fit.

    ``path``: of the run or of a checkpoint; ``state``: what is saved there, where it was read already.
    ``restructured()`` is called in between.
    """
    from plasticity.agents.train import context

    state = load_state(path) if state is None else state
    states = state.get("callbacks", {})
    pairs = [(method, states.get(name)) for name, method in saved_methods(record).items()]

    def load() -> None:
        restructured()
        agent.load_state_dict(state["agent"])

    try:
        with noting(f"raised while loading {path}"):
            rebuild(pairs, context(agent), load)
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not fit the agent that run.json describes: {error}") from error


def require_update(agent: Any, start: int, steps: int) -> None:
    """Raise RuntimeError if the agent has made no update since ``start``, in so many environment steps."""
    if agent.updates <= start:
        raise RuntimeError(
            f"{agent.name} made no update in {steps:,} environment steps, so there is no pass to measure; look at "
            f"ready() of the agent, and at settings that delay its first update"
        )


def saved_methods(record: Mapping[str, Any]) -> dict[str, Callback]:
    """Return the methods that a run was trained with, by name and with its settings; ValueError for unknown ones."""
    from plasticity.interventions import INTERVENTIONS

    methods: dict[str, Callback] = {}
    for name, settings in record["config"].get("interventions", {}).items():
        if name not in INTERVENTIONS:
            raise ValueError(
                f"the run was trained with the method {name!r}, which is not known here; import the module that "
                f"registers it in INTERVENTIONS (there are {', '.join(INTERVENTIONS)})"
            )
        try:
            methods[name] = INTERVENTIONS[name](**with_tuples(settings))
        except TypeError as error:
            raise ValueError(f"this version's {name} does not take the settings of the run: {error}") from error
    return methods


def with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the tuples that JSON made lists of."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit of the working directory and whether it has changes; None outside a repository."""
    command = ["git", "--no-optional-locks", "-c", "safe.directory=*"]  # a lock would be in the user's way
    try:
        head, status = (
            subprocess.run([*command, *what], capture_output=True, encoding="utf-8", errors="replace", timeout=5)
            for what in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return {"commit": head.stdout.strip(), "modified": bool(status.stdout.strip())}


def without_flags(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return arguments without some flags and their values."""
    kept: list[str] = []
    left_out = False
    for word in arguments:
        if word.startswith("--"):
            left_out = word.partition("=")[0] in flags
        if not left_out:
            kept.append(word)
    return kept
