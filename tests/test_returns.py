"""Critics by classification and by quantiles: golden numbers, naive implementations, all agents, eager and compiled."""

from __future__ import annotations

import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.stats import norm
from test_interventions import Walk, small_sac, weights
from torch import Tensor

from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.hl_gauss import HLGauss, Quantiles, TwoHot
from plasticity.agents.networks import VALUE_HEADS, with_output
from plasticity.agents.returns import RETURNS
from plasticity.agents.sac import SAC
from plasticity.agents.td3 import TD3, TD3Config
from plasticity.agents.train import context, train

pytestmark = pytest.mark.usefixtures("everywhere")


def test_hl_gauss_by_hand() -> None:
    values = HLGauss(-1.0, 1.0, 4, torch.get_default_device())
    found = values.encode(torch.tensor([0.1]))
    assert values.sigma == pytest.approx(0.375)
    torch.testing.assert_close(found, torch.tensor([[0.053652, 0.343455, 0.466684, 0.136209]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(values.support, torch.tensor([-0.75, -0.25, 0.25, 0.75]))


def test_hl_gauss_is_scipys_normal_distribution_cut_off() -> None:
    values, y = HLGauss(-10.0, 10.0, 51, torch.get_default_device()), [-12.0, -9.9, 0.0, 3.3, 25.0]
    edges, sigma = np.linspace(-10, 10, 52), 0.75 * 20 / 51
    for row, one in zip(values.encode(torch.tensor(y)).tolist(), y, strict=True):
        cdf = norm.cdf(edges, np.clip(one, -10, 10), sigma)
        np.testing.assert_allclose(row, np.diff(cdf) / (cdf[-1] - cdf[0]), atol=1e-5)


def test_values_are_found_again() -> None:
    for kind in (TwoHot, HLGauss):
        values, y = kind(-5.0, 5.0, 101, torch.get_default_device()), torch.linspace(-4, 4, 17)
        torch.testing.assert_close(values.q(values.encode(y).clamp_min(1e-30).log()), y, rtol=0, atol=1e-3)


def test_two_hot_by_hand() -> None:
    found = TwoHot(0.0, 2.0, 3, torch.get_default_device()).encode(torch.tensor([0.25, 2.5]))
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]))


def test_quantiles_against_a_naive_implementation() -> None:
    values = Quantiles(4, torch.get_default_device())
    output, target = models.normal(3, 4, seed=1), 3 * models.normal(3, 4, seed=2)
    expected = []
    for theta, goal in zip(output.tolist(), target.tolist(), strict=True):
        total = 0.0
        for i, q in enumerate(theta):
            level = (i + 0.5) / 4
            for t in goal:
                u = t - q
                huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                total += abs(level - (u < 0)) * huber / 4
        expected.append(total)
    losses, errors = values.losses(output, target)
    torch.testing.assert_close(losses, torch.tensor(expected))
    assert torch.equal(losses, errors)
    assert values.q(torch.tensor([[1.0, 2.0, 3.0, 6.0]])).item() == 3


def small(kind: type, returns: str, **more: Any) -> Any:
    grid = {"num_atoms": 11, "v_min": -5.0, "v_max": 5.0}
    if kind is SAC:
        return small_sac(critic_returns=returns, **grid, **more)
    box, device = spaces.Box(-1, 1, (2,)), torch.get_default_device()
    settings = {"hidden": (12, 10), "batch_size": 8, "learning_starts": 8, "buffer_size": 200, **grid, **more}
    if kind is TD3:
        return TD3(
            spaces.Box(-9, 9, (3,)), box, TD3Config(critic_returns=returns, **settings), num_envs=2, device=device
        )
    discrete = DQNConfig(returns=returns, train_every=2, **settings)
    return DQN(spaces.Box(-9, 9, (3,)), spaces.Discrete(3), discrete, num_envs=2, device=device)


@pytest.mark.parametrize("returns", ["two_hot", "hl_gauss", "c51", "quantiles"])
def test_the_target_is_the_reward_and_the_smaller_critic(returns: str) -> None:
    agent = small(SAC, returns)
    train(Walk(), agent, 30, [], context(agent))
    batch, alpha, noise = agent.buffer.sample(6), agent.log_alpha.detach().exp(), models.normal(6, 2)
    loss, _ = agent.critic_loss(batch, alpha, noise)
    action, log_prob = agent._sample(batch.next_obs, noise)
    outputs = [target(batch.next_obs, action, True) for target in agent.targets.values()]
    smaller = torch.stack([torch.stack([agent.returns.q(o[i]) for o in outputs]).argmin() for i in range(6)]).tolist()
    total = torch.zeros(())
    for i, which in enumerate(smaller):
        discount = 0.99 * (1 - batch.terminated[i].float())
        reward = batch.reward[i] - discount * alpha * log_prob[i]
        target = agent.returns.target(reward[None], discount[None], outputs[which][i][None]).detach()
        for key in ("critic_1", "critic_2"):
            output = agent.networks[key](batch.obs[i : i + 1], batch.action[i : i + 1], True)
            total = total + agent.returns.losses(output, target)[0].sum() / 6
    torch.testing.assert_close(loss, total)
    agent.networks["critic_1"].zero_grad()
    agent.networks["actor"].zero_grad()
    loss.backward()
    assert agent.networks["critic_1"].q[0].weight.grad is not None
    assert all(p.grad is None for p in agent.networks["actor"].parameters())


def test_a_head_of_one_output_is_refused_where_more_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VALUE_HEADS, "one", lambda body: with_output(body, 1))
    with pytest.raises(ValueError, match=r"the critic head 'one' makes one output, critic_returns need 11"):
        small(SAC, "hl_gauss", critic_head="one")


SETS = [(kind, returns) for kind in (SAC, TD3, DQN) for returns in RETURNS if returns not in ("mean", "c51")]


@pytest.mark.on_real_devices
@pytest.mark.usefixtures("as_traced")
@pytest.mark.parametrize(("kind", "returns"), SETS)
@pytest.mark.some(4)
def test_agents_learn_eager_and_compiled_alike(kind: type, returns: str) -> None:
    ends = []
    for compile in ("off", "on"):
        agent = small(kind, returns)
        for step in agent.steps.values():
            step.compile = compile
        env: Any = Walk() if kind is not DQN else Discrete()
        train(env, agent, 40, [], context(agent))
        assert agent.updates > 5
        ends.append(weights(agent))
    for key, value in ends[0].items():
        assert value.isfinite().all()
        torch.testing.assert_close(ends[1][key], value, rtol=1e-2, atol=1e-3)


class Discrete(Walk):
    def step(self, action: Tensor) -> Any:
        transition = super().step(torch.stack([action.float() - 1, torch.zeros_like(action.float())], 1))
        transition.action = action
        return transition


def test_values_are_means_for_everybody_else() -> None:
    agent = small(TD3, "hl_gauss")
    obs, action = models.normal(5, 3), models.normal(5, 2).tanh()
    critic = agent.networks["critic_1"]
    logits = critic.q(torch.cat([obs, action], -1))
    torch.testing.assert_close(critic(obs, action), (logits.softmax(-1) * agent.returns.support).sum(-1))
    assert agent.value(obs, action).shape == (5,)
    assert math.isfinite(agent.state_value(obs).sum().item())
