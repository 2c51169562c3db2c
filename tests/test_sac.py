"""SAC against stable-baselines3, typed-out numbers, and problems with known values."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from plasticity.agents import AGENTS
from plasticity.agents.replay import Batch
from plasticity.agents.sac import SAC, SACConfig, actor_loss, alpha_loss, critic_loss
from plasticity.agents.updates import Followers

pytestmark = pytest.mark.usefixtures("everywhere")

OBS, ACTION = 5, 3
OBS_SPACE = spaces.Box(-math.inf, math.inf, (OBS,))
ACTION_SPACE = spaces.Box(-1, 1, (ACTION,))
IMAGE_SPACE = spaces.Box(0, 255, (2, 5, 5), np.uint8)
SMALL = SACConfig(hidden=(16, 16), batch_size=8, learning_starts=4, buffer_size=64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_agent(seed: int = 0, num_envs: int = 1, **changes: Any) -> SAC:
    config = SACConfig(**{**vars(SMALL), **changes})
    return models.here(SAC, OBS_SPACE, ACTION_SPACE, config, num_envs=num_envs, seed=seed)


def make_batch(size: int, generator: torch.Generator) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    terminated = torch.rand(size, generator=generator) < 0.3
    index = torch.arange(size)
    action = torch.tanh(normal(size, ACTION))
    return Batch(normal(size, OBS), action, normal(size), normal(size, OBS), terminated, index + 1, index)


def make_transition(agent: SAC, generator: torch.Generator) -> SimpleNamespace:
    obs, next_obs = torch.randn(2, agent.num_envs, OBS, generator=generator)
    reward, action = torch.randn(agent.num_envs, generator=generator), agent.act(obs, explore=True)
    terminated = torch.rand(agent.num_envs, generator=generator) < 0.1
    return SimpleNamespace(
        obs=obs, action=action, reward=reward, next_obs=next_obs, terminated=terminated, truncated=~terminated
    )


def run(agent: SAC, num_steps: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
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


def stable_baselines3_twin(agent: SAC, monkeypatch: pytest.MonkeyPatch) -> Any:
    """stable-baselines3's SAC at its default sizes, with the weights of `agent`."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

    # stable-baselines3 casts observations to float32
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs)
    with torch.device("cpu"):
        twin = sb3.SAC("MlpPolicy", BoxEnv(), device="cpu", buffer_size=10)
    twin.set_logger(configure(None, []))
    with torch.no_grad():
        for ours, theirs in paired_networks(agent, twin).values():
            for mine, other in zip(ours, theirs, strict=True):
                other.copy_(mine)
    return twin


def paired_networks(agent: SAC, twin: Any) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    pairs = {
        "actor": (agent.networks["actor"], twin.actor),
        "critic_1": (agent.networks["critic_1"], twin.critic.qf0),
        "critic_2": (agent.networks["critic_2"], twin.critic.qf1),
        "target_1": (agent.targets["critic_1"], twin.critic_target.qf0),
        "target_2": (agent.targets["critic_2"], twin.critic_target.qf1),
    }
    parameters = {name: (list(a.parameters()), list(b.parameters())) for name, (a, b) in pairs.items()}
    return {**parameters, "log_alpha": ([agent.log_alpha], [twin.log_ent_coef])}


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_updates_equal_stable_baselines3(monkeypatch: pytest.MonkeyPatch, default_dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[default_dtype]
    agent = models.here(SAC, OBS_SPACE, ACTION_SPACE, SACConfig(critic_lr=3e-4, alpha_lr=3e-4), seed=3)
    twin = stable_baselines3_twin(agent, monkeypatch)
    start = {name: [p.detach().clone() for p in ours] for name, (ours, _) in paired_networks(agent, twin).items()}
    noise_source = models.generator()
    noise_source.set_state(agent.generators["update"].get_state())
    logged: dict[str, float] = {}
    monkeypatch.setattr(twin.logger, "record", lambda key, value, **_: logged.__setitem__(key, value))

    for count in range(1, 6):
        batch = make_batch(256, models.generator(count))
        metrics = agent.learn(batch)

        queue = list(torch.randn(2, 256, ACTION, generator=noise_source).cpu())  # for obs, then for next_obs
        monkeypatch.setattr("torch.distributions.normal._standard_normal", lambda *_, queue=queue, **__: queue.pop(0))
        data = as_sb3(models.on("cpu", batch))
        monkeypatch.setattr(twin.replay_buffer, "sample", lambda *_, data=data, **__: data)
        with torch.device("cpu"):
            twin.train(gradient_steps=1, batch_size=256)
        assert not queue

        same = {"critic_loss": "critic_loss", "actor_loss": "actor_loss", "alpha_loss": "ent_coef_loss"}
        for ours, theirs in {**same, "alpha": "ent_coef"}.items():
            assert metrics[ours].item() == pytest.approx(float(logged[f"train/{theirs}"]), abs=tolerance), ours
        if count in (1, 5):
            for name, (mine, other) in paired_networks(agent, twin).items():
                for p, q, p_start in zip(mine, other, start[name], strict=True):
                    assert (p.cpu() - q).abs().max() <= tolerance, (name, count)
                    # every tensor has moved, by much more than the tolerance (a target moves 0.005 times as far)
                    assert (p - p_start).abs().max() > (1e-6 if "target" in name else 2e-4), (name, count)


def as_sb3(batch: Batch) -> SimpleNamespace:
    return SimpleNamespace(
        observations=batch.obs,
        actions=batch.action,
        next_observations=batch.next_obs,
        rewards=batch.reward[:, None],
        dones=batch.terminated[:, None].to(batch.reward.dtype),
        discounts=None,
    )


# --- typed-out numbers ---


def constant_agent(**changes: Any) -> SAC:
    """Target critics say 2 and 3 everywhere; the policy has mean 0 and std 1."""
    agent = small_agent(gamma=0.9, init_alpha=0.5, learn_alpha=False, **changes)
    with torch.no_grad():
        for network in (*agent.targets.values(), agent.networks["actor"]):
            for parameter in network.parameters():
                parameter.zero_()
        for key, value in (("critic_1", 2.0), ("critic_2", 3.0)):
            agent.targets[key].q[-1].bias.fill_(value)
    return agent


def test_target_value_of_terminated_and_not() -> None:
    agent = constant_agent()
    batch = make_batch(2, models.generator())
    batch.reward, batch.terminated = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    # at action 0 log pi = 3 * -0.9189385; min Q = 2: 1 + 0.9 * (2 + 0.5 * 2.7568156) = 4.0405670
    target = agent.target_value(batch, torch.tensor(0.5), torch.zeros(2, ACTION))
    assert target.tolist() == pytest.approx([1.0, 4.040567], abs=1e-5)


def test_truncated_transitions_bootstrap() -> None:
    agent = constant_agent()
    one, no = torch.ones(1), torch.zeros(1, dtype=torch.bool)
    zeros = torch.zeros(1, OBS)
    agent.observe(
        SimpleNamespace(obs=zeros, action=zeros[:, :3], reward=one, next_obs=zeros, terminated=no, truncated=~no)
    )
    target = agent.target_value(agent.buffer.sample(1), torch.tensor(0.5), torch.zeros(1, ACTION))
    assert target.item() == pytest.approx(4.040567, abs=1e-5)


def test_losses_by_hand() -> None:
    q = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # 1/2 * [((1-2)^2 + (2-4)^2)/2 + ((3-2)^2 + (0-4)^2)/2] = 1/2 * (2.5 + 8.5)
    assert critic_loss(q, torch.tensor([2.0, 4.0])).item() == pytest.approx(5.5)
    # [(0.5 * -1 - 1) + (0.5 * 2 - 0)] / 2
    assert actor_loss(q, torch.tensor([-1.0, 2.0]), torch.tensor(0.5)).item() == pytest.approx(-0.25)
    # -0.3 * (mean(-1, 2) - 3)
    log_alpha = torch.tensor(0.3, requires_grad=True)
    loss = alpha_loss(log_alpha, -torch.tensor([-1.0, 2.0]).mean(), -3.0)
    assert loss.item() == pytest.approx(0.75)
    loss.backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad.item() == pytest.approx(2.5)


def test_alpha_falls_while_the_entropy_is_above_its_target_and_rises_below() -> None:
    for target_entropy, falls in ((-50.0, True), (50.0, False)):
        agent = small_agent(target_entropy=target_entropy)
        before = agent.log_alpha.item()
        agent.learn(make_batch(8, models.generator()))
        assert (agent.log_alpha.item() < before) == falls


def test_polyak() -> None:
    source, target = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        source.weight.fill_(10.0), source.bias.fill_(-1.0), target.weight.fill_(2.0), target.bias.fill_(0.0)
    followers = Followers({"a": source}, {"a": target})
    followers.move(0.25)
    assert (target.weight.item(), target.bias.item()) == (4.0, -0.25)
    assert source.weight.item() == 10.0
    source.weight.data = torch.full((1, 1), 20.0)  # other memory
    followers.move(0.5)
    assert (target.weight.item(), target.bias.item()) == (12.0, -0.625)
    followers.targets["a"] = copy.deepcopy(source)  # another module
    followers.move(0.5)
    assert (target.weight.item(), followers.targets["a"].weight.item()) == (12.0, 20.0)


def test_value_is_the_smaller_q() -> None:
    agent = small_agent()
    obs, action = torch.randn(4, OBS), torch.rand(4, ACTION)
    both = [agent.networks[key](obs, action).tolist() for key in ("critic_1", "critic_2")]
    value = agent.value(obs, action)
    assert value.tolist() == pytest.approx([min(pair) for pair in zip(*both, strict=True)])
    assert not value.requires_grad


# --- problems with known values ---


class OneStep:
    """num_envs copies of an episode of one step; `truncates` says how it ends; the reward is a function."""

    def __init__(self, reward: Any, *, truncates: bool, num_envs: int = 8) -> None:
        self.reward, self.truncates = reward, truncates
        self.generator, self.num_envs = models.generator(), num_envs

    def reset(self) -> Tensor:
        return 2.0 * torch.randint(2, (self.num_envs, 1), generator=self.generator) - 1  # -1 or 1

    def step(self, obs: Tensor, action: Tensor) -> SimpleNamespace:
        ends = torch.full((self.num_envs,), self.truncates)
        reward = self.reward(obs[:, 0], action[:, 0])
        return SimpleNamespace(obs=obs, action=action, reward=reward, next_obs=obs, terminated=~ends, truncated=ends)


def train(env: OneStep, num_updates: int, **changes: Any) -> SAC:
    config = {
        "hidden": (32, 32), "batch_size": 64, "learning_starts": 64, "buffer_size": 4096, "updates_per_step": 1 / 8,
        "actor_lr": 3e-3, "critic_lr": 3e-3, "init_alpha": 1e-3, "learn_alpha": False, **changes,
    }  # fmt: skip
    box = spaces.Box(-1, 1, (1,))
    agent = models.here(SAC, box, box, SACConfig(**config), num_envs=env.num_envs, seed=0)
    while agent.updates < num_updates:
        obs = env.reset()
        agent.observe(env.step(obs, agent.act(obs, explore=True)))
        while agent.ready():
            agent.update()
    return agent


def learned(agent: SAC) -> list[float]:
    """Return the learned values of the actions -0.5 and 0.5 at observation -1, then at 1."""
    obs, action = torch.tensor([[-1.0, -0.5], [-1.0, 0.5], [1.0, -0.5], [1.0, 0.5]]).split(1, 1)
    return agent.value(obs, action).tolist()


@pytest.mark.on_real_devices
def test_constant_reward_that_terminates_is_worth_one() -> None:
    agent = train(OneStep(lambda obs, _: torch.ones_like(obs), truncates=False), 400)
    assert learned(agent) == pytest.approx([1.0] * 4, abs=0.1)


@pytest.mark.on_real_devices
def test_constant_reward_that_truncates_is_worth_the_discounted_sum() -> None:
    env = OneStep(lambda obs, _: torch.ones_like(obs), truncates=True)
    agent = train(env, 800, gamma=0.8, target_tau=0.1)
    assert learned(agent) == pytest.approx([5.0] * 4, abs=0.25)


@pytest.mark.on_real_devices
def test_value_depends_on_observation_and_action() -> None:
    agent = train(OneStep(lambda obs, action: obs * action, truncates=False), 600)
    assert learned(agent) == pytest.approx([0.5, -0.5, -0.5, 0.5], abs=0.1)


@pytest.mark.on_real_devices
def test_policy_finds_the_rewarded_action() -> None:
    agent = train(OneStep(lambda obs, action: -((action - 0.5 * obs) ** 2), truncates=False), 800)
    assert agent.act(torch.tensor([[-1.0], [1.0]]), explore=False).flatten().tolist() == pytest.approx(
        [-0.5, 0.5], abs=0.1
    )


@pytest.mark.on_real_devices
def test_temperature_brings_the_entropy_to_its_target() -> None:
    env = OneStep(lambda obs, action: -((action - 0.5 * obs) ** 2), truncates=False)
    agent = train(env, 800, learn_alpha=True, init_alpha=0.1, alpha_lr=1e-2, target_entropy=-1.0)
    entropy = sum(agent.update()["entropy"].item() for _ in range(20)) / 20
    assert entropy == pytest.approx(-1.0, abs=0.3)


# --- other networks ---


def image_transition(agent: SAC, generator: torch.Generator) -> SimpleNamespace:
    """An image of one brightness; the reward is 1 where action and brightness agree in sign about the middle."""
    bright = torch.randint(2, (agent.num_envs, 1, 1, 1), generator=generator)
    obs = (255 * bright).to(torch.uint8).expand(-1, *IMAGE_SPACE.shape)
    action, yes = agent.act(obs, explore=True), torch.ones(agent.num_envs, dtype=torch.bool)
    reward = (2 * bright.flatten() - 1) * action[:, 0]
    return SimpleNamespace(obs=obs, action=action, reward=reward, next_obs=obs, terminated=yes, truncated=~yes)


@pytest.mark.on_real_devices
def test_images_stay_bytes_and_their_values_are_learned() -> None:
    config = SACConfig(
        network="minatar_cnn", hidden=(32,), batch_size=64, learning_starts=64, buffer_size=1024, actor_lr=3e-3,
        critic_lr=3e-3, init_alpha=1e-3, learn_alpha=False, updates_per_step=1 / 8,
    )  # fmt: skip
    agent = models.here(SAC, IMAGE_SPACE, spaces.Box(-1, 1, (1,)), config, num_envs=8)
    generator = models.generator()
    while agent.updates < 400:
        agent.observe(transition := image_transition(agent, generator))
        while agent.ready():
            agent.update()
    batch = agent.buffer.sample(4)
    assert batch.obs.dtype == batch.next_obs.dtype == torch.uint8
    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(-1, *IMAGE_SPACE.shape)
    actions = torch.tensor([[-0.5], [0.5], [-0.5], [0.5]])
    assert agent.value(images, actions).tolist() == pytest.approx([0.5, -0.5, -0.5, 0.5], abs=0.15)
    assert agent.act(images[::2], explore=False).flatten().tolist() == pytest.approx([-1, 1], abs=0.1)
    assert agent.td_error(transition).mean() < 0.15


@pytest.mark.on_real_devices
def test_every_network_shares_one_view_of_the_observations() -> None:
    agent = small_agent(network="simba", num_envs=2)
    run(agent, 30, models.generator())
    norms = [net.encoder for net in (*agent.networks.values(), *agent.targets.values())]
    seen = agent.buffer.storage["obs"][: len(agent.buffer)].double()
    assert len(norms) == 5
    assert agent.updates > 10
    for norm in norms:
        assert norm.count == len(seen) == 60
        torch.testing.assert_close(norm.mean, seen.mean(0))
        torch.testing.assert_close(norm.var, seen.var(0, correction=0))


@pytest.mark.on_real_devices
def test_statistics_of_observations_are_saved_with_the_agent() -> None:
    agent, stream = small_agent(network="simba"), models.generator()
    run(agent, 10, stream)
    other = small_agent(network="simba", seed=1)
    other.load_state_dict(agent.state_dict())
    other.buffer.load_state_dict(agent.buffer.state_dict())
    resumed = models.generator()
    resumed.set_state(stream.get_state())
    assert_same(run(other, 8, resumed), run(agent, 8, stream))
    assert_same(other.state_dict(), agent.state_dict())


@pytest.mark.slow_off_the_cpu
def test_critics_may_be_wider_than_the_actor() -> None:
    def widths(**changes: Any) -> list[int]:
        networks = small_agent(**changes).networks
        return [networks["actor"].mean.in_features, networks["critic_1"].q[-1].in_features]

    assert widths() == [16, 16]
    assert widths(critic_hidden=(24, 20)) == [16, 20]
    assert widths(critic_hidden=()) == [16, OBS + ACTION]
    assert widths(hidden=None) == [256, 256]
    assert widths(hidden=None, network="simba") == [128, 512]
    assert widths(network="bronet", critic_hidden=(8,)) == [16, 8]


# --- the agent in a loop ---


@pytest.mark.slow_off_the_cpu
def test_same_seed_same_numbers_whatever_the_global_generator_does() -> None:
    first = run(small_agent(seed=5), 20, models.generator())
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = run(small_agent(seed=5), 20, models.generator())
    assert torch.equal(before, torch.get_rng_state())
    assert len(first) == 16
    assert_same(first, second)
    other = run(small_agent(seed=6), 20, models.generator())
    assert not torch.equal(first[0]["critic_loss"], other[0]["critic_loss"])


@pytest.mark.parametrize("learn_alpha", [True, False])
def test_resumed_run_continues_bit_for_bit(tmp_path: Path, learn_alpha: bool) -> None:
    stream = models.generator()
    agent = small_agent(learn_alpha=learn_alpha, updates_per_step=0.3)
    run(agent, 11, stream)
    torch.save({"agent": agent.state_dict(), "buffer": agent.buffer.state_dict()}, tmp_path / "agent.pt")
    resumed_stream = models.generator()
    resumed_stream.set_state(stream.get_state())
    expected = run(agent, 15, stream)
    assert len(expected) > 2

    resumed = small_agent(seed=9, learn_alpha=learn_alpha, updates_per_step=0.3)
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


def test_resumed_without_memory_refills_it_before_learning() -> None:
    agent, stream = small_agent(), models.generator()
    run(agent, 10, stream)
    resumed = small_agent()
    resumed.load_state_dict(agent.state_dict())
    assert run(resumed, 4, stream) == []
    assert len(run(resumed, 3, stream)) == 3


def test_warm_up_then_policy_then_deterministic() -> None:
    agent, obs = small_agent(), torch.zeros(2000, OBS)
    random = agent.act(obs, explore=True)
    assert random.dtype == torch.float32
    assert random.shape == (2000, ACTION)
    assert random.abs().max() <= 1
    assert random.mean().item() == pytest.approx(0, abs=0.03)
    assert random.var().item() == pytest.approx(1 / 3, abs=0.02)  # uniform on [-1, 1]
    mean, log_std = agent.networks["actor"](obs)
    torch.testing.assert_close(agent.act(obs, explore=False), torch.tanh(mean).detach())  # numpy's tanh on the CPU
    agent.env_steps = agent.config.learning_starts
    sampled = torch.atanh(agent.act(obs, explore=True).double())
    torch.testing.assert_close(sampled.mean(0), mean[0].double(), rtol=0, atol=0.1)
    torch.testing.assert_close(sampled.std(0), log_std[0].exp().double(), rtol=0.1, atol=0)
    assert not agent.act(obs, explore=True).requires_grad


@pytest.mark.parametrize(
    ("num_envs", "updates_per_step", "expected"), [(1, 1.0, 26), (1, 0.1, 2), (2, 0.5, 28), (1, 3, 78)]
)
@pytest.mark.on_real_devices
def test_updates_owed(num_envs: int, updates_per_step: float, expected: int) -> None:
    agent = small_agent(num_envs=num_envs, updates_per_step=updates_per_step)
    assert len(run(agent, 30, models.generator())) == expected
    assert agent.updates == expected
    assert agent.env_steps == 30 * num_envs


def test_ten_tenths_of_an_update_are_one() -> None:
    agent = small_agent(updates_per_step=0.1)
    assert len(run(agent, 4 + 9, models.generator())) == 0
    assert len(run(agent, 1, models.generator())) == 1


@pytest.mark.on_real_devices
def test_updates_go_on_when_the_memory_is_full() -> None:
    agent = small_agent(num_envs=4, buffer_size=16, learning_starts=12)
    assert len(run(agent, 20, models.generator())) == 17 * 4


def test_metrics_are_detached_tensors() -> None:
    metrics = small_agent().learn(make_batch(8, models.generator()))
    assert set(metrics) == {"critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy", "q_mean"}
    for value in metrics.values():
        assert isinstance(value, Tensor)
        assert value.shape == ()
        assert not value.requires_grad


def test_fixed_alpha() -> None:
    agent = small_agent(learn_alpha=False, init_alpha=0.2)
    metrics = agent.learn(make_batch(8, models.generator()))
    assert set(agent.optimizers) == {"actor", "critic"}
    assert "alpha_loss" not in metrics
    assert agent.log_alpha.exp().item() == pytest.approx(0.2)


def test_critics_keep_the_gradient_of_their_own_loss() -> None:
    agent, batch = small_agent(), make_batch(8, models.generator())
    seen: dict[str, list[Tensor]] = {"hook": [], "step": []}
    weight = agent.networks["critic_1"].q[0].weight
    weight.register_hook(lambda gradient: seen["hook"].append(gradient.clone()))
    agent.optimizers["critic"].register_step_pre_hook(lambda *_: seen["step"].append(weight.grad.clone()))
    agent.learn(batch)
    assert len(seen["hook"]) == len(seen["step"]) == 1
    assert weight.grad is not None
    assert torch.equal(weight.grad, seen["step"][0])
    assert all(p.requires_grad for network in agent.networks.values() for p in network.parameters())
    assert all(p.grad is None for target in agent.targets.values() for p in target.parameters())


def test_hooks_on_the_networks_change_nothing_and_see_every_parameter_gradient() -> None:
    batch = make_batch(8, models.generator())
    plain, hooked = small_agent(), small_agent()
    calls: list[str] = []

    def on_forward(module: Any, inputs: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: calls.append("output"))

    for network in hooked.networks.values():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(on_forward)
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient: calls.append("parameter"))
            parameter.register_post_accumulate_grad_hook(lambda _: calls.append("accumulated"))
    for _ in range(3):
        assert_same(plain.learn(batch), hooked.learn(batch))
    assert_same(plain.state_dict(), hooked.state_dict())
    # parameters: actor 8, critics 6 each; outputs: critics 3 each in two passes, actor 4 in one
    assert calls.count("parameter") == calls.count("accumulated") == 3 * 20
    assert calls.count("output") == 3 * (6 * 2 + 4)


def test_frozen_parameters_stay_frozen() -> None:
    agent = small_agent()
    frozen = agent.networks["critic_1"].q[0].weight.requires_grad_(False)
    before = frozen.clone()
    agent.learn(make_batch(8, models.generator()))
    assert torch.equal(frozen, before)
    assert not frozen.requires_grad


# --- errors ---


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (
            OBS_SPACE,
            spaces.Discrete(3),
            r"^sac needs a one-dimensional Box action space, found Discrete\(3\): its policy",
        ),
        (OBS_SPACE, spaces.MultiDiscrete([2, 2]), "^sac .* action space, found MultiDiscrete"),
        (spaces.Dict({"a": OBS_SPACE}), ACTION_SPACE, "^sac needs observations .*, found Dict.*FlattenObservation"),
        (spaces.Box(0, 1, (2, 2)), ACTION_SPACE, "^sac needs observations .*, found Box.*FlattenObservation"),
        (IMAGE_SPACE, ACTION_SPACE, "'mlp' does not take observations of shape .*minatar_cnn"),
    ],
)
def test_unsupported_spaces(observation_space: spaces.Space, action_space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAC(observation_space, action_space)


@pytest.mark.parametrize("field", ["reward", "obs", "next_obs"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(field: str, bad: float) -> None:
    batch = make_batch(8, models.generator())
    batch.terminated[:] = False
    getattr(batch, field)[0] = bad
    with pytest.raises(FloatingPointError, match="sac: critic_loss is not finite at update 1"):
        models.learn_and_save(small_agent(), batch)


def test_the_loss_at_fault_is_named() -> None:
    with pytest.raises(FloatingPointError, match=r"alpha_loss is not finite at update 1.*: \{'alpha_loss': nan\}"):
        models.learn_and_save(small_agent(target_entropy=1e39), make_batch(8, models.generator()))


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 1.1},
        {"target_tau": 0.0},
        {"batch_size": 0},
        {"updates_per_step": 0},
        {"init_alpha": 0.0},
        {"learning_starts": 64},
    ],
)
def test_config_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SACConfig(**{**vars(SMALL), **changes})


def test_warm_up_must_fit_into_the_memory() -> None:
    with pytest.raises(ValueError, match="sac: learning_starts 62 does not fit"):
        small_agent(learning_starts=62, num_envs=8)


def test_loading_a_state_of_another_kind() -> None:
    with pytest.raises(ValueError, match="saved with learn_alpha=True, this agent has learn_alpha=False"):
        small_agent(learn_alpha=False).load_state_dict(small_agent().state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        small_agent(hidden=(8, 8)).load_state_dict(small_agent().state_dict())


def test_registry() -> None:
    assert AGENTS["sac"] == (SAC, SACConfig)
