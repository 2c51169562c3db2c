"""Rewards that fit a grid of returns (SimbaV2): the factor by a naive loop, targets, resume, compiled updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_amortized import assert_compiled_as_eager, assert_goes_on_to_the_bit, filled
from test_interventions import run_sac, small_sac
from test_optimism import agent_of

from plasticity.agents.rewards import FittedRewards
from plasticity.callback import Callback, Context

pytestmark = pytest.mark.usefixtures("everywhere")
ON_A_GRID: dict[str, Any] = {"optimism": 0.0, "normalize_rewards": True, "critic_returns": "c51", "num_atoms": 5,
                             "v_min": -5.0, "v_max": 5.0}  # fmt: skip


def naive(rewards: np.ndarray, ended: np.ndarray, gamma: float, bound: float) -> list[float]:
    """Return the factor after every step, from all discounted sums so far."""
    sums, seen, factors = np.zeros(rewards.shape[1]), list[float](), []
    for reward, end in zip(rewards, ended, strict=True):
        sums = gamma * sums + reward
        seen += sums.tolist()
        factors.append(1 / max(np.sqrt(np.var(seen) + 1e-8), np.abs(seen).max() / bound))
        sums = sums * ~end
    return factors


@pytest.mark.parametrize("bound", [5.0, float("inf")])
def test_factors_are_those_of_a_naive_loop(bound: float) -> None:
    draw = np.random.default_rng(0)
    rewards, ended = draw.normal(size=(40, 2)) + 3, draw.random((40, 2)) < 0.1
    fitted, found = FittedRewards(2, 0.9, bound).to(torch.get_default_device()), []
    for reward, end in zip(rewards, ended, strict=True):
        fitted.follow(torch.tensor(reward), torch.tensor(end))
        found.append(float(fitted.scale()))
    assert found == pytest.approx(naive(rewards, ended, 0.9, bound), rel=1e-9)


def test_targets_are_of_scaled_rewards_and_the_memory_keeps_them_whole() -> None:
    given: list[float] = []

    class Look(Callback):
        def on_step(self, ctx: Context, transition: Any) -> None:
            given.extend(transition.reward.tolist())

    agent, ctx, _ = run_sac([Look()], steps=30, normalize_rewards=True)
    batch = agent.buffer.sample(16)
    assert agent.updates > 5
    assert set(batch.reward.tolist()) <= set(given)
    factor = agent.reward_factor()
    assert factor == pytest.approx(float(agent.fitted.scale()))
    assert abs(factor - 1) > 0.01
    assert ctx.reward_factor() == factor
    noise, alpha = torch.zeros(16, 2), torch.tensor(0.0)
    later = torch.stack(
        [net(batch.next_obs, agent._sample(batch.next_obs, noise)[0]) for net in agent.targets.values()]
    )
    expected = factor * batch.reward + 0.99 * ~batch.terminated * later.amin(0)
    torch.testing.assert_close(agent.target_value(batch, alpha, noise), expected.detach())


def test_a_run_goes_on_to_the_bit() -> None:
    assert_goes_on_to_the_bit(filled(agent_of(**ON_A_GRID)), agent_of(seed=4, **ON_A_GRID))
    with pytest.raises(ValueError, match="saved with normalize_rewards=True, this agent has it the other way"):
        agent_of(optimism=0.0).load_state_dict(agent_of(optimism=0.0, normalize_rewards=True).state_dict())


@pytest.mark.on_cpu
def test_compiled_updates_are_the_eager_ones(as_traced: None) -> None:
    compiled, eager = (filled(agent_of(compile=how, **ON_A_GRID)) for how in ("on", "off"))
    assert_compiled_as_eager(compiled, eager, "critic")
    filled(compiled, 40), filled(eager, 40)  # graphs see the factor move
    assert_compiled_as_eager(compiled, eager, "critic")


def test_a_grid_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="v_min < 0 < v_max with normalize_rewards"):
        small_sac(normalize_rewards=True, v_min=0.0)
