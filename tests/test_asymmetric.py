"""PPO with several critics (AsyPPO): numbers by hand, a plain second implementation of the loss, exact resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_ppo import BOX, DISCRETE, OBS_SPACE, Stream, assert_same, collect, run, small_agent

from plasticity.agents.asymmetric import own_mean, sigma_of, turns, without
from plasticity.agents.gradient import GradientStep
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.rollout import Experience

pytestmark = pytest.mark.usefixtures("everywhere")

ASYPPO: dict[str, Any] = {
    "num_critics": 2, "critic_split": True, "critic_hidden": (8,), "advantage_mask": 0.25, "entropy_filter": 0.25,
    "entropy_coef": 0.01,
}  # fmt: skip


def test_known_numbers() -> None:
    sigma = sigma_of(torch.tensor([[1.0, 3.0], [0.0, 0.0], [4.0, 2.0], [5.0, -1.0]]))
    assert sigma.tolist() == [1.0, 0.0, 1.0, 3.0]
    assert without(sigma, 0.5).tolist() == [0.0, 0.0, 1.0, 1.0]  # of equal ones, the first
    assert without(sigma, 0.25, highest=True).tolist() == [1.0, 1.0, 1.0, 0.0]
    assert without(sigma, 0.0).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert without(torch.arange(100.0), 0.29).sum() == 71  # 0.29 * 100 is below 29 in floating point
    losses = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [5.0, 50.0]])
    turn = turns(2, 2, losses)
    assert turn.tolist() == [0, 1, 0, 1]
    assert own_mean(losses, turn).item() == (1 + 3) / 2 + (20 + 50) / 2
    assert own_mean(losses, None).item() == 11 / 4 + 110 / 4
    assert own_mean(losses[:1], turn[:1]).item() == 1.0  # a critic without a step has no loss


def by_numpy(agent: PPO, part: Experience, log_prob: Any, entropy: Any, values: Any) -> float:
    """AsyPPO's loss of a minibatch, step by step in numpy."""
    c = agent.config
    old, target, turn = (field.numpy(force=True).astype(np.float64) for field in (part.values, part.target, part.turn))
    sigma = old.std(1)
    order = np.argsort(sigma, kind="stable")
    n, mask, fil = len(sigma), np.ones(len(sigma)), np.ones(len(sigma))
    mask[order[: int(c.advantage_mask * n)]] = 0
    fil[order[n - int(c.entropy_filter * n) :]] = 0
    a = part.advantage.numpy(force=True).astype(np.float64)
    a = (a - a.mean()) / (a.std(ddof=1) + 1e-8)
    ratio = np.exp(log_prob - part.log_prob.numpy(force=True))
    policy = np.minimum(ratio * a, np.clip(ratio, 1 - c.clip_range, 1 + c.clip_range) * a)
    value = 0.0
    for m in range(2):
        mine = turn == m
        v, v0, y = values[mine, m], old[mine, m], target[mine]
        moved = v0 + np.clip(v - v0, -c.clip_range, c.clip_range)
        value += 0.5 * np.maximum((v - y) ** 2, (moved - y) ** 2).mean()
    return float(-(mask * policy).mean() + c.value_coef * value - c.entropy_coef * (fil * entropy).mean())


@pytest.mark.parametrize("action_space", [BOX, DISCRETE], ids=["continuous", "discrete"])
def test_the_loss_is_that_of_a_plain_implementation(action_space: Any) -> None:
    agent = small_agent(action_space, num_envs=4, **ASYPPO)
    run(agent, Stream(4), 8)
    collect(agent, Stream(4, seed=1), 8)
    agent._judge()
    assert agent.experience is not None
    part = agent.experience[torch.randperm(32)[:16]]
    with torch.no_grad():
        for network in agent.networks.values():  # as if epochs had passed
            for p in network.parameters():
                p += 0.05 * torch.randn(p.shape, generator=models.generator(3))
        distribution = agent.networks["actor"](part.obs)
        log_prob, entropy = distribution.log_prob(part.action), distribution.entropy()
        values = torch.stack([agent.networks[n](part.obs) for n in ("critic_1", "critic_2")], 1)
        found = agent.loss(part)[0]
    expected = by_numpy(agent, part, *(t.numpy(force=True).astype(np.float64) for t in (log_prob, entropy, values)))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_value_is_the_mean_and_advantages_are_made_of_it() -> None:
    agent = small_agent(num_envs=2, **ASYPPO)
    collect(agent, Stream(2), 8)
    agent._judge()
    found = agent.experience
    assert found is not None
    assert found.values is not None
    assert torch.equal(found.value, found.values.mean(1))
    assert torch.allclose(agent.state_value(agent.rollout.storage["next_obs"][0]).cpu(), torch.stack(
        [agent.networks[n](agent._normalised(agent.rollout.storage["next_obs"][0])) for n in agent.critics]
    ).mean(0).detach().cpu())  # fmt: skip
    assert not torch.equal(found.values[:, 0], found.values[:, 1])


def test_critics_learn_from_their_own_environments_only() -> None:
    agent = small_agent(num_envs=2, **ASYPPO)
    collect(agent, Stream(2), 8)
    agent._judge()
    assert agent.experience is not None
    loss = agent._value_loss(agent._values(agent.experience.obs), agent.experience)
    agent.experience.target[0::2] += 1.0  # of the first environment
    moved = agent._value_loss(agent._values(agent.experience.obs), agent.experience)
    parameters = {name: list(agent.networks[name].parameters()) for name in agent.critics}
    for name, changes in (("critic_1", True), ("critic_2", False)):
        one, other = (torch.autograd.grad(x, parameters[name], retain_graph=True) for x in (loss, moved))
        assert any(not torch.equal(a, b) for a, b in zip(one, other, strict=True)) == changes


def test_alike_critics_begin_alike_and_part_by_the_split() -> None:
    agent = small_agent(num_envs=2, critics_alike=True, **ASYPPO)
    one, other = (agent.networks[name] for name in agent.critics)
    assert_same(dict(one.state_dict()), dict(other.state_dict()))
    metrics = run(agent, Stream(2), 16)
    assert metrics[0]["critic_sigma"] == 0
    assert metrics[-1]["critic_sigma"] > 0


@pytest.mark.parametrize("steps", [3, 11])
def test_a_run_goes_on_to_the_bit(steps: int) -> None:
    agent, stream = small_agent(num_envs=2, **ASYPPO), Stream(2)
    run(agent, stream, steps)
    collect(agent, stream, agent.config.num_steps - agent.rollout.num_rows)
    agent.update()  # in the middle of a rollout's learning
    twin = small_agent(num_envs=2, seed=5, **ASYPPO)
    twin.load_state_dict(agent.state_dict())
    other = copy.deepcopy(stream)
    for _ in range(9):
        assert_same([agent.update()] if agent.ready() else [], [twin.update()] if twin.ready() else [])
    assert_same(run(agent, stream, 9), run(twin, other, 9))
    assert_same(agent.state_dict()["networks"], twin.state_dict()["networks"])


@pytest.mark.on_cpu
def test_compiled_updates_are_the_eager_ones(as_traced: None) -> None:
    agents = [models.here(PPO, OBS_SPACE, BOX, PPOConfig(hidden=(8, 8), num_steps=8, num_minibatches=2, **ASYPPO),
                          num_envs=2, compile=how) for how in ("on", "off")]  # fmt: skip
    found = [run(agent, Stream(2), 16) for agent in agents]
    assert isinstance(agents[0].steps["ppo"], GradientStep)
    assert agents[0].steps["ppo"]._graphs
    for one, other in zip(*found, strict=True):
        for name in one:
            assert torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    "wrong",
    [{"critic_split": True}, {"num_critics": 0}, {"num_critics": 2, "advantage_mask": 1.0}, {"entropy_filter": 0.1}],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_critics|advantage_mask"):
        PPOConfig(**wrong)


def test_a_split_needs_as_many_environments() -> None:
    with pytest.raises(ValueError, match="num_envs must be a multiple of num_critics, and 3 is none of 2"):
        small_agent(num_envs=3, num_critics=2, critic_split=True)
    assert math.isfinite(float(run(small_agent(num_envs=3, num_critics=2), Stream(3), 8)[-1]["value_loss"]))
