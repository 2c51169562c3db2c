"""The first line of every command comes before anything is imported that takes long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from plasticity.storage.record import RECORD

SLOW = {"torch", "gymnasium", "mujoco", "dm_control", "matplotlib", "scipy", "torchrl", "stable_baselines3"}
"""Packages whose import takes a good part of a second, or more."""
LISTEN = """
import json, os, sys

def listen(stream):
    write = stream.write
    def heard(text):
        if text.strip():
            write(json.dumps([text, sorted({name.split(".")[0] for name in sys.modules})]) + "\\n")
            stream.flush()
            os._exit(0)
        return write(text)
    stream.write = heard

listen(sys.stdout)
listen(sys.stderr)
sys.stderr.isatty = lambda: True
from plasticity.cli import main
main(sys.argv[1:])
"""
"""A terminal that closes at the first line, and says what was imported by then."""


def first_line(*arguments: str) -> tuple[str, set[str]]:
    """Return what a command writes first, and the packages that it has imported by then."""
    command = [sys.executable, "-c", LISTEN, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    text, loaded = json.loads((done.stdout + done.stderr).splitlines()[0])
    return text, set(loaded)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train ppo --env CartPole-v1 --steps 2000", "plasticity train ppo: importing PyTorch ..."),
        ("train --config {run}/run.toml", "plasticity train: importing PyTorch ..."),
        ("train --resume {run}", "plasticity train {run}: importing PyTorch ..."),
        ("train ppo --help", "usage: plasticity train ppo"),
        ("train ppo --redo --help", "redo: intervention (reset)"),
        ("help rank", "rank: probe (rank)"),
        ("list probes", "probes"),
        ("doctor", "ok     python"),
        ("runs {run}", "run  "),
        ("eval {run}", "plasticity eval: importing PyTorch ..."),
        ("diagnose {run}", "plasticity diagnose: importing PyTorch ..."),
        ("bench --help", "usage: plasticity bench"),
        ("bench supervised", "plasticity bench: importing PyTorch ..."),
        ("stream", "usage: plasticity stream"),
        ("stream bitflip", "plasticity stream bitflip: importing PyTorch ..."),
        ("report {run}", "plasticity report: importing Matplotlib ..."),
    ],
)
def test_the_first_line_waits_for_no_import(command: str, said: str, tmp_path: Path) -> None:
    config = {"env": "CartPole-v1", "seed": 1, "steps": 9, "agent": {}, "interventions": {}}
    (tmp_path / RECORD).write_text(
        json.dumps({"agent": "ppo", "status": "finished", "steps_done": 9, "config": config})
    )
    text, loaded = first_line(*command.format(run=tmp_path).split())
    assert text.startswith(said.format(run=tmp_path))
    assert not loaded & SLOW
