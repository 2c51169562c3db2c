"""The parts that all agents lend: gradient steps, ways to run networks, data to look at, terms in whole updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from plasticity.agents import DQN, PPO, SAC, TD3, DQNConfig, PPOConfig, SACConfig, TD3Config
from plasticity.agents.train import context, train
from plasticity.envs import make_env

pytestmark = pytest.mark.usefixtures("everywhere", "as_traced")

REPLAY: dict[str, Any] = {"hidden": (8, 8), "learning_starts": 10, "batch_size": 8, "buffer_size": 200}
AGENTS: dict[str, tuple[type, Any, str]] = {
    "sac": (SAC, SACConfig(**REPLAY), "sanity/both"),
    "td3": (TD3, TD3Config(**REPLAY), "sanity/both"),
    "dqn": (DQN, DQNConfig(**REPLAY, train_every=1), "CartPole-v1"),
    "dqn-all": (
        DQN,
        DQNConfig(**REPLAY, train_every=1, n_step=3, prioritised=True, returns="c51", head="dueling"),
        "CartPole-v1",
    ),
    "ppo": (PPO, PPOConfig(hidden=(8, 8), num_steps=20, num_minibatches=2, num_epochs=2), "CartPole-v1"),
    "ppo-continuous": (PPO, PPOConfig(hidden=(8, 8), num_steps=20, num_minibatches=2, num_epochs=2), "Pendulum-v1"),
}
every_agent = pytest.mark.parametrize("name", AGENTS)


def make(name: str, **how: Any) -> tuple[Any, Any]:
    kind, config, env_name = AGENTS[name]
    env = models.here(make_env, ENVS.get(name, env_name), seed=1, num_envs=2)
    return env, models.here(kind, env.observation_space, env.action_space, config, num_envs=2, seed=0, **how)


ENVS = {"sac": "Pendulum-v1", "td3": "Pendulum-v1"}


def weights(agent: Any) -> list[Tensor]:
    return [p.detach().clone() for network in agent.networks.values() for p in network.parameters()]


@every_agent
def test_steps_bear_the_names_of_optimizers_and_every_network_can_be_run(name: str) -> None:
    env, agent = make(name)
    assert agent.steps.keys() == agent.optimizers.keys() - {"alpha"}
    assert agent.forward.keys() == agent.networks.keys()
    train(env, agent, 50)
    batch = agent.peek(5, models.generator())
    ctx = context(agent)
    for network, module in agent.networks.items():
        output = ctx.forward[network](module, batch)
        assert output.shape[0] == 5
        inputs = (batch.obs, batch.action) if "critic_" in network else (batch.obs,)
        direct = module(*inputs)
        expected = direct if isinstance(direct, Tensor) else torch.cat(tuple(direct), -1)
        assert torch.equal(output, expected)
        other = copy.deepcopy(module)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        assert not ctx.forward[network](other, batch).detach()[..., :1].any()
    assert ctx.steps is agent.steps
    assert ctx.state_value(batch.obs).shape == (5,)


@every_agent
@pytest.mark.slow_off_the_cpu
def test_looking_at_data_changes_nothing_and_is_the_same_after_resuming(name: str) -> None:
    (env, plain), (other_env, watched) = make(name), make(name)
    seen: list[Any] = []

    def looking(agent: Any) -> Callable[[], bool]:
        def look() -> bool:
            if agent.env_steps:
                seen.append(agent.peek(4, models.generator(len(seen))))
                if hasattr(agent, "state_value"):
                    agent.state_value(seen[-1].obs)
            return False

        return look

    train(env, plain, 90)
    train(other_env, watched, 90, stop=looking(watched))
    assert len(seen) > 20
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(watched), strict=True))
    resumed = make(name)[1]
    resumed.load_state_dict(plain.state_dict())
    if hasattr(plain, "buffer"):
        resumed.buffer.load_state_dict(plain.buffer.state_dict())
    for one in (plain, watched, resumed):
        batch = one.peek(16, models.generator(5))
        first = plain.peek(16, models.generator(5))
        assert vars(batch).keys() == vars(first).keys()
        for field, value in vars(first).items():
            assert (value is None) == (getattr(batch, field) is None)
            assert value is None or torch.equal(value, getattr(batch, field)), field


@every_agent
def test_there_is_nothing_to_look_at_before_the_first_step(name: str) -> None:
    _, agent = make(name)
    with pytest.raises(ValueError, match=r"nothing to look at.*: wait for the first step"):
        agent.peek(4, models.generator())


def test_a_rollout_is_looked_at_while_it_is_overwritten() -> None:
    """After the update rows 0 to 2 are new, the others of the rollout before; ages count back from the newest."""
    env, agent = make("ppo")
    train(env, agent, 2 * 23)
    assert (agent.rollout.num_rows, agent.rollout.num_known) == (3, 20)
    batch = agent.peek(200, models.generator())
    row = batch.index // 2
    assert set(row.tolist()) == set(range(20))
    assert torch.equal(batch.age, (2 - row) % 20 + 1)
    assert batch.age[row == 2].eq(1).all()
    assert batch.age[row == 3].eq(20).all()
    assert torch.equal(batch.obs, agent.rollout.flat("obs")[batch.index])


@pytest.mark.parametrize("name", ["sac", "td3", "dqn", "ppo"])
def test_terms_in_updates_are_logged_and_stop_training_when_not_finite(name: str) -> None:
    env, agent = make(name)
    generator, logged = models.generator(), []
    for key, step in agent.steps.items():
        network = "actor" if key in ("actor", "ppo") else "critic_1" if key == "critic" else key
        initial = copy.deepcopy(agent.networks[network])
        reads = {"initial": initial}

        def pull(networks: Any, batch: Any, drawn: Any, network: str = network) -> Tensor:
            outputs = [agent.forward[network](networks[n], drawn) for n in (network, "initial")]
            return (outputs[0] - outputs[1].detach()).square().mean() + 0 * batch.obs.float().mean()

        step.add(f"pull_{key}", pull, reads=reads, draw=lambda: agent.peek(6, generator))
    update = agent.update

    def logging() -> dict[str, Tensor]:
        logged.append(update())
        return logged[-1]

    agent.update = logging
    train(env, agent, 60)
    for key in agent.steps:
        values = [metrics[f"pull_{key}"].item() for metrics in logged if f"pull_{key}" in metrics]
        assert len(values) > 1
        assert values[0] == 0
        assert values[-1] > 0
    last = list(agent.steps)[-1]
    agent.steps[last].terms["bad"] = lambda networks, batch: batch.obs.float().mean() * math.nan
    with pytest.raises(FloatingPointError, match="bad is not finite"):
        models.learn_and_save(agent, sampled(agent))


def sampled(agent: Any) -> Any:
    """Return a batch to learn from, as the agent's update takes it."""
    if isinstance(agent, PPO):
        if agent.experience is None:
            agent._judge()
        return agent.experience[torch.arange(8)]
    return agent.sample()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_other_optimizers_step_eagerly_and_compiled(optimizer: str, compile: str) -> None:
    agents = []
    for way in ("off", compile):
        config = DQNConfig(**REPLAY, optimizer=optimizer, weight_decay=0.01, train_every=10)
        env = models.here(make_env, "CartPole-v1", seed=1, num_envs=2)
        agent = models.here(DQN, env.observation_space, env.action_space, config, num_envs=2, seed=0, compile=way)
        before = weights(agent)
        train(env, agent, 60)
        assert type(agent.optimizers["q"]).__name__.lower() == optimizer
        assert all(not torch.equal(a, b) for a, b in zip(before, weights(agent), strict=True))
        agents.append(agent)
    for a, b in zip(*map(weights, agents), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_states_of_0_1_0_of_a_rollout_are_read() -> None:
    env, agent = make("ppo")
    train(env, agent, 30)
    state = agent.state_dict()
    del state["rollout"]["num_rows"]
    other = make("ppo")[1]
    other.load_state_dict(state)
    assert other.rollout.num_rows == len(state["rollout"]["rows"]["reward"]) == 15


SPACE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def test_state_values_by_hand() -> None:
    agent = models.here(DQN, SPACE, spaces.Discrete(2), DQNConfig(**REPLAY))
    obs = models.normal(4, 3)
    assert torch.equal(agent.state_value(obs), agent.q(obs).max(-1).values)
    for kind, config in ((SAC, SACConfig(**REPLAY)), (TD3, TD3Config(**REPLAY))):
        agent = models.here(kind, SPACE, spaces.Box(-1, 1, (2,)), config)
        action = agent.act(obs, explore=False)
        both = torch.stack([agent.networks[f"critic_{i}"](obs, action) for i in (1, 2)])
        assert torch.equal(agent.state_value(obs), both.detach().min(0).values)
