"""A run folder: what is in it, and how it is written so that a crash leaves nothing half done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RECORD, MODEL = "run.json", "model.pt"
PACKAGES = ("plasticity-toolkit", "torch", "numpy", "gymnasium", "mujoco", "dm-control", "tensorboard")


def describe(agent: str, config: Mapping[str, Any], command: list[str]) -> dict[str, Any]:
    """Return what ``run.json`` says of a run: settings, command, versions, hardware, git state."""
    return {
        "agent": agent,
        "status": "running",
        "config": config,
        "command": command,
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


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``run.json`` in one step: a reader sees the old one or the new one, never half of it."""
    _replace(folder / RECORD, json.dumps(record, indent=2).encode() + b"\n")


def read_run(folder: Path) -> dict[str, Any]:
    """Return the contents of ``run.json``; raise ValueError if ``folder`` is no run."""
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} is not a run: it has no {RECORD}")
    try:
        record = json.loads(path.read_text())
        if {"agent", "config"} <= record.keys():
            return record
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    raise ValueError(f"{path} is damaged: it lacks the agent or its config")


def save_model(folder: Path, agent: Any) -> None:
    """Write the agent's state, plain tensors and numbers, in one step."""
    partial = folder / f"{MODEL}.partial"
    torch.save(agent.state_dict(), partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, folder / MODEL)


def load_agent(folder: Path, record: Mapping[str, Any], env: Any, device: str) -> Any:
    """Return the trained agent of a run, for the spaces of ``env``; raise ValueError where its files do not fit."""
    from plasticity.agents import AGENTS

    if record["agent"] not in AGENTS:
        raise ValueError(f"{folder} has the agent {record['agent']!r}; this version knows {', '.join(AGENTS)}")
    path = folder / MODEL
    if not path.is_file():
        raise ValueError(f"{folder} has no {MODEL}: its training did not end")
    kind, config_kind = AGENTS[record["agent"]]
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in record["config"]["agent"].items()}
    # Only the networks matter here: a memory of full size would be reserved for nothing.
    settings |= {key: value for key, value in {"buffer_size": 2, "learning_starts": 0}.items() if key in settings}
    agent = kind(env.observation_space, env.action_space, config_kind(**settings), device=device)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        _restructure(agent, state)
        agent.load_state_dict(state)
    except (RuntimeError, KeyError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return agent


def _restructure(agent: Any, state: Mapping[str, Any]) -> None:
    """Give the networks the modules that plasticity injection had added to the saved ones."""
    from plasticity.interventions.injection import restructure_

    optimizers = list(agent.optimizers.values())
    for name, network in agent.networks.items():
        restructure_(network, state["networks"][name], optimizers)
    for name, target in getattr(agent, "targets", {}).items():
        restructure_(target, state["targets"][name])


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit of the working directory and whether it has changes; None outside a repository."""
    command = ["git", "-c", "safe.directory=*"]
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if head.returncode:
        return None
    return {"commit": head.stdout.strip(), "modified": bool(status.stdout.strip())}


def command_line() -> list[str]:
    """Return the command that started this process, without the path of the interpreter."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
