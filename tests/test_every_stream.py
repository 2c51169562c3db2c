"""Every stream: a run that stops in mid-task goes on to the bit, and another process has the same tasks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_streams import flat

from plasticity.cli import main
from plasticity.commands.run import load_state
from plasticity.envs import ENVS, TaskPlan, make_env
from plasticity.envs.layers import same

LIGHT = ["cgym/cartpole", "permute/CartPole-v1", "bitflip", "permuted-digits"]
EVERY = [name for family in ENVS.values() if family.stream is not None for name in family.ids()]
EXAMPLES = ("bitflip", "permuted-digits", "random-labels", "warm-start")
AGENTS = {"cminatar": "dqn", **dict.fromkeys(EXAMPLES, "supervised")}
FEW = {
    "ppo": "--num-steps 40 --num-minibatches 2 --num-epochs 1 --anneal-steps 0 --normaliser reset",
    "dqn": "--network minatar_cnn --learning-starts 40 --buffer-size 100 --batch-size 8",
    "supervised": "--batch-size 8",
}


def needs(name: str) -> None:
    """Skip a stream whose package is not installed."""
    if name == "cminatar":
        pytest.importorskip("minatar")
    if name in EXAMPLES[1:]:
        pytest.importorskip("sklearn")
    if "lunarlander" in name:
        pytest.importorskip("Box2D")


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_stopped_run_of_every_stream_goes_on_to_the_bit(tmp_path: Path, name: str) -> None:
    needs(name)
    agent = AGENTS.get(name, "ppo")
    run = ["train", agent, "--env", name, "--task-steps", "100", "--num-tasks", "2", *FEW[agent].split()]
    run += ["--eval-every", "0", "--eval-episodes", "1", "--max-episode-steps", "30", "--quiet", "--out", str(tmp_path)]
    run += ["--compile", "off", "--log", "--probes"]
    assert main([*run, "--steps", "200", "--name", "whole"]) == 0
    assert main([*run, "--steps", "130", "--name", "part"]) == 0  # in the middle of the second task
    assert main(["train", "--resume", str(tmp_path / "part"), "--steps", "200"]) == 0
    whole, part = (flat(load_state(tmp_path / one)["agent"]) for one in ("whole", "part"))
    assert whole.keys() == part.keys()
    assert all(same(value, part[key]) for key, value in whole.items())
    whole_returns, part_returns = (returns_of(tmp_path / one) for one in ("whole", "part"))
    assert whole_returns == part_returns != []


def returns_of(run: Path) -> list[float]:
    """Return the returns of the training episodes of a run."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["charts/episodic_return"] for row in rows if "charts/episodic_return" in row]


def fingerprint(name: str, seed: int) -> str:
    """Return a hash of what three tasks of a stream show and pay for the same actions."""
    env, rng = make_env(name, seed=5, tasks=TaskPlan(seed, steps=20, num=3)), np.random.default_rng(0)
    seen: list[Any] = [env.reset()]
    for _ in range(60):
        space = env.action_space
        given = rng.integers(space.n, size=1) if hasattr(space, "n") else rng.uniform(-1, 1, (1, *space.shape))
        step = env.step(torch.as_tensor(given if hasattr(space, "n") else given.astype(np.float32)))
        seen += [step.next_obs, step.reward, step.task, env.reset(step.terminated | step.truncated)]
    env.close()
    return hashlib.sha256(b"".join(np.ascontiguousarray(one.numpy()).tobytes() for one in seen)).hexdigest()


def elsewhere_fingerprints(names: list[str]) -> dict[str, str]:
    """Return the fingerprints of streams as a process of its own has them, with other hashes of text."""
    code = f"import json, test_every_stream as t; print(json.dumps({{n: t.fingerprint(n, 7) for n in {names!r}}}))"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=env, check=True, capture_output=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_two_processes_have_the_same_tasks() -> None:
    for name in LIGHT:
        needs(name)
    assert elsewhere_fingerprints(LIGHT) == {name: fingerprint(name, 7) for name in LIGHT}
    assert all(fingerprint(name, 7) != fingerprint(name, 8) for name in LIGHT)


@pytest.mark.slow
def test_two_processes_have_the_same_tasks_of_every_stream() -> None:
    for name in EVERY:
        needs(name)
    assert elsewhere_fingerprints(EVERY) == {name: fingerprint(name, 7) for name in EVERY}
