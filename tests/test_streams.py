"""Streams of tasks: what changes, when, by which seed, and that a stopped stream goes on as if it had not stopped."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from plasticity.agents.normalise import RunningNorm
from plasticity.agents.rewards import ReturnScaler
from plasticity.cli import main
from plasticity.commands.normaliser import reset_statistics_
from plasticity.commands.run import load_state
from plasticity.envs import ENVS, TaskPlan, make_env
from plasticity.envs.layers import same, task_holder
from plasticity.testing import check_environment

STREAMS = ["cgym/cartpole", "cgym-short/acrobot", "permute/CartPole-v1"]
SLOW = ["cgym/lunarlander", *(f"{kind}-{body}" for kind in ("slippery", "mass") for body in ("ant", "halfcheetah"))]
SLOW += ["gravity-hopper", "actuator-walker2d", "cdmc/walker", "cminatar", "permute/dmc/cartpole-swingup"]


def stream(env: Any, index: int = 0) -> Any:
    """Return the stream of one environment of a batch."""
    return task_holder(env._vector.envs[index])


def play(env: Any, steps: int, seed: int = 0) -> list[tuple[list[float], list[int], list[bool]]]:
    """Return observations, tasks and truncations of some random steps."""
    rng, seen = np.random.default_rng(seed), []
    env.reset()
    for _ in range(steps):
        if hasattr(env.action_space, "n"):
            action = torch.from_numpy(rng.integers(env.action_space.n, size=env.num_envs))
        else:
            action = torch.from_numpy(rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape))).float()
        step = env.step(action)
        seen.append((step.next_obs[0].tolist(), step.task.tolist(), step.truncated.tolist()))
        env.reset(step.terminated | step.truncated)
    return seen


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_keeps_the_contract_of_environments(name: str) -> None:
    check_environment(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_stream_keeps_it(name: str) -> None:
    if name == "cminatar":
        pytest.importorskip("minatar")
    check_environment(name)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_task_lasts_its_steps_and_its_last_one_truncates(num_envs: int) -> None:
    env = make_env("permute/sanity/clock", num_envs=num_envs, seed=1, tasks=TaskPlan(steps=8, num=3))
    seen = play(env, 24 // num_envs + 5)
    tasks = [task[0] for _, task, _ in seen]
    each = 8 // num_envs
    assert tasks[: 3 * each] == [0] * each + [1] * each + [2] * each
    assert set(tasks[3 * each :]) == {2}, "the last task goes on"
    ends = [index + 1 for index, (a, b) in enumerate(pairwise(tasks)) if a != b]
    assert all(all(seen[end - 1][2]) for end in ends)


def test_tasks_are_those_of_the_plans_seed_whatever_the_environments_seed() -> None:
    def offsets(env_seed: int, plan_seed: int, num_envs: int = 1) -> list[np.ndarray]:
        env = make_env("cgym/cartpole", num_envs=num_envs, seed=env_seed, tasks=TaskPlan(plan_seed, 4, 3))
        found = []
        for task in range(3):
            env.set_task(task)
            env.reset()
            found += [stream(env, index).offset for index in range(num_envs)]
        return found

    first = offsets(1, 7)
    assert np.array_equal(first[0], np.zeros(4))
    assert all(map(np.array_equal, first, offsets(2, 7)))
    assert all(np.array_equal(a, b) for a, b in zip(np.repeat(first, 3, 0), offsets(1, 7, 3), strict=True))
    assert not np.array_equal(first[1], offsets(1, 8)[1])
    many = [TaskPlan(seed).generator("offset", 1).normal(0, 2, 4) for seed in range(2000)]
    assert abs(np.std(many) - 2) < 0.05, "drawn from N(0, 2^2)"


def test_an_offset_moves_observations_and_nothing_else() -> None:
    plain, moved = make_env("CartPole-v1", seed=3), make_env("cgym/cartpole", seed=3)
    moved.set_task(2)
    expected = plain.reset()
    offset = moved.reset() - expected
    for action in (0, 1, 1, 0):
        a, b = plain.step(torch.tensor([action])), moved.step(torch.tensor([action]))
        assert torch.allclose(b.next_obs - a.next_obs, offset, atol=1e-5)
        assert torch.equal(a.reward, b.reward)
    assert offset.abs().max() > 0.1


def test_an_iteration_of_the_control_stream_ends_its_episode() -> None:
    env = make_env("cgym/acrobot", seed=1, max_episode_steps=300)
    ends = [index + 1 for index, (_, _, truncated) in enumerate(play(env, 801)) if truncated[0]]
    assert ends == [300, 600, 800]


def test_a_permutation_is_undone_by_its_inverse() -> None:
    plain, other = make_env("HalfCheetah-v5", seed=3), make_env("permute/HalfCheetah-v5", seed=3)
    other.set_task(1)
    a, b = plain.reset(), other.reset()
    one = stream(other)
    assert torch.equal(a[:, one._order], b)
    action = torch.rand(1, 6) * 2 - 1
    inverse = np.argsort(one._actions)
    assert torch.equal(plain.step(action).next_obs[:, one._order], other.step(action[:, inverse]).next_obs)


@pytest.mark.parametrize("kind", ["slippery", "gravity", "mass", "actuator"])
def test_physics_of_a_task_changes_what_happens_and_task_0_gives_it_back(kind: str) -> None:
    name = f"{kind}-halfcheetah"

    def after(task: int, before: int | None = None) -> torch.Tensor:
        env = make_env(name, seed=3, tasks=TaskPlan(1))
        for one in [before, task] if before is not None else [task]:
            env.set_task(one)
            env._vector.reset(seed=[5])
            env.reset()
        env._vector.reset(seed=[5])
        for step in range(20):
            found = env.step(torch.full((1, 6), (-1.0) ** step * 0.7)).next_obs
        return found

    assert not torch.allclose(after(0), after(1), atol=1e-3)
    assert torch.equal(after(0), after(0, before=1))
    assert torch.equal(after(1), after(1, before=3))


def test_factors_stay_in_their_range() -> None:
    factors = []
    env = make_env("slippery-hopper", seed=1)
    for task in range(60):
        env.set_task(task)
        env.reset()
        factors.append(stream(env).factor)
    assert 0.02 <= min(factors) < 0.06
    assert 0.8 < max(factors) <= 2


def test_counts_below_one_and_tasks_of_no_stream_are_refused() -> None:
    for wrong, words in (
        ({"steps": 0}, "the length of a task is at least 1, got 0"), ({"num": -1}, "the number of tasks is at least 1"),
        ({"first": -1}, "the first task of a stream is at least 0"), ({"seed": -1}, "the seed of a stream is at least"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            TaskPlan(**wrong)
    for name in ("cgym/cartpole", "bitflip", "dmc-pixels/walker-walk", "permute/CartPole-v1"):
        with pytest.raises(ValueError, match="cannot be permuted; streams, images and Atari games cannot"):
            make_env(f"permute/{name}")
    with pytest.raises(ValueError, match="CartPole-v1"):
        make_env("permute/CartPole")
    with pytest.raises(ValueError, match="CartPole-v1 has no tasks"):
        make_env("CartPole-v1", tasks=TaskPlan(steps=10))
    assert {"cgym", "slippery", "cdmc", "cminatar", "permute"} <= ENVS.keys()


def test_options_of_streams_are_not_ignored_elsewhere(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "dqn", "--env", "CartPole-v1", "--steps", "20", "--eval-every", "0", "--eval-episodes", "1"]
    run += ["--out", str(tmp_path), "--quiet"]
    assert main([*run, "--task-seed", "3"]) != 0
    assert "--task-seed: CartPole-v1 is no stream" in capsys.readouterr().err
    assert main([*run, "--seed", "-3"]) != 0
    assert "--seed must be at least 0, got -3" in capsys.readouterr().err
    with pytest.warns(RuntimeWarning, match="--normaliser reset did nothing: the environment has no tasks"):
        assert main([*run, "--normaliser", "reset"]) == 0


def test_statistics_start_anew() -> None:
    norm, scaler = RunningNorm((3,)), ReturnScaler(2, 0.9)
    fresh = [{k: v.clone() for k, v in part.state_dict().items()} for part in (norm, scaler)]
    norm.update(torch.randn(5, 3))
    scaler.update(torch.ones(2), torch.zeros(2, dtype=torch.bool))
    reset_statistics_(nn.Sequential(norm, nn.Linear(3, 3)))
    reset_statistics_(scaler)
    for part, before in zip((norm, scaler), fresh, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())


@pytest.mark.parametrize("normaliser", ["keep", "reset"])
def test_a_run_on_a_stream_stops_in_the_middle_of_a_task_and_goes_on_to_the_bit(tmp_path: Any, normaliser: str) -> None:
    common = [
        "--env",
        "cgym/cartpole",
        "--task-steps",
        "200",
        "--num-tasks",
        "3",
        "--num-steps",
        "64",
        "--num-epochs",
        "1",
        "--num-minibatches",
        "2",
    ]
    common += ["--eval-every", "0", "--eval-episodes", "2", "--quiet", "--out", str(tmp_path), "--compile", "off"]
    common += [
        "--normaliser",
        normaliser,
        "--normalize-observations",
        "True",
        "--anneal-steps",
        "0",
        "--log",
        "--probes",
    ]
    assert main(["train", "ppo", *common, "--steps", "500", "--name", "whole"]) == 0
    assert main(["train", "ppo", *common, "--steps", "300", "--name", "part"]) == 0
    assert main(["train", "--resume", str(tmp_path / "part"), "--steps", "500"]) == 0
    whole, part = (load_state(tmp_path / name)["agent"] for name in ("whole", "part"))
    assert flat(whole).keys() == flat(part).keys()
    assert all(same(value, flat(part)[key]) for key, value in flat(whole).items())
    tasks = [json.loads(row) for row in (tmp_path / "part" / "metrics.jsonl").read_text().splitlines() if "task" in row]
    assert len(tasks) >= 3


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by path."""
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else None
    if pairs is None:
        return {path: state}
    return {key: leaf for name, part in pairs for key, leaf in flat(part, f"{path}/{name}").items()}


def test_commands_know_the_tasks_of_a_run(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["train", "dqn", "--env", "cgym-short/cartpole", "--steps", "300", "--task-steps", "150", "--quiet"]
    run += ["--learning-starts", "250", "--eval-every", "0", "--eval-episodes", "1", "--out", str(tmp_path)]
    assert main([*run, "--name", "run", "--probes"]) == 0
    assert main(["eval", str(tmp_path / "run"), "--episodes", "1", "--task", "1"]) == 0
    assert main(["probe", str(tmp_path / "run")]) == 0
    assert "layer" in capsys.readouterr().out
