"""The amortized actor of SAC, and the point with four goals: numbers by hand, a plain twin of one update, resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_interventions import Recorder, Walk
from test_sac import ACTION, ACTION_SPACE, IMAGE_SPACE, OBS_SPACE, SMALL, make_batch, make_transition
from torch import Tensor

from plasticity import Measure
from plasticity.agents.policies import CLOSEST, Amortized, diversity
from plasticity.agents.sac import SAC, SACConfig
from plasticity.agents.train import context, train
from plasticity.envs import make_env
from plasticity.envs.goals import GOALS, FourGoals, goal_of
from plasticity.interventions import ReDo
from plasticity.testing import check_environment

pytestmark = pytest.mark.usefixtures("everywhere")


def agent_of(seed: int = 0, space: Any = OBS_SPACE, compile: str = "auto", **changes: Any) -> SAC:
    settings = {**vars(SMALL), "actor": "amortized", "latent_dim": 4, "num_pairs": 3, **changes}
    return models.here(SAC, space, ACTION_SPACE, SACConfig(**settings), seed=seed, compile=compile)


def test_known_numbers_of_diversity() -> None:
    one, other = torch.zeros(2, 2, 2), torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, math.e]]])
    found = diversity(one, other).tolist()
    assert found[0] == pytest.approx(math.log(5) / 2, abs=1e-5)
    assert found[1] == pytest.approx((math.log(CLOSEST) + 1) / 2, abs=1e-5)
    assert Amortized(SACConfig(diversity_target=0.2), 4).target == pytest.approx(math.log(0.4))
    assert agent_of().target_entropy == pytest.approx(math.log(0.2 * math.sqrt(ACTION)))
    assert agent_of(target_entropy=-1.0).target_entropy == -1.0


def layers(network: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(m.weight.numpy(force=True).astype(float), m.bias.numpy(force=True).astype(float))
            for m in network.modules() if isinstance(m, torch.nn.Linear)]  # fmt: skip


def plain(network: Any, x: np.ndarray, squash: bool) -> np.ndarray:
    *hidden, (weight, bias) = layers(network)
    for w, b in hidden:
        x = np.maximum(x @ w.T + b, 0)
    x = x @ weight.T + bias
    return np.tanh(x) if squash else x[..., 0]


def test_losses_are_those_of_a_plain_implementation() -> None:
    """Targets, both losses and the temperature's gradient, sample by sample in numpy."""
    agent, batch, n = agent_of(), make_batch(8, models.generator(1)), 3
    noise = agent.policy.noises(2, 8, models.generator(2))
    alpha = torch.tensor(0.3)
    obs, action, next_obs = (t.numpy(force=True).astype(float) for t in (batch.obs, batch.action, batch.next_obs))
    z, next_z = noise.numpy(force=True).astype(float)

    def acts(states: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, d = [], []
        for s, latent in zip(states, latents, strict=True):
            f = [plain(agent.networks["actor"], np.concatenate([s, one]), True) for one in latent]
            first.append(f[0])
            d.append(np.mean([np.log(np.linalg.norm(f[1 + i] - f[1 + n + i]) + 1e-5) for i in range(n)]))
        return np.array(first), np.array(d)

    def q(networks: Any, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        both = np.concatenate([states, actions], 1)
        return np.array([plain(networks[key], both, False) for key in ("critic_1", "critic_2")])

    a2, d2 = acts(next_obs, next_z)
    done = batch.terminated.numpy(force=True)
    y = batch.reward.numpy(force=True) + 0.99 * ~done * (q(agent.targets, next_obs, a2).min(0) + 0.3 * d2)
    critic = 0.5 * ((q(agent.networks, obs, action) - y) ** 2).mean(1).sum()
    a1, d1 = acts(obs, z)
    actor = -(q(agent.networks, obs, a1).min(0) + 0.3 * d1).mean()
    found, _ = agent.critic_loss(batch, alpha, noise[1])
    assert found.item() == pytest.approx(critic, rel=1e-4)
    loss, metrics = agent.actor_loss(batch, alpha, noise[0])
    assert loss.item() == pytest.approx(actor, rel=1e-4)
    assert metrics["diversity"].item() == pytest.approx(d1.mean(), rel=1e-4)


def filled(agent: SAC, steps: int = 20) -> SAC:
    for _ in range(steps):
        agent.observe(make_transition(agent, models.generator(agent.env_steps)))
    return agent


def assert_goes_on_to_the_bit(agent: SAC, twin: SAC) -> None:
    """A twin that loads the state of a filled agent in the middle of training acts and learns as that one goes on."""
    for _ in range(3):
        agent.update()
    twin.load_state_dict(agent.state_dict())
    twin.buffer = copy.deepcopy(agent.buffer)
    obs = torch.zeros(1, OBS_SPACE.shape[0])
    for _ in range(3):
        assert torch.equal(agent.act(obs, explore=True), twin.act(obs, explore=True))
        one, other = agent.update(), twin.update()
        assert all(torch.equal(one[key], other[key]) for key in one)


def assert_compiled_as_eager(compiled: SAC, eager: SAC, step: str) -> None:
    """Filled agents, one compiled, have the same metrics for five updates, and the step has a graph."""
    for _ in range(5):
        one, other = compiled.update(), eager.update()
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-5)
    assert compiled.steps[step]._graphs


def test_the_temperature_rises_where_actions_are_too_much_alike() -> None:
    agent = filled(agent_of(diversity_target=1e6))
    before = agent.log_alpha.item()
    metrics = agent.update()
    assert agent.log_alpha.item() > before
    assert "entropy" not in metrics
    assert {"diversity", "alpha", "alpha_loss"} <= metrics.keys()


def test_exploring_draws_actions_and_the_best_one_is_always_the_same() -> None:
    agent = filled(agent_of())
    obs = torch.zeros(6, OBS_SPACE.shape[0])
    found = agent.act(obs, explore=True)
    assert found.shape == (6, ACTION)
    assert len({tuple(row) for row in found.tolist()}) == 6
    best = agent.act(obs, explore=False)
    assert torch.equal(best, agent.act(obs, explore=False))
    assert len({tuple(row) for row in best.tolist()}) == 1


@pytest.mark.parametrize("changes", [{}, {"critic_returns": "quantiles", "num_atoms": 5}, {"norm": "layer"}])
def test_a_run_goes_on_to_the_bit(changes: dict[str, Any]) -> None:
    assert_goes_on_to_the_bit(filled(agent_of(**changes)), agent_of(seed=4, **changes))


@pytest.mark.on_cpu
def test_compiled_updates_are_the_eager_ones(as_traced: None) -> None:
    assert_compiled_as_eager(filled(agent_of(compile="on")), filled(agent_of(compile="off")), "actor")


def test_images_have_latents_behind_the_convolutions() -> None:
    agent = agent_of(space=IMAGE_SPACE, network="minatar_cnn")
    obs = torch.zeros(3, *IMAGE_SPACE.shape, dtype=torch.uint8)
    assert agent.networks["actor"](obs, torch.rand(3, 7, 4)).shape == (3, 7, ACTION)
    assert agent.networks["actor"](obs).shape == (3, ACTION)


@pytest.mark.slow_off_the_cpu
def test_a_method_and_a_monitor_see_its_neurons() -> None:
    config = SACConfig(
        actor="amortized", hidden=(12, 10), batch_size=8, learning_starts=8, buffer_size=200, num_pairs=2
    )
    agent, writer = models.here(SAC, spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,)), config, num_envs=2), Recorder()
    redo = ReDo(every=3, threshold=0.4, cap=0.2)
    train(Walk(), agent, 40, [redo, Measure(["dormancy"], every=5)], context(agent, writer=writer))
    assert redo.counts["recycled"] > 0
    assert "plasticity/actor/dormancy/all" in writer.scalars


@pytest.mark.parametrize(
    "wrong", [{"latent_dim": 0}, {"num_pairs": 0}, {"diversity_target": 0.0}, {"actor": "diffusion"}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SACConfig(**wrong)


# -- the point with four goals -----------------------------------------------------------------------------------------


@pytest.mark.on_cpu
def test_the_point_keeps_the_contract_of_environments() -> None:
    check_environment("goals/four")


@pytest.mark.on_cpu
def test_every_goal_can_be_reached_and_is_counted() -> None:
    env = FourGoals()
    for k, goal in enumerate(GOALS):
        env.reset(seed=k)
        taken, terminated = 0, False
        while not terminated:
            taken += 1
            obs, reward, terminated, _, info = env.step(np.sign(goal.round(3)))
            if not terminated:
                assert reward == pytest.approx(-min(np.linalg.norm(GOALS - env.position, axis=1)))
        assert (reward, info["goal"], goal_of(obs)) == (10.0, k, k)
        assert 5 <= taken <= 7
    assert env.reached.tolist() == [1, 1, 1, 1]
    assert goal_of([0.0, 0.0]) == -1
    env.position = np.array([0.98, -0.98])
    assert env.step(np.array([9.0, -9.0]))[0].tolist() == [1.0, -1.0]


@pytest.mark.on_cpu
def test_training_on_it_ends_in_goals() -> None:
    env = make_env("goals/four", num_envs=2, seed=0)
    obs = env.reset()
    for _ in range(40):
        step = env.step(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        ends = step.terminated.tolist()
        found: list[Tensor] = [row for row, end in zip(step.next_obs, ends, strict=True) if end]
        assert {goal_of(row) for row in found} <= {0, 3}
        obs = env.reset(step.terminated | step.truncated)
    assert obs.shape == (2, 2)
    env.close()
