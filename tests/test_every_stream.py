"""Every stream: a run that stops in mid-task goes on to the bit, and another process has the same tasks."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resumed import Rows, as_read
from test_streams import flat

from plasticity.agents import find_agent
from plasticity.agents.records import Episodes
from plasticity.agents.train import context, train
from plasticity.cli import main
from plasticity.commands.normaliser import NormaliserReset
from plasticity.commands.run import load_state
from plasticity.commands.saving import Randomness, restore, snapshot
from plasticity.envs import ENVS, TaskPlan, make_env
from plasticity.envs.layers import same
from plasticity.storage.randomness import seed_globally

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


REPLAY: dict[str, Any] = {"learning_starts": 20, "batch_size": 8, "buffer_size": 64}
SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"num_steps": 16, "num_minibatches": 2, "num_epochs": 2},
    "supervised": {"batch_size": 8},
    "dqn": REPLAY, "sac": REPLAY, "td3": REPLAY,
}  # fmt: skip


def play(name: str, agent: str, stop: int, saved: Any = None) -> tuple[Any, list[Any]]:
    """Return the state of a tiny run at a step, as a checkpoint gives it back, and the rows that were logged."""
    short = None if name in EXAMPLES else 25
    env = make_env(name, seed=3, tasks=TaskPlan(9, steps=40, num=3), max_episode_steps=short)
    (kind, config), images = find_agent(agent), len(env.observation_space.shape or ()) == 3
    own = {**SMALL[agent], "hidden": (8,), "network": "minatar_cnn" if images else "mlp"}
    if agent == "ppo" and not images:
        own |= {"normalize_observations": True, "normalize_rewards": True}
    made = kind(env.observation_space, env.action_space, config(**own), seed=1, compile="off")
    ctx = context(made, writer=(writer := Rows()))
    callbacks = {"normaliser": NormaliserReset(made), "episodes": Episodes(), "random": Randomness()}
    begin: dict[str, Any] = {}
    if saved is None:
        seed_globally(1)
    else:
        ctx.step, ctx.latest, ctx.logged = saved["step"], saved["latest"], saved["logged"]
        ctx.task, ctx.num_tasks = saved["task"], saved["num_tasks"]
        begin["saved"] = [saved["callbacks"][callback] for callback in callbacks]
        begin["load"] = partial(restore, saved, made, env)
    train(env, made, stop, [*callbacks.values()], ctx, **begin)
    state = as_read(snapshot(ctx, made, env, callbacks))
    env.close()
    return state, writer.rows


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_agent_goes_on_to_the_bit_in_mid_task(name: str) -> None:
    needs(name)
    env = make_env(name)
    agents = ["ppo", "dqn"] if hasattr(env.action_space, "n") else ["ppo", "sac", "td3"]
    env.close()
    for agent in [*agents, *(["supervised"] if name in EXAMPLES else [])]:
        whole, rows = play(name, agent, 100)
        saved, first = play(name, agent, 65)  # in the second task
        part, second = play(name, agent, 100, saved)
        assert [*first, *second] == rows, agent
        assert flat(whole).keys() == flat(part).keys()
        assert all(same(value, flat(part)[key]) for key, value in flat(whole).items()), agent


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
