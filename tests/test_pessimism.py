"""Pessimism of SAC and TD3: the pooled value, and BRO's quantile critics by loops over quantiles."""

from __future__ import annotations

import pytest
import torch
from test_interventions import run_sac, small_sac

from plasticity.agents.actor_critic import pooled
from plasticity.agents.sac import actor_loss

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    q = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
    assert pooled(q, 1.0).tolist() == [1.0, 2.0]
    assert pooled(q, 0.0).tolist() == [2.0, 3.5]
    assert pooled(q, 0.5).tolist() == [1.5, 2.75]
    log_prob, alpha = torch.tensor([0.5, -1.0]), torch.tensor(0.2)
    assert float(actor_loss(q, log_prob, alpha, 0.0)) == pytest.approx((0.1 - 2.0 - 0.2 - 3.5) / 2)
    with pytest.raises(ValueError, match="pessimism in"):
        small_sac(pessimism=1.5)


def test_the_quantile_critics_of_bro_by_loops() -> None:
    torch.manual_seed(0)
    agent, _, _ = run_sac([], steps=12, pessimism=0.0, critic_returns="quantiles", num_atoms=4)
    batch, alpha, noise = agent.buffer.sample(3), torch.tensor(0.3), torch.randn(3, 2)
    with torch.no_grad():
        loss = float(agent.critic_loss(batch, alpha, noise)[0])
        action, log_prob = agent._sample(batch.next_obs, noise)
        later = [target(batch.next_obs, action, True).tolist() for target in agent.targets.values()]
        now = [agent.networks[name](batch.obs, batch.action, True).tolist() for name in ("critic_1", "critic_2")]
    total = 0.0
    for quantiles in now:
        for b in range(3):
            entropy = float(alpha * log_prob[b])
            for j in range(4):
                mean = (later[0][b][j] + later[1][b][j]) / 2
                y = float(batch.reward[b]) + 0.99 * (1 - float(batch.terminated[b])) * (mean - entropy)
                for i in range(4):
                    error = y - quantiles[b][i]
                    huber = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
                    total += abs((i + 0.5) / 4 - (error < 0)) * huber / (3 * 4)
    assert loss == pytest.approx(total, rel=1e-5)
