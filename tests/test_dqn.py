"""DQN against stable-baselines3, typed-out numbers, and problems with known values."""

import copy
import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from plasticity.agents import AGENTS
from plasticity.agents.bodies import make_body
from plasticity.agents.c51 import C51, project
from plasticity.agents.dqn import DQN, DQNConfig, make_network, take
from plasticity.agents.networks import DuelingQNetwork
from plasticity.agents.replay import Batch
from plasticity.agents.returns import Mean
from plasticity.agents.train import train
from plasticity.envs import make_env
from plasticity.envs.sanity import values

pytestmark = pytest.mark.usefixtures("everywhere")

OBS, ACTIONS = 4, 3
OBS_SPACE = spaces.Box(-math.inf, math.inf, (OBS,))
IMAGE_SPACE = spaces.Box(0, 255, (2, 10, 10), np.uint8)
ACTION_SPACE = spaces.Discrete(ACTIONS)
SMALL = DQNConfig(hidden=(16, 16), batch_size=8, learning_starts=4, buffer_size=64, train_every=1, target_every=3)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mse": {"loss": "mse"},
    "double": {"double": True},
    "n_step": {"n_step": 3},
    "dueling": {"head": "dueling"},
    "distributional": {"returns": "c51"},
    "prioritised": {"prioritised": True},
    "all": {"double": True, "n_step": 3, "head": "dueling", "returns": "c51", "prioritised": True},
}
every_option = pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS.keys())


def small_agent(seed: int = 0, num_envs: int = 1, obs_space: spaces.Space = OBS_SPACE, **changes: Any) -> DQN:
    config = DQNConfig(**{**vars(SMALL), **changes})
    return models.here(DQN, obs_space, ACTION_SPACE, config, num_envs=num_envs, seed=seed)


def make_batch(size: int, seed: int = 0) -> Batch:
    generator = models.generator(seed)
    obs, next_obs = torch.randn(2, size, OBS, generator=generator)
    action = torch.randint(ACTIONS, (size,), generator=generator)
    reward = 3 * torch.randn(size, generator=generator)  # some errors are beyond 1, where huber is not the square
    terminated = torch.rand(size, generator=generator) < 0.3
    index = torch.arange(size)
    return Batch(obs, action, reward, next_obs, terminated, index + 1, index)


def make_transition(agent: DQN, generator: torch.Generator) -> SimpleNamespace:
    obs, next_obs = torch.randn(2, agent.num_envs, OBS, generator=generator)
    ends = torch.rand(agent.num_envs, generator=generator)
    return SimpleNamespace(
        obs=obs,
        action=agent.act(obs, explore=True),
        reward=torch.randn(agent.num_envs, generator=generator),
        next_obs=next_obs,
        terminated=ends < 0.1,
        truncated=(ends >= 0.1) & (ends < 0.2),
    )


def run(agent: DQN, num_steps: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    metrics = []
    for _ in range(num_steps):
        agent.observe(make_transition(agent, generator))
        while agent.ready():
            metrics.append(agent.update())
    return metrics


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    if isinstance(tree, list | tuple):
        return [leaf for item in tree for leaf in leaves(item)]
    return [tree]


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


# --- stable-baselines3, the second implementation ---


class BoxEnv(gymnasium.Env):
    observation_space, action_space = OBS_SPACE, ACTION_SPACE


@pytest.mark.parametrize("max_grad_norm", [10.0, 0.3])
@pytest.mark.parametrize("multi_step", [False, True])
def test_updates_equal_stable_baselines3(
    monkeypatch: pytest.MonkeyPatch, multi_step: bool, max_grad_norm: float
) -> None:
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

    agent = small_agent(hidden=(64, 64), lr=1e-3, max_grad_norm=max_grad_norm, seed=3)
    options = {"learning_rate": 1e-3, "max_grad_norm": max_grad_norm, "device": "cpu", "buffer_size": 10}
    with torch.device("cpu"):
        twin = sb3.DQN("MlpPolicy", BoxEnv(), **options)
    twin.set_logger(configure(None, []))
    logged: dict[str, float] = {}
    monkeypatch.setattr(twin.logger, "record", lambda key, value, **_: logged.__setitem__(key, value))
    with torch.no_grad():
        agent.targets["q"].q[-1].bias += 0.5  # a target that is not the network
        for ours, theirs in ((agent.networks["q"], twin.q_net), (agent.targets["q"], twin.q_net_target)):
            for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                other.copy_(mine)
    start = [p.detach().clone() for p in agent.networks["q"].parameters()]

    for count in range(1, 6):
        batch = make_batch(64, count)
        if multi_step:
            batch.discount = 0.99 ** torch.randint(1, 4, (64,), generator=models.generator(count))
        data = as_sb3(models.on("cpu", batch))
        monkeypatch.setattr(twin.replay_buffer, "sample", lambda *_, data=data, **__: data)
        metrics = agent.learn(batch)
        with torch.device("cpu"):
            twin.train(gradient_steps=1, batch_size=64)
        assert metrics["q_loss"].item() == pytest.approx(float(logged["train/loss"]), abs=1e-6)
        for mine, other, before in zip(agent.networks["q"].parameters(), twin.q_net.parameters(), start, strict=True):
            assert (mine.cpu() - other).abs().max() <= 1e-6
            assert (mine - before).abs().max() > 5e-4


def as_sb3(batch: Batch) -> SimpleNamespace:
    return SimpleNamespace(
        observations=batch.obs,
        actions=batch.action[:, None],
        next_observations=batch.next_obs,
        rewards=batch.reward[:, None],
        dones=batch.terminated[:, None].float(),
        discounts=None if batch.discount is None else batch.discount[:, None],
    )


# --- typed-out numbers ---


def constant_agent(target: list[float], online: list[float], **changes: Any) -> DQN:
    """Network and target say the same of every observation."""
    agent = small_agent(gamma=0.9, **changes)
    with torch.no_grad():
        for network, q in ((agent.networks["q"], online), (agent.targets["q"], target)):
            for parameter in network.parameters():
                parameter.zero_()
            network.q[-1].bias.copy_(torch.tensor(q))
    return agent


def test_targets_that_were_replaced_lie_where_a_resumed_run_has_them() -> None:
    """Kernels may round by where a weight lies in memory, and a target of DQN waits long for its next move."""
    agent, generator = small_agent(target_every=10_000), torch.Generator(torch.get_default_device()).manual_seed(0)
    run(agent, 40, generator)
    for _ in range(2):
        agent.targets["q"] = copy.deepcopy(agent.targets["q"])
        for parameter in agent.targets["q"].parameters():
            parameter.data = parameter.data.clone()
        agent.update()
        places = [(p.data_ptr(), p.numel() * p.element_size()) for p in agent.targets["q"].parameters()]
        assert all(place + size == following for (place, size), (following, _) in pairwise(places))


def test_target_of_terminated_and_not_single_and_double() -> None:
    batch = make_batch(2)
    batch.reward, batch.terminated = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    plain = constant_agent([1.0, 5.0, 3.0], [0.0, 0.0, 2.0])
    assert plain.target_value(batch).tolist() == pytest.approx([1.0, 1 + 0.9 * 5])
    double = constant_agent([1.0, 5.0, 3.0], [0.0, 0.0, 2.0], double=True)
    assert double.target_value(batch).tolist() == pytest.approx([1.0, 1 + 0.9 * 3])
    batch.discount = torch.tensor([0.5, 0.25])
    assert plain.target_value(batch).tolist() == pytest.approx([1.0, 1 + 0.25 * 5])


def test_value_and_td_error() -> None:
    agent = constant_agent([1.0, 5.0, 3.0], [0.5, 0.0, 2.0])
    action = torch.tensor([0, 2])
    assert agent.value(torch.zeros(2, OBS), action).tolist() == [0.5, 2.0]
    transition = SimpleNamespace(
        obs=torch.zeros(2, OBS),
        action=action,
        reward=torch.tensor([1.0, 1.0]),
        next_obs=torch.zeros(2, OBS),
        terminated=torch.tensor([True, False]),
    )
    assert agent.td_error(transition).tolist() == pytest.approx([0.5, 1 + 0.9 * 5 - 2])


def test_losses_by_hand() -> None:
    output, target = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([1.5, 3.0, 2.0])
    losses, errors = Mean("huber").losses(output, target)
    assert losses.tolist() == [0.125, 2.5, 0.0]
    assert errors.tolist() == [-0.5, -3.0, 0.0]
    assert Mean("mse").losses(output, target)[0].tolist() == [0.25, 9.0, 0.0]


def test_importance_weights_scale_the_losses_and_errors_become_priorities() -> None:
    agent = constant_agent([0.0] * 3, [1.0] * 3, prioritised=True, priority_alpha=1.0)
    assert agent.buffer.priorities is not None
    batch = make_batch(3)
    batch.terminated[:] = True
    batch.reward, batch.weight = torch.tensor([1.5, 3.0, 1.0]), torch.tensor([1.0, 0.5, 0.1])
    assert agent.learn(batch)["q_loss"].item() == pytest.approx((0.125 + 0.5 * 1.5 + 0) / 3)
    assert agent.buffer.priorities.leaves[:3].tolist() == pytest.approx([0.5, 2.0, 0.0], abs=2e-6)


def test_take() -> None:
    output = torch.arange(12.0).view(2, 3, 2)
    assert take(output, torch.tensor([2, 0])).tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert take(output[..., 0], torch.tensor([2, 0])).tolist() == [4.0, 6.0]


def test_dueling_by_hand() -> None:
    config = DQNConfig(hidden=(2,))
    body, value, advantage = (make_body(config, (2,), ()) for _ in range(3))
    network = DuelingQNetwork(body, value, advantage, 3)
    with torch.no_grad():
        for stream, weight, bias in (
            (network.value, [[1.0, 0.0]], [10.0]),
            (network.advantage, [[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]], [0.0, 0.0, 3.0]),
        ):
            layer = stream[-1]
            assert isinstance(layer, nn.Linear)
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    # V = 10 + x, A = (y, 2y, 3y + 3); for x = 1, y = 2: 11 + (2, 4, 9) - 5
    assert network(torch.tensor([[1.0, 2.0]])).tolist() == [[8.0, 10.0, 15.0]]


def test_dueling_advantages_average_to_nothing_atom_by_atom() -> None:
    config = DQNConfig(hidden=(8,), head="dueling", returns="c51")
    network, obs = make_network(config, (OBS,), ACTIONS, 5), torch.randn(6, OBS)
    assert isinstance(network, DuelingQNetwork)
    features = network.trunk(network.encoder(obs))
    assert network(obs).shape == (6, ACTIONS, 5)
    torch.testing.assert_close(network(obs).mean(1), network.value(features))


# --- C51 ---


def naive_projection(probability: Tensor, value: Tensor, support: Tensor) -> Tensor:
    """Bellemare et al. 2017, algorithm 1, with floor and ceiling, entry by entry."""
    result = torch.zeros(len(probability), len(support))
    low, spacing = support[0].item(), (support[1] - support[0]).item()
    for i in range(len(probability)):
        for j in range(probability.shape[1]):
            b = (min(max(value[i, j].item(), low), support[-1].item()) - low) / spacing
            below, above = math.floor(b), math.ceil(b)
            result[i, below] += probability[i, j] * ((above - b) if below != above else 1)
            result[i, above] += probability[i, j] * (b - below)
    return result


def test_projection_by_hand() -> None:
    support = torch.tensor([0.0, 1.0, 2.0])
    probability = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    value = torch.tensor([[0.5, 1.25, 9.0], [-7.0, 0.0, 2.0], [1.0, 1.5, 1.5]])
    # row 1: 0.2 halves between 0 and 1; 0.3 goes 3/4 to 1, 1/4 to 2; 0.5 is beyond the end
    expected = torch.tensor([[0.1, 0.325, 0.575], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(project(probability, value, support), expected)


def test_projection_equals_the_naive_loop_and_keeps_mass_and_mean() -> None:
    support = torch.linspace(-3, 5, 21)
    value = 8 * torch.rand(50, 21, generator=models.generator()) - 3
    value[:, :3] = torch.tensor([-10.0, 30.0, 1.0])
    probability = torch.randn(50, 21, generator=models.generator(1)).softmax(-1)
    result = project(probability, value, support)
    torch.testing.assert_close(result, naive_projection(probability, value, support), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.sum(-1), torch.ones(50))
    torch.testing.assert_close((result * support).sum(-1), (probability * value.clamp(-3, 5)).sum(-1))


def test_c51_by_hand() -> None:
    c51 = models.here(C51, -1.0, 1.0, 3)
    probability = torch.tensor([[0.25, 0.25, 0.5]])
    assert c51.q(probability.log()).item() == pytest.approx(0.25)
    # 0.5 + 0.5 z = (0, 0.5, 1): 0.25 at 0, half of 0.25 at 0 and at 1, 0.5 at 1
    target = c51.target(torch.tensor([0.5]), torch.tensor([0.5]), probability.log())
    assert target[0].tolist() == pytest.approx([0.0, 0.375, 0.625])
    losses, errors = c51.losses(probability.log(), target)
    assert losses.item() == pytest.approx(-0.375 * math.log(0.25) - 0.625 * math.log(0.5))
    assert torch.equal(losses, errors)
    # after a termination the discount is 0: all mass at the reward
    ended = c51.target(torch.tensor([1.0]), torch.tensor([0.0]), probability.log())
    assert ended[0].tolist() == pytest.approx([0.0, 0.0, 1.0])


# --- problems with known values ---


CASES = [(name, "plain") for name in ("constant", "observation", "action")]
CASES += [(name, option) for name in ("discount", "both", "clock") for option in OPTIONS]


@pytest.mark.parametrize(("name", "option"), CASES)
@pytest.mark.on_real_devices
@pytest.mark.some(10)
def test_learns_the_known_values(name: str, option: str) -> None:
    env = make_env(f"sanity/{name}", num_envs=8, seed=0)
    gamma = 0.5
    config = DQNConfig(
        gamma=gamma,
        lr=5e-3,
        hidden=(32,),
        batch_size=32,
        learning_starts=64,
        buffer_size=2048,
        train_every=8,
        target_every=10,
        priority_steps=1000,
        exploration_steps=1,
        epsilon_end=0.5,
        v_min=-3,
        v_max=3,
        **OPTIONS[option],
    )
    agent = models.here(DQN, env.observation_space, env.action_space, config, num_envs=8, seed=0)
    train(env, agent, 64 + 8 * 120)
    truth = models.on(models.place(), values(f"sanity/{name}", gamma))
    torch.testing.assert_close(agent.q(truth.obs), truth.q, rtol=0, atol=0.15)
    best = truth.q == truth.v[:, None]
    assert best.gather(1, agent.act(truth.obs, explore=False)[:, None]).all()


# --- the agent in a loop ---


@pytest.mark.on_real_devices
def test_epsilon_falls_linearly_and_set_noise_moves_its_end() -> None:
    agent = small_agent(epsilon_start=0.9, epsilon_end=0.1, exploration_steps=100)
    found = []
    for agent.env_steps in (0, 25, 50, 100, 1000):
        found.append(agent.epsilon)
    assert found == pytest.approx([0.9, 0.7, 0.5, 0.1, 0.1])
    agent.set_noise(0.3)
    assert agent.epsilon == pytest.approx(0.3)
    agent.env_steps = 50
    assert agent.epsilon == pytest.approx(0.6)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"dqn: exploration noise is a probability in \[0, 1\]"):
            agent.set_noise(wrong)
    assert small_agent(exploration_steps=0, epsilon_end=0.2).epsilon == pytest.approx(0.2)


def test_beta_rises_to_one() -> None:
    agent = small_agent(priority_beta=0.4, priority_steps=10)
    found = []
    for agent.env_steps in (0, 5, 10, 50):
        found.append(agent.beta)
    assert found == pytest.approx([0.4, 0.7, 1.0, 1.0])


def test_actions_are_random_with_probability_epsilon_and_greedy_without_explore() -> None:
    agent = constant_agent([0.0] * 3, [0.0, 1.0, 0.5], epsilon_end=0.3, exploration_steps=0)
    obs = torch.zeros(30_000, OBS)
    greedy = agent.act(obs, explore=False)
    assert greedy.dtype == torch.int64
    assert greedy.unique().tolist() == [1]
    counts = torch.bincount(agent.act(obs, explore=True), minlength=3) / len(obs)
    assert counts.tolist() == pytest.approx([0.1, 0.8, 0.1], abs=0.01)
    agent.set_noise(1.0)
    counts = torch.bincount(agent.act(obs, explore=True), minlength=3) / len(obs)
    assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    before = agent.generators["act"].get_state()
    agent.act(obs, explore=False)
    assert torch.equal(before, agent.generators["act"].get_state())


@pytest.mark.parametrize(
    ("num_envs", "train_every", "updates_per_train", "expected"),
    # 30 steps of which the first 4 (learning_starts) bring nothing
    [(1, 1, 1, 26), (1, 4, 1, 6), (1, 10, 7, 14), (4, 10, 1, 11), (4, 1, 1, 116)],
)
@pytest.mark.on_real_devices
def test_rounds_of_updates(num_envs: int, train_every: int, updates_per_train: int, expected: int) -> None:
    agent = small_agent(num_envs=num_envs, train_every=train_every, updates_per_train=updates_per_train)
    assert len(run(agent, 30, models.generator())) == expected
    assert agent.updates == expected
    assert agent.env_steps == 30 * num_envs


@pytest.mark.parametrize(("tau", "expected"), [(1.0, 1.0), (0.25, 0.25)])
def test_target_moves_at_every_third_update(tau: float, expected: float) -> None:
    agent = small_agent(target_every=3, target_tau=tau)
    generator = models.generator()
    run(agent, 4, generator)
    start = agent.targets["q"].q[0].weight.clone()
    run(agent, 2, generator)
    assert torch.equal(agent.targets["q"].q[0].weight, start)
    run(agent, 1, generator)
    network = agent.networks["q"].q[0].weight
    assert not torch.equal(network, start)
    torch.testing.assert_close(agent.targets["q"].q[0].weight, start + expected * (network - start).detach())


@every_option
def test_same_seed_same_numbers_whatever_the_global_generator_does(changes: dict[str, Any]) -> None:
    first = run(small_agent(seed=5, **changes), 20, models.generator())
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = run(small_agent(seed=5, **changes), 20, models.generator())
    assert torch.equal(before, torch.get_rng_state())
    assert len(first) == 16
    assert_same(first, second)
    other = run(small_agent(seed=6, **changes), 20, models.generator())
    assert not torch.equal(first[0]["q_loss"], other[0]["q_loss"])


@every_option
def test_resumed_run_continues_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    changes = {**changes, "train_every": 4, "updates_per_train": 2}
    stream = models.generator()
    agent = small_agent(num_envs=3, **changes)
    agent.set_noise(0.4)
    run(agent, 10, stream)
    torch.save({"agent": agent.state_dict(), "buffer": agent.buffer.state_dict()}, tmp_path / "agent.pt")
    resumed_stream = models.generator()
    resumed_stream.set_state(stream.get_state())
    expected = run(agent, 15, stream)
    assert len(expected) > 10

    resumed = small_agent(seed=9, num_envs=3, **changes)
    state = torch.load(tmp_path / "agent.pt", weights_only=True)
    resumed.load_state_dict(state["agent"])
    resumed.buffer.load_state_dict(state["buffer"])
    assert_same(run(resumed, 15, resumed_stream), expected)
    assert_same(resumed.state_dict(), agent.state_dict())


def test_state_dict_is_a_copy_in_both_directions() -> None:
    agent, stream = small_agent(), models.generator()
    run(agent, 8, stream)
    state = agent.state_dict()
    saved = copy.deepcopy(state)
    other = small_agent(seed=1)
    other.load_state_dict(state)
    run(agent, 3, stream)
    run(other, 8, stream)
    assert_same(state, saved)


@every_option
def test_metrics_are_detached_tensors(changes: dict[str, Any]) -> None:
    agent = small_agent(**changes)
    (metrics,) = run(agent, 5, models.generator())
    assert set(metrics) == {"q_loss", "q_mean", "grad_norm", "epsilon"}
    for value in metrics.values():
        assert isinstance(value, Tensor)
        assert value.shape == ()
        assert not value.requires_grad


def test_gradients_are_clipped_and_only_the_network_has_any() -> None:
    agent = small_agent(max_grad_norm=1e-3)
    metrics = agent.learn(make_batch(8))
    gradients = [p.grad for p in agent.networks["q"].parameters()]
    total = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    assert metrics["grad_norm"].item() > 1e-2
    assert total.item() == pytest.approx(1e-3, rel=1e-3)
    assert all(p.grad is None for p in agent.targets["q"].parameters())


def test_hooks_on_the_network_change_nothing_and_frozen_parameters_stay_frozen() -> None:
    plain, hooked = small_agent(), small_agent()
    calls: list[str] = []
    for module in hooked.networks["q"].modules():
        module.register_forward_hook(lambda *_: calls.append("forward"))
    for parameter in hooked.networks["q"].parameters():
        parameter.register_hook(lambda _: calls.append("gradient"))
    for agent in (plain, hooked):
        agent.networks["q"].q[0].bias.requires_grad_(False)
    frozen = plain.networks["q"].q[0].bias.clone()
    for _ in range(3):
        assert_same(plain.learn(make_batch(8)), hooked.learn(make_batch(8)))
    assert_same(plain.state_dict(), hooked.state_dict())
    assert calls.count("gradient") == 3 * 6 - 3
    assert torch.equal(plain.networks["q"].q[0].bias, frozen)


@every_option
def test_images(changes: dict[str, Any]) -> None:
    config = {"network": "minatar_cnn", "hidden": (16,), **changes}
    agent = small_agent(num_envs=2, obs_space=IMAGE_SPACE, **config)
    generator = models.generator()
    obs = torch.randint(256, (2, 2, 10, 10), generator=generator, dtype=torch.uint8)
    for _ in range(6):
        step = make_transition(agent_like(2), generator)
        step.obs, step.action = obs, agent.act(obs, explore=True)
        step.next_obs = torch.randint(256, obs.shape, generator=generator, dtype=torch.uint8)
        agent.observe(step)
        obs = step.next_obs
    batch = agent.buffer.sample(4)
    assert batch.obs.dtype == batch.next_obs.dtype == torch.uint8
    assert agent.update()["q_loss"].isfinite()
    assert agent.td_error(step).shape == agent.value(step.obs, step.action).shape == (2,)


def agent_like(num_envs: int) -> Any:
    return SimpleNamespace(num_envs=num_envs, act=lambda obs, explore: torch.zeros(len(obs), dtype=torch.int64))


def test_running_norm_of_simba_sees_every_observation() -> None:
    agent = small_agent(network="simba", hidden=(8,), num_envs=2)
    seen = []

    generator = models.generator()
    for _ in range(5):
        step = make_transition(agent, generator)
        seen.append(step.obs)
        agent.observe(step)
    assert len(agent.norms) == 2
    for norm in agent.norms:
        torch.testing.assert_close(norm.mean, torch.cat(seen).double().mean(0))


# --- errors ---


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (OBS_SPACE, spaces.Box(-1, 1, (2,)), "^dqn needs a Discrete action space, found Box"),
        (OBS_SPACE, spaces.MultiDiscrete([2, 2]), "^dqn needs a Discrete action space, found MultiDiscrete"),
        (OBS_SPACE, spaces.Discrete(3, start=1), "^dqn needs actions counted from 0"),
        (spaces.Dict({"a": OBS_SPACE}), ACTION_SPACE, "^dqn needs observations that are vectors or uint8 images"),
        (spaces.Box(0, 1, (3, 8, 8)), ACTION_SPACE, "^dqn needs observations that are vectors or uint8 images"),
    ],
)
def test_unsupported_spaces(observation_space: spaces.Space, action_space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DQN(observation_space, action_space)


@every_option
@pytest.mark.parametrize("field", ["reward", "obs", "next_obs"])
def test_a_loss_that_is_not_finite_stops_training(field: str, changes: dict[str, Any]) -> None:
    agent, batch = small_agent(**changes), make_batch(8)
    batch.terminated[:] = False
    getattr(batch, field)[0] = math.nan
    with pytest.raises(FloatingPointError, match="dqn: q_loss is not finite at update 1"):
        models.learn_and_save(agent, batch)
    if agent.buffer.priorities is not None and agent.device.type == "cpu":  # others look at losses later
        assert agent.buffer.priorities.leaves.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 1.1},
        {"epsilon_end": -0.1},
        {"batch_size": 0},
        {"train_every": 0},
        {"target_tau": 0.0},
        {"n_step": 0},
        {"max_grad_norm": 0.0},
        {"loss": "l1"},
        {"num_atoms": 1},
        {"v_min": 10.0},
        {"learning_starts": 64},
        {"priority_alpha": 2.0},
    ],
)
def test_config_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        DQNConfig(**{**vars(SMALL), **changes})


def test_warm_up_must_fit_into_the_memory() -> None:
    with pytest.raises(ValueError, match="dqn: learning_starts 62 does not fit"):
        small_agent(learning_starts=62, num_envs=8)


def test_registry() -> None:
    assert AGENTS["dqn"] == (DQN, DQNConfig)
