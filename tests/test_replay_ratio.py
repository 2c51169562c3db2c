"""Adaptive replay ratio: when it switches, by hand; what agents owe; refusals; exact resume."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from gymnasium import spaces
from test_interventions import Recorder, Walk, run_sac, small_sac
from torch import nn

from plasticity.agents import DQN, PPO, DQNConfig, PPOConfig
from plasticity.agents.train import context, train
from plasticity.callback import Context, start
from plasticity.interventions import AdaptiveReplayRatio
from plasticity.interventions.replay_ratio import active_share

pytestmark = pytest.mark.usefixtures("everywhere")


def test_fau_is_the_share_of_entries_that_fire() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(4))
    h = torch.tensor([[1.0, 0, 0, 0.2], [0, 0, 2, 0.3], [3, 0, 0, 0.1]])  # golden numbers of M1
    assert active_share(net, lambda: net(h)) == pytest.approx(0.5)
    assert active_share(net, lambda: [net(h), net(-h[:1])]) == pytest.approx(6 / 16)  # of all passes


def test_it_switches_once_at_the_first_small_change() -> None:
    """FAU by check: 0.25, 0.75, 0.75; the network's only weights decide it."""
    net, ratios, writer = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 1)), [], Recorder()
    ctx = Context(
        {"critic_1": net}, {"critic": torch.optim.SGD(net.parameters(), 0.0)}, writer=writer,
        forward={"critic_1": lambda module, batch: module(batch)}, peek=lambda num, generator: torch.ones(num, 4),
        set_replay_ratio=ratios.append,
    )  # fmt: skip
    method = AdaptiveReplayRatio(check_every=2, batch_size=3)
    start([method], ctx)
    for active in (1, 3, 3, 3):
        with torch.no_grad():
            net[0].weight.copy_(torch.diag(torch.tensor([1.0 if i < active else -1.0 for i in range(4)])))
        for _ in range(2):
            method.on_update_end(ctx, {})
    assert ratios == [0.5, 0.5, 0.5, 2.0]
    assert [round(value, 6) for value in writer.scalars["interventions/replay_ratio/active"]] == [0.25, 0.75, 0.75]
    assert [row["ratio"] for row in writer.named("replay_ratio")] == [2.0]
    method.on_train_end(ctx)
    assert ratios[-1] is None


def dqn() -> DQN:
    config = DQNConfig(hidden=(8,), batch_size=8, learning_starts=8, buffer_size=100, train_every=4)
    return models.here(DQN, spaces.Box(-1, 1, (3,)), spaces.Discrete(2), config, num_envs=2)


@pytest.mark.parametrize("make", [small_sac, dqn])
def test_agents_owe_by_the_ratio_that_is_set(make: Any) -> None:
    agent = make()
    box = agent.config.__class__.__name__ == "SACConfig"

    def feed(steps: int) -> float:
        before = agent.updates_owed
        for _ in range(steps):
            obs = torch.zeros(2, 3)
            action = torch.zeros(2, 2) if box else torch.zeros(2, dtype=torch.int64)
            never = torch.zeros(2, dtype=torch.bool)
            row = {"obs": obs, "action": action, "reward": torch.zeros(2), "next_obs": obs}
            agent.observe(type("Row", (), {**row, "terminated": never, "truncated": never}))
        return agent.updates_owed - before

    feed(4)  # learning starts
    agent.set_replay_ratio(0.25)
    assert feed(6) == pytest.approx(3.0)
    agent.set_replay_ratio(2.0)
    assert feed(3) == pytest.approx(12.0)
    agent.set_replay_ratio(None)
    assert feed(4) == (8.0 if box else 2.0)
    with pytest.raises(ValueError, match="> 0, got 0"):
        agent.set_replay_ratio(0)


@pytest.mark.slow_off_the_cpu
def test_a_run_with_it_makes_as_many_updates_as_it_says() -> None:
    method = AdaptiveReplayRatio(low=0.5, high=1.5, eta=1.0, check_every=5, batch_size=8)
    agent, _, writer = run_sac([method], steps=60)
    first = 5 + 5  # updates until the second check, at 0.5 of the 54 steps from which is learned
    assert len(writer.named("replay_ratio")) == 1
    assert agent.updates == pytest.approx(first + 1.5 * (54 - first / 0.5), abs=3)
    assert agent.replay_ratio is None


def test_what_lacks_a_memory_is_refused() -> None:
    config = PPOConfig(num_steps=8, num_minibatches=2)
    agent = models.here(PPO, spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), config)
    with pytest.raises(ValueError, match="AdaptiveReplayRatio needs updates per environment step that can be set"):
        train(Walk(), agent, 4, [AdaptiveReplayRatio()], context(agent))
    with pytest.raises(ValueError, match="low > 0"):
        AdaptiveReplayRatio(low=-1.0)
