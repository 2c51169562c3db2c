"""Supervised streams as environments, and the agent that learns them: against plain loops, and as runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from plasticity.agents import Supervised, SupervisedConfig
from plasticity.cli import main
from plasticity.commands.stream import translated
from plasticity.envs import TaskPlan, examples, make_env
from plasticity.testing import check_agent

SMALL = ["--hidden", "6", "--batch-size", "8", "--memory-size", "64"]


def needs_digits() -> Any:
    return pytest.importorskip("sklearn")


def play(env: Any, steps: int, answer: Any) -> list[Any]:
    """Return the transitions of some steps."""
    found, obs = [], env.reset()
    for _ in range(steps):
        step = env.step(answer(obs))
        found.append(step)
        obs = step.next_obs
        if bool((step.terminated | step.truncated).any()):
            obs = env.reset(step.terminated | step.truncated)
    return found


def test_bits_equal_the_definition_one_by_one() -> None:
    plan = TaskPlan(7, steps=50, num=6)
    fixed = plan.generator("bitflip", 0)
    first, second = fixed.choice([-1.0, 1.0], (21, 100)), fixed.choice([-1.0, 1.0], 101)
    before = None
    for task in range(4):
        x, y = examples._bits(plan, task, np.random.default_rng(task), 50, False)
        for row, answer in zip(x, y, strict=True):
            expected = second[100]
            for unit in range(100):
                agreeing = sum(bit if weight > 0 else 1 - bit for bit, weight in zip(row, first[:, unit], strict=True))
                expected += second[unit] * (agreeing > 0.7 * 21)
            assert answer == pytest.approx(expected)
        assert (x[:, :15] == x[0, :15]).all()
        assert len(np.unique(x[:, 15:20], axis=0)) > 10
        assert before is None or abs(x[0, :15] - before).sum() == 1
        before = x[0, :15]


def test_digits_are_permuted_relabelled_and_split_as_said() -> None:
    needs_digits()
    (images, labels), plan = examples.digits(), TaskPlan(3)
    x, y = examples._permuted(plan, 2, np.random.default_rng(0), 1797, False)
    pixels = plan.generator("pixels", 2).permutation(64)
    back = np.empty_like(x)
    back[:, pixels] = x
    order = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert sorted(map(bytes, back)) == sorted(map(bytes, images))
    assert all(order[row.tobytes()] == label for row, label in zip(back, y, strict=True))
    assert not np.array_equal(pixels, plan.generator("pixels", 3).permutation(64))
    x, y = examples._relabelled(plan, 1, np.random.default_rng(0), 600, False)
    assert len(np.unique(x, axis=0)) == 200
    assert all(len(set(y[(x == image).all(1)])) == 1 for image in x[:20])
    half, everything, unseen = (
        {row.tobytes() for row in examples._warm(plan, task, np.random.default_rng(0), 5000, new)[0]}
        for task, new in ((0, False), (1, False), (1, True))
    )
    assert (len(half), len(everything)) == (700, 1400)
    assert half < everything
    assert not everything & unseen


def test_a_return_is_a_share_or_an_error() -> None:
    needs_digits()
    env = make_env("permuted-digits", tasks=TaskPlan(0, steps=30, num=3), max_episode_steps=20)
    steps = play(env, 60, lambda obs: torch.tensor([4]))
    right = np.array([float(step.next_obs[0, -1]) == 4 for step in steps])
    ends = [n + 1 for n, step in enumerate(steps) if bool(step.truncated)]
    assert ends == [20, 30, 50, 60]
    rewards = np.array([float(step.reward) for step in steps])
    for low, high in zip([0, *ends], ends, strict=False):
        assert rewards[low:high].sum() == pytest.approx(right[low:high].mean())
    assert [int(step.task) for step in steps][::10] == [0, 0, 0, 1, 1, 1]
    env = make_env("bitflip", tasks=TaskPlan(0, steps=10, num=2), max_episode_steps=10)
    steps = play(env, 10, lambda obs: torch.tensor([[3.5]]))
    assert float(steps[3].reward) == pytest.approx(-((3.5 - float(steps[3].next_obs[0, -1])) ** 2) / 10)


@pytest.mark.parametrize("name", ["bitflip", "permuted-digits"])
@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_agent_equals_a_plain_loop(name: str, num_envs: int) -> None:
    if name != "bitflip":
        needs_digits()
    env = make_env(name, num_envs=num_envs, seed=1, tasks=TaskPlan(0, steps=120, num=3))
    config = SupervisedConfig(hidden=(6, 5), batch_size=8, memory_size=64)
    agent = Supervised(env.observation_space, env.action_space, config, num_envs=num_envs, seed=2)
    plain = copy.deepcopy(agent.networks["net"])
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    waiting: list[tuple[Tensor, Tensor]] = []
    obs, count = env.reset(), 0
    for _ in range(150):
        step = env.step(agent.act(obs, explore=True))
        agent.observe(step)
        waiting += list(zip(step.obs[:, :-1].clone(), step.next_obs[:, -1].clone(), strict=True))
        done = step.terminated | step.truncated
        obs = env.reset(done) if bool(done.any()) else step.next_obs
        while agent.ready():
            loss = float(agent.update()["net_loss"])
            x, y = map(torch.stack, zip(*waiting[:8], strict=True))
            waiting, count, output = waiting[8:], count + 1, plain(x)
            mine = F.mse_loss(output[:, 0], y) if name == "bitflip" else F.cross_entropy(output, y.long())
            optimizer.zero_grad()
            mine.backward()
            optimizer.step()
            assert loss == pytest.approx(mine.item(), rel=1e-5)
    assert count == 150 * num_envs // 8
    for mine, theirs in zip(agent.networks["net"].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_agent_passes_the_battery() -> None:
    check_agent(Supervised, SupervisedConfig, ["--env", "bitflip", "--task-steps", "50", *SMALL])


@pytest.mark.parametrize("name", examples.SOURCES)
@pytest.mark.some(2)
@pytest.mark.filterwarnings("ignore:cbp never acted")  # in the few steps of the part
def test_a_stopped_stream_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    if name != "bitflip":
        needs_digits()
    common = ["stream", name, "--task-steps", "60", "--num-tasks", "3", "--method", "cbp", "--hidden", "6", "--quiet"]
    common += ["--log-every", "5", "--max-episode-steps", "25", "--cbp.maturity", "2", "--cbp.rate", "0.5"]
    assert main([*common, "--steps", "180", "--out", str(tmp_path), "--name", "whole"]) == 0
    assert main([*common, "--steps", "70", "--out", str(tmp_path), "--name", "part"]) == 0
    assert main(["train", "--resume", str(tmp_path / "part"), "--steps", "180", "--quiet"]) == 0
    rows = [
        [{k: v for k, v in json.loads(line).items() if k not in ("time", "charts/SPS", "charts/eval_return",
         "charts/eval_return_std")} for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "part")
    ]  # fmt: skip
    returns = [[row["charts/episodic_return"] for row in one if "charts/episodic_return" in row] for one in rows]
    assert returns[0] == returns[1]
    assert len(returns[0]) == 9
    tasks = [row["number"] for row in rows[0] if row.get("event") == "task"]
    assert tasks == [1, 2, 3]


def test_wrong_use_says_what_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--quiet"]
    for arguments, text in (
        (["stream", "bitflop"], "did you mean bitflip"),
        (["stream", "bitflip", "--method"], "--method needs the name"),
        (["stream", "bitflip", "--method", "--quiet"], "--method needs the name"),
        (["stream", "bitflip", "--env", "warm-start", *out], "the name of the stream, bitflip, says this"),
        (["stream", "bitflip", "--method", "cpb", *out], "--cpb"),
        (["stream", "bitflip", "--method", "oracle", *out], "bench supervised trains several, and an oracle"),
        (["stream", "bitflip", "--method=cbp,l2-init", *out], "--method takes one method"),
        (["train", "supervised", "--env", "CartPole-v1", "--steps", "10", *out], "needs an environment of examples"),
        (["train", "supervised", "--env", "bitflip", "--steps", "10", "--num-envs", "90", "--memory-size", "64", *out],
         "must hold one example of each"),
    ):  # fmt: skip
        assert main(arguments) != 0
        assert text in capsys.readouterr().err
    for length in (["--task-steps", "30", "--num-tasks", "4"], ["--task-steps=30", "--num_tasks=0_4"]):
        words = translated(["bitflip", *length])
        assert words[words.index("--steps") + 1] == "120"
    assert main(["stream", "--help"]) == 0
    assert "permuted-digits" in capsys.readouterr().out
