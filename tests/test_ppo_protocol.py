"""PPO with the settings of continual Gym control, against a plain computation of targets and advantages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from plasticity.agents import find_agent
from plasticity.commands.parsing import parse
from plasticity.envs import TaskPlan, make_env

SETTINGS = {
    "num_steps": 60,
    "num_minibatches": 3,
    "num_epochs": 1,
    "value_target": "returns",
    "standardise": "rollout",
    "initialisation": "default",
    "reward_scale": 0.05,
    "eps": 1e-8,
    "activation": "leaky_relu_0.1",
}


def judged(**settings: object) -> tuple[object, dict[str, torch.Tensor]]:
    """Return an agent whose rollout is full and judged, and that rollout."""
    kind, config = find_agent("ppo")
    env = make_env("cgym/cartpole", seed=1, tasks=TaskPlan(steps=100), max_episode_steps=25)
    agent = kind(env.observation_space, env.action_space, config(**settings), seed=1, compile="off")
    obs = env.reset()
    while not agent.ready():
        step = env.step(agent.act(obs, explore=True))
        agent.observe(step)
        obs = env.reset(step.terminated | step.truncated)
    agent._judge()
    return agent, agent.experience


def test_targets_are_rewards_to_go_and_advantages_are_standardised_once() -> None:
    agent, experience = judged(**SETTINGS)
    storage = agent.rollout.storage
    value = agent.networks["critic"](agent.rollout.flat("obs")).detach().double().numpy()
    after = agent.networks["critic"](storage["next_obs"].flatten(0, 1)).detach().double().numpy()
    reward = storage["reward"].flatten().double().numpy() / 20
    terminated = storage["terminated"].flatten().numpy()
    obs, next_obs = agent.rollout.flat("obs").numpy(), storage["next_obs"].flatten(0, 1).numpy()
    ends = [t for t in range(60) if t == 59 or terminated[t] or not np.array_equal(next_obs[t], obs[t + 1])]
    assert len(ends) > 2
    advantage, target, start = np.zeros(60), np.zeros(60), 0
    for end in ends:
        last = 0.0 if terminated[end] else after[end]
        ret, adv, following = last, 0.0, last
        for t in range(end, start - 1, -1):
            ret = reward[t] + 0.99 * ret
            adv = reward[t] + 0.99 * following - value[t] + 0.99 * 0.95 * adv
            target[t], advantage[t], following = ret, adv, value[t]
        start = end + 1
    assert np.allclose(experience.target.numpy(), target, atol=1e-5)
    standard = (advantage - advantage.mean()) / (advantage.std() + 1e-5)
    assert np.allclose(experience.advantage.numpy(), standard, atol=1e-4)
    batch = experience[torch.arange(10)]
    assert torch.equal(agent._advantage(batch), batch.advantage)


def test_first_weights_are_those_of_pytorch() -> None:
    agent, _ = judged(**SETTINGS)
    for network in agent.networks.values():
        for layer in [part for part in network.modules() if isinstance(part, nn.Linear)]:
            bound = layer.in_features**-0.5
            assert layer.weight.abs().max() <= bound
            assert layer.bias.abs().max() > 0
    assert agent.optimizers["ppo"].param_groups[0]["eps"] == 1e-8
    slopes = {part.negative_slope for part in agent.networks["actor"].modules() if isinstance(part, nn.LeakyReLU)}
    assert slopes == {0.1}


@pytest.mark.parametrize("setting", ["reward_scale", "eps"])
def test_settings_that_make_no_sense_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} > 0"):
        find_agent("ppo")[1](**{setting: 0.0})


def test_a_preset_fills_in_settings_and_those_of_the_user_go_before() -> None:
    config = parse("ppo", ["--env", "cgym/cartpole", "--lr", "5e-4", "--preset", "c-chain"])
    agent = config.agent
    assert (agent.hidden, agent.lr, agent.num_steps, agent.reward_scale) == ((256, 256, 256), 5e-4, 800, 0.05)
    assert agent.value_target == "returns"
    assert not agent.normalize_observations
    assert config.preset == "c-chain"
    with pytest.raises(ValueError, match="no preset 'c-chian' for ppo; did you mean c-chain"):
        parse("ppo", ["--env", "cgym/cartpole", "--preset=c-chian"])
    with pytest.raises(ValueError, match="no preset 'c-chain' for sac; there are: zoo"):
        parse("sac", ["--env", "Pendulum-v1", "--preset", "c-chain"])
