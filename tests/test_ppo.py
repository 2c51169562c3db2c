"""PPO against stable-baselines3, gymnasium's wrappers, typed-out numbers, and problems with known values."""

import copy
import math
from collections.abc import Callable
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
from plasticity.agents.distributions import Categorical, Gaussian
from plasticity.agents.draws import gumbel, normal
from plasticity.agents.inputs import gathered
from plasticity.agents.ppo import PPO, PPOConfig
from plasticity.agents.ppo_losses import (
    approx_kl,
    clip_fraction,
    explained_variance,
    policy_loss,
    standardised,
    value_loss,
)
from plasticity.agents.rewards import ReturnScaler
from plasticity.agents.rows import as_tensor
from plasticity.agents.train import train
from plasticity.envs import make_env
from plasticity.envs.sanity import SANITY, values

pytestmark = pytest.mark.usefixtures("everywhere")

OBS = 4
OBS_SPACE, BOX, DISCRETE = spaces.Box(-math.inf, math.inf, (OBS,)), spaces.Box(-1, 1, (2,)), spaces.Discrete(3)
SMALL = {"hidden": (16, 16), "num_steps": 8, "num_minibatches": 2, "num_epochs": 3}
KINDS = pytest.mark.parametrize("action_space", [BOX, DISCRETE], ids=["continuous", "discrete"])


def small_agent(action_space: spaces.Space = BOX, seed: int = 0, num_envs: int = 2, **changes: Any) -> PPO:
    return models.here(PPO, OBS_SPACE, action_space, PPOConfig(**{**SMALL, **changes}), num_envs=num_envs, seed=seed)


class Stream:
    """Random steps that go on from each other, with ends of both kinds; drawn from one generator."""

    def __init__(self, num_envs: int = 2, seed: int = 0, end: float = 0.1) -> None:
        self.num_envs, self.end, self.generator = num_envs, end, models.generator(seed)
        self.obs = self.draw()

    def draw(self) -> Tensor:
        return 2.0 + 3.0 * torch.randn(self.num_envs, OBS, generator=self.generator)

    def step(self, action: Tensor) -> SimpleNamespace:
        terminated, truncated = torch.rand(2, self.num_envs, generator=self.generator) < self.end
        truncated &= ~terminated
        reward, obs, next_obs = torch.randn(self.num_envs, generator=self.generator), self.obs, self.draw()
        self.obs = torch.where((terminated | truncated)[:, None], self.draw(), next_obs)
        return SimpleNamespace(
            obs=obs, action=action, reward=reward, next_obs=next_obs, terminated=terminated, truncated=truncated
        )


def collect(agent: PPO, stream: Stream, num_steps: int) -> list[SimpleNamespace]:
    steps = []
    for _ in range(num_steps):
        steps.append(stream.step(agent.act(stream.obs, explore=True)))
        agent.observe(steps[-1])
    return steps


def run(agent: PPO, stream: Stream, num_steps: int) -> list[dict[str, Tensor]]:
    metrics = []
    for _ in range(num_steps):
        collect(agent, stream, 1)
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


def stable_baselines3_twin(agent: PPO, action_space: spaces.Space, **settings: Any) -> Any:
    """stable-baselines3's PPO with the weights and the rollout of `agent`, whose first update has judged it."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

    class Env(gymnasium.Env):
        observation_space = OBS_SPACE

    Env.action_space = action_space
    size, widths = len(agent.rollout), [16, 16]
    # stable-baselines3's value loss has no factor 1/2
    with torch.device("cpu"):
        twin = sb3.PPO(
            "MlpPolicy", Env(), device="cpu", n_steps=size, batch_size=size, vf_coef=agent.config.value_coef / 2,
            policy_kwargs={"net_arch": {"pi": widths, "vf": widths}}, **settings,
        )  # fmt: skip
    twin.set_logger(configure(None, []))
    with torch.no_grad():
        for mine, other in paired_parameters(agent, twin):
            other.copy_(mine)
    return twin


def paired_parameters(agent: PPO, twin: Any) -> list[tuple[Tensor, Tensor]]:
    actor, critic, policy = agent.networks["actor"], agent.networks["critic"], twin.policy
    ours = [*actor.pi.parameters(), *critic.v.parameters(), *([actor.log_std] if agent.continuous else [])]
    extractor = policy.mlp_extractor
    theirs = [
        *extractor.policy_net.parameters(), *policy.action_net.parameters(),
        *extractor.value_net.parameters(), *policy.value_net.parameters(),
        *([policy.log_std] if agent.continuous else []),
    ]  # fmt: skip
    return list(zip(ours, theirs, strict=True))


@KINDS
@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6], ids=["shortened", "whole"])
def test_updates_equal_stable_baselines3(action_space: spaces.Space, max_grad_norm: float) -> None:
    epochs = 4
    agent = small_agent(
        action_space, num_steps=32, num_minibatches=1, num_epochs=epochs, clip_values=False, lr=3e-3, clip_range=0.05,
        entropy_coef=0.02, max_grad_norm=max_grad_norm,
    )  # fmt: skip
    collect(agent, Stream(), 32)
    shared = {"clip_range": 0.05, "ent_coef": 0.02, "max_grad_norm": max_grad_norm, "learning_rate": 3e-3}
    twin = stable_baselines3_twin(agent, action_space, n_epochs=epochs, **shared)
    start = [mine.detach().clone() for mine, _ in paired_parameters(agent, twin)]
    assert agent.optimizers["ppo"].defaults["eps"] == twin.policy.optimizer.defaults["eps"]

    metrics = [agent.update()]
    experience = agent.experience
    metrics += [agent.update() for _ in range(epochs - 1)]
    fields = {"values": "value", "log_probs": "log_prob", "advantages": "advantage", "returns": "target"}
    for theirs, mine in {"observations": "obs", "actions": "action", **fields}.items():
        array = getattr(experience, mine).float().numpy(force=True).copy()
        setattr(twin.rollout_buffer, theirs, array.reshape(getattr(twin.rollout_buffer, theirs).shape))
    twin.rollout_buffer.full = True
    logged: dict[str, float] = {}
    twin.logger.record = lambda key, value, **_: logged.__setitem__(key, value)
    with torch.device("cpu"):
        twin.train()

    for (mine, other), before in zip(paired_parameters(agent, twin), start, strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=0, atol=2e-5)
        assert (mine - before).abs().max() > 1e-3
    means = {key: torch.stack([m[key] for m in metrics]).mean().item() for key in metrics[0]}
    close = {"abs": 1e-5, "rel": 1e-4}
    assert means["policy_loss"] == pytest.approx(logged["train/policy_gradient_loss"], **close)
    assert 2 * means["value_loss"] == pytest.approx(logged["train/value_loss"], **close)
    assert -means["entropy"] == pytest.approx(logged["train/entropy_loss"], **close)
    # theirs is that of the last epoch
    assert metrics[-1]["approx_kl"].item() == pytest.approx(logged["train/approx_kl"], rel=1e-3, abs=1e-6)
    assert means["clip_fraction"] == pytest.approx(logged["train/clip_fraction"], abs=1e-6)
    assert means["explained_variance"] == pytest.approx(logged["train/explained_variance"], **close)
    assert 0.01 < means["clip_fraction"] < 0.99


@KINDS
def test_advantages_of_a_rollout_equal_a_naive_computation(action_space: spaces.Space) -> None:
    agent = small_agent(
        action_space, num_steps=40, num_minibatches=2, gamma=0.9, gae_lambda=0.8, normalize_rewards=False
    )
    agent.normalisers.clear()
    steps = collect(agent, Stream(), 40)
    expected = torch.empty(40, 2)
    for env in range(2):
        for t in range(40):
            total, weight = 0.0, 1.0
            for step in steps[t:]:  # the sum of deltas up to the end of the episode, or of the rollout
                after = 0.0 if step.terminated[env] else agent.state_value(step.next_obs)[env]
                total += weight * (step.reward[env] + 0.9 * after - agent.state_value(step.obs)[env])
                weight *= 0.9 * 0.8
                if step.terminated[env] or step.truncated[env]:
                    break
            expected[t, env] = total
    agent.update()
    assert agent.experience is not None
    torch.testing.assert_close(agent.experience.advantage.view(40, 2), expected, rtol=1e-4, atol=1e-5)


@KINDS
def test_old_log_densities_are_those_of_the_policy_that_acted(action_space: spaces.Space) -> None:
    agent, stream = small_agent(action_space, normalize_observations=True, lr=1e-2), Stream()
    agent.networks["actor"].pi[-1].weight.data.mul_(50.0)  # so that the policy depends on what it sees
    collect(agent, stream, 8)
    first, second = agent.update(), agent.update()
    assert first["approx_kl"].item() == pytest.approx(0.0, abs=1e-6)
    assert first["clip_fraction"].item() == 0
    assert second["approx_kl"].item() > 1e-5


# --- typed-out numbers ---


def test_policy_loss_by_hand() -> None:
    log_ratio, clip = torch.tensor([2.0, 0.5, 2.0, 0.5]).log(), 0.2
    # min(2 * 1, 1.2 * 1) = 1.2; min(0.5, 0.8) = 0.5; min(-2, -1.2) = -2; min(-0.5, -0.8) = -0.8; -mean = 0.275
    loss = policy_loss(log_ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), clip)
    assert loss.item() == pytest.approx(0.275)
    assert clip_fraction(torch.tensor([1.0, 1.19, 1.21, 0.79]).log(), clip).item() == 0.5
    # mean of 2 - 1 - log 2 and 0.5 - 1 - log 0.5
    assert approx_kl(torch.tensor([2.0, 0.5]).log()).item() == pytest.approx(0.25)


def test_value_loss_by_hand() -> None:
    value, old, target = torch.tensor([2.0, 2.0, 1.1]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 0.0, 3.0])
    # errors 0, 4, 3.61; of the moved values 1.2, 1.2, 1.1: 0.64, 1.44, 3.61; the larger: 0.64, 4, 3.61
    assert value_loss(value, old, target, 0.2).item() == pytest.approx(8.25 / 6)
    assert value_loss(value, old, target, None).item() == pytest.approx(7.61 / 6)


def test_standardised_by_hand() -> None:
    assert standardised(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert standardised(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_explained_variance_is_finite_everywhere() -> None:
    target = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(target + 5, target).item() == 1.0
    assert explained_variance(torch.zeros(3), target).item() == 0.0
    assert explained_variance(-target, target).item() == pytest.approx(-3.0)
    assert explained_variance(torch.zeros(3), torch.ones(3)).item() == 1.0
    assert explained_variance(target, torch.ones(3)).item() == 0.0


# --- distributions ---


def test_gaussian_equals_torch() -> None:
    mean, log_std, action = torch.randn(3, 6, 2, generator=models.generator())
    ours, theirs = Gaussian(mean, log_std), torch.distributions.Normal(mean, log_std.exp())
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action).sum(-1))
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1))
    assert torch.equal(ours.mode(), mean)
    wide = Gaussian(torch.tensor([[1.0, -2.0]]).expand(40_000, 2), torch.tensor([0.5, 3.0]).log().expand(40_000, 2))
    sample = wide.sample(normal((40_000, 2), models.generator()))
    assert sample.mean(0).tolist() == pytest.approx([1.0, -2.0], abs=0.05)
    assert sample.std(0).tolist() == pytest.approx([0.5, 3.0], rel=0.02)


def test_categorical_equals_torch() -> None:
    logits, action = torch.randn(6, 3, generator=models.generator()), torch.arange(6) % 3
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.probs.argmax(-1))
    wide = Categorical(torch.tensor([0.2, 0.7, 0.1]).log().expand(40_000, 3) + 5.0)
    share = wide.sample(gumbel((40_000, 3), models.generator())).bincount(minlength=3) / 40_000
    assert share.tolist() == pytest.approx([0.2, 0.7, 0.1], abs=0.01)


# --- normalisation ---


@pytest.mark.parametrize("num_envs", [1, 3])
def test_reward_scale_equals_stable_baselines3(num_envs: int) -> None:
    vec = pytest.importorskip("stable_baselines3.common.vec_env")
    scaler, generator = ReturnScaler(num_envs, 0.9), np.random.default_rng(0)
    scaler.moments.count.fill_(1e-4)  # the weight of the mean 0 and variance 1 that the others begin with

    class Steps(vec.DummyVecEnv):
        def step_wait(self) -> Any:
            return np.zeros((num_envs, 1), np.float32), reward, done, [{} for _ in range(num_envs)]

    twin = vec.VecNormalize(Steps([lambda: gymnasium.make("CartPole-v1")] * num_envs), norm_obs=False, gamma=0.9)
    twin.reset()
    for _ in range(200):
        reward, done = 100 * generator.normal(1.0, 2.0, num_envs), generator.random(num_envs) < 0.1
        theirs = twin.step(np.zeros(num_envs, int))[1]
        ours = scaler.update(torch.tensor(reward), torch.tensor(done))
        np.testing.assert_allclose(ours.numpy(force=True), theirs, rtol=1e-6)  # theirs are float32
    assert float(ours.abs().max()) < 10
    assert scaler.update(torch.full((num_envs,), 1e9), torch.zeros(num_envs, dtype=torch.bool)).max() <= 10


def test_reward_scale_equals_gymnasium_while_no_episode_ends() -> None:
    rewards = np.random.default_rng(0).normal(3.0, 2.0, 100)
    queue = list(rewards)

    class Endless(gymnasium.Env):
        observation_space, action_space = OBS_SPACE, DISCRETE

        def step(self, action: Any) -> Any:
            return np.zeros(OBS), queue.pop(0), False, False, {}

    twin, scaler = gymnasium.wrappers.NormalizeReward(Endless(), gamma=0.9), ReturnScaler(1, 0.9, clip=math.inf)
    scaler.moments.count.fill_(1e-4)
    for reward in rewards:
        ours = scaler.update(torch.tensor([reward]), torch.tensor([False]))
        assert ours.item() == pytest.approx(twin.step(0)[1].item(), rel=1e-9)


def test_rewards_are_stored_scaled_by_what_was_seen_so_far() -> None:
    agent, stream = small_agent(normalize_rewards=True, gamma=0.9), Stream(seed=3)
    steps = collect(agent, stream, 8)
    running, seen = np.zeros(2), []
    for row, step in enumerate(steps):
        running = 0.9 * running + step.reward.double().numpy(force=True)
        seen.extend(running)
        expected = step.reward.numpy(force=True) / np.sqrt(np.var(seen) + 1e-8)
        np.testing.assert_allclose(
            agent.rollout.storage["reward"][row].numpy(force=True), expected.clip(-10, 10), rtol=1e-5
        )
        running[(step.terminated | step.truncated).numpy(force=True)] = 0


def test_observations_are_stored_as_they_were_acted_upon() -> None:
    agent, stream = small_agent(), Stream()
    steps = collect(agent, stream, 8)
    stored, seen = agent.rollout.storage, np.empty((0, OBS))
    for row, step in enumerate(steps):  # seen: what was acted upon before
        obs, next_obs = step.obs.double().numpy(force=True), step.next_obs.double().numpy(force=True)
        mean, var = (seen.mean(0), seen.var(0)) if row else (0.0, 1.0)
        expected = ((obs - mean) / np.sqrt(var + 1e-8)).clip(-10, 10)
        np.testing.assert_allclose(stored["obs"][row].numpy(force=True), expected, rtol=1e-4, atol=1e-5)
        seen = np.concatenate([seen, obs])
        expected = ((next_obs - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)).clip(-10, 10)
        np.testing.assert_allclose(stored["next_obs"][row].numpy(force=True), expected, rtol=1e-4, atol=1e-5)


def test_observation_statistics_equal_gymnasium() -> None:
    agent, stream = small_agent(num_envs=1), Stream(num_envs=1, end=0.0)
    observations = [step.obs[0].numpy(force=True) for step in collect(agent, stream, 8)]
    queue = list(observations)

    class Endless(gymnasium.Env):
        observation_space, action_space = OBS_SPACE, BOX

        def step(self, action: Any) -> Any:
            return queue.pop(0), 0.0, False, False, {}

    twin = gymnasium.wrappers.NormalizeObservation(Endless())
    for _ in observations:
        twin.step(0)
    norm = agent.normalisers["observations"]
    # theirs begin with a mean 0 of weight 1e-4
    np.testing.assert_allclose(norm.mean.numpy(force=True), twin.obs_rms.mean, rtol=1e-4)
    np.testing.assert_allclose(norm.var.numpy(force=True), twin.obs_rms.var, rtol=1e-3)


def test_only_observe_moves_the_statistics() -> None:
    agent, stream = small_agent(), Stream()
    collect(agent, stream, 3)
    before = copy.deepcopy(agent.state_dict()["normalisers"])
    agent.act(100 * stream.draw(), explore=False)
    agent.act(100 * stream.draw(), explore=True)
    agent.state_value(100 * stream.draw())
    assert_same(agent.state_dict()["normalisers"], before)
    assert set(before) == {"observations", "rewards"}
    assert small_agent(DISCRETE).normalisers == {}


@pytest.mark.parametrize("network", ["simba", "mlp"])
def test_the_networks_stay_the_same_while_they_act(network: str) -> None:
    agent, stream, probe = small_agent(network=network, hidden=None), Stream(), torch.ones(1, OBS)
    seen = []
    for _ in range(8):
        seen.append(agent.networks["critic"](probe).item())
        collect(agent, stream, 1)
    assert len(set(seen)) == 1
    assert agent.update()["approx_kl"].item() == pytest.approx(0.0, abs=1e-6)
    counts = {float(norm.count) for norm in agent.norms}
    while agent.ready():
        agent.update()
    after = {float(norm.count) for norm in agent.norms}
    assert (counts, after) == (({0.0}, {16.0}) if network == "simba" else (set(), set()))


# --- problems with known values ---


@pytest.mark.parametrize("name", [*SANITY, *(f"{name}-continuous" for name in ("discount", "action", "both"))])
@pytest.mark.on_real_devices
@pytest.mark.some(5)
def test_sanity_environment(name: str) -> None:
    gamma, steps = 0.8, 4096
    config = PPOConfig(
        hidden=(16,), num_steps=8, num_minibatches=2, num_epochs=4, lr=2e-2, anneal_steps=steps, gamma=gamma,
        entropy_coef=0.0, clip_values=False, normalize_rewards=False, normalize_observations=False,
    )  # fmt: skip
    env = make_env(f"sanity/{name}", num_envs=16, seed=1)
    agent = models.here(PPO, env.observation_space, env.action_space, config, num_envs=16, seed=1)
    train(env, agent, steps)
    known = models.on(models.place(), values(f"sanity/{name}", gamma))
    torch.testing.assert_close(agent.state_value(known.obs), known.v, rtol=0, atol=0.05)
    if known.q.std(1).max() > 0:  # the action matters
        best = known.action[known.q.argmax(1)]
        torch.testing.assert_close(agent.act(known.obs, explore=False), best, rtol=0, atol=0.05)


@pytest.mark.on_real_devices
def test_normalised_rewards_and_observations_still_lead_to_the_best_action() -> None:
    config = PPOConfig(hidden=(16,), num_steps=8, num_minibatches=2, num_epochs=4, lr=2e-2, anneal_steps=4096)
    env = make_env("sanity/both-continuous", num_envs=16, seed=1)
    agent = models.here(PPO, env.observation_space, env.action_space, config, num_envs=16, seed=1)
    train(env, agent, 4096)
    assert set(agent.normalisers) == {"observations", "rewards"}
    assert agent.act(torch.tensor([[-1.0], [1.0]]), explore=False).flatten().tolist() == pytest.approx(
        [-0.5, 0.5], abs=0.05
    )


def test_a_reset_without_an_end_bootstraps_from_the_true_successor() -> None:
    agent, no = small_agent(num_envs=1, num_steps=4, normalize_rewards=False), torch.zeros(1, dtype=torch.bool)
    agent.normalisers.clear()
    observations, successors = torch.randn(2, 4, 1, OBS, generator=models.generator())
    for obs, next_obs in zip(observations, successors, strict=True):  # a new beginning at every step
        action = agent.act(obs, explore=True)
        agent.observe(
            SimpleNamespace(
                obs=obs, action=action, reward=torch.ones(1), next_obs=next_obs, terminated=no, truncated=no
            )
        )
    expected = 1 + 0.99 * agent.state_value(successors[:, 0]) - agent.state_value(observations[:, 0])
    agent.update()
    assert agent.experience is not None
    torch.testing.assert_close(agent.experience.advantage, expected)


# --- acting ---


def test_gaussian_is_clipped_for_the_environment_only() -> None:
    agent, obs = small_agent(num_envs=50, num_steps=1), torch.randn(50, OBS)
    agent.networks["actor"].log_std.data.fill_(1.0)
    action = agent.act(obs, explore=True)
    assert action.abs().max() == 1
    outside = action.abs() == 1
    assert 0.5 < outside.float().mean() < 0.9  # std e: 0.71
    no = torch.zeros(50, dtype=torch.bool)
    agent.observe(
        SimpleNamespace(obs=obs, action=action, reward=torch.ones(50), next_obs=obs, terminated=no, truncated=no)
    )
    stored = agent.rollout.flat("action")
    assert torch.equal(stored.clamp(-1, 1), action)
    assert (stored[outside].abs() > 1).all()


@KINDS
def test_deterministic_actions_are_the_most_likely_ones_and_disturb_nothing(action_space: spaces.Space) -> None:
    agent, stream, twin, same = small_agent(action_space), Stream(), small_agent(action_space), Stream()
    action, obs = agent.act(stream.obs, explore=True), stream.draw()
    same.draw()
    other = agent.act(100 * obs, explore=False)
    raw = agent.networks["actor"](as_tensor(agent._normalised(agent.seen(100 * obs))))
    expected = raw.mean.clamp(-1, 1) if isinstance(raw, Gaussian) else raw.logits.argmax(-1)
    torch.testing.assert_close(other, expected)  # a few rows are computed by numpy
    assert other.dtype == (torch.float32 if agent.continuous else torch.int64)
    assert not other.requires_grad
    agent.observe(stream.step(action))
    collect(twin, same, 1)
    assert_same(agent.state_dict(), twin.state_dict())


def test_steps_with_actions_of_others_are_refused() -> None:
    agent, stream = small_agent(), Stream()
    with pytest.raises(ValueError, match=r"ppo learns from its own actions only: call act\(obs, explore=True\) first"):
        agent.observe(stream.step(torch.zeros(2, 2)))
    action = agent.act(stream.obs, explore=True)
    with pytest.raises(ValueError, match=r"ppo learns from its own actions only: the transition's action"):
        agent.observe(stream.step(0.5 * action))
    agent.observe(stream.step(action))
    with pytest.raises(ValueError, match="own actions only"):
        agent.observe(stream.step(action))  # a second step of the same action
    assert agent.env_steps == 2


def test_weights_are_orthogonal_and_the_first_policy_almost_uniform() -> None:
    agent = small_agent(DISCRETE)
    for network, head, gain in (("actor", "pi", 0.01), ("critic", "v", 1.0)):
        *hidden, output = [m for m in getattr(agent.networks[network], head) if isinstance(m, torch.nn.Linear)]
        for layer in hidden:
            gram = layer.weight @ layer.weight.T if layer.weight.shape[0] <= layer.weight.shape[1] else (
                layer.weight.T @ layer.weight
            )  # fmt: skip
            torch.testing.assert_close(gram, 2 * torch.eye(len(gram)), rtol=0, atol=1e-5)
        rows = output.weight @ output.weight.T
        torch.testing.assert_close(rows, gain**2 * torch.eye(len(rows)), rtol=0, atol=1e-6)
        assert all((layer.bias == 0).all() for layer in (*hidden, output))
    entropy = agent.networks["actor"](torch.randn(20, OBS)).entropy()
    assert entropy.min().item() == pytest.approx(math.log(3), abs=1e-3)


# --- the agent in a loop ---


@KINDS
def test_same_seed_same_numbers_whatever_the_global_generator_does(action_space: spaces.Space) -> None:
    first = run(small_agent(action_space, seed=5), Stream(), 16)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = run(small_agent(action_space, seed=5), Stream(), 16)
    assert torch.equal(before, torch.get_rng_state())
    assert len(first) == 2 * 6
    assert_same(first, second)
    other = run(small_agent(action_space, seed=6), Stream(), 16)
    assert not torch.equal(first[0]["value_loss"], other[0]["value_loss"])


@KINDS
@pytest.mark.parametrize("steps", [5, 11])
def test_resumed_in_the_middle_of_a_rollout(tmp_path: Path, action_space: spaces.Space, steps: int) -> None:
    agent, stream = small_agent(action_space, anneal_steps=1000, normalize_rewards=True), Stream()
    run(agent, stream, steps)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    same = copy.deepcopy(stream)
    expected = run(agent, stream, 20)
    resumed = small_agent(action_space, seed=9, anneal_steps=1000, normalize_rewards=True)
    resumed.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert_same(run(resumed, same, 20), expected)
    assert len(expected) == 6 * ((steps + 20) // 8 - steps // 8)
    assert_same(resumed.state_dict(), agent.state_dict())


@pytest.mark.parametrize("network", ["mlp", "simba"])
def test_resumed_between_two_minibatches(network: str) -> None:
    agent, stream = small_agent(network=network, hidden=None), Stream()
    collect(agent, stream, 8)
    for _ in range(3):
        agent.update()
    resumed = small_agent(seed=9, network=network, hidden=None)
    state = agent.state_dict()
    saved = copy.deepcopy(state)
    resumed.load_state_dict(state)
    for _ in range(3):
        assert_same(resumed.update(), agent.update())
    assert not agent.ready()
    assert_same(resumed.state_dict(), agent.state_dict())
    assert_same(state, saved)  # a copy in both directions


def test_loading_into_another_number_of_environments_begins_a_new_rollout() -> None:
    agent, stream = small_agent(num_envs=2), Stream()
    run(agent, stream, 11)
    other = small_agent(num_envs=1, seed=3)
    other.load_state_dict(agent.state_dict())
    obs = stream.draw()
    assert torch.equal(other.act(obs, explore=False), agent.act(obs, explore=False))
    assert (len(other.rollout), len(agent.rollout)) == (0, 6)
    assert len(run(other, Stream(num_envs=1), 8)) == 6


def test_loading_a_state_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"saved with normalised \['observations', 'rewards'\], this agent .* nothing"):
        small_agent(normalize_observations=False, normalize_rewards=False).load_state_dict(small_agent().state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        small_agent(hidden=(8, 8)).load_state_dict(small_agent().state_dict())


@pytest.mark.on_real_devices
def test_the_learning_rate_falls_from_rollout_to_rollout() -> None:
    agent = small_agent(lr=1e-3, anneal_steps=64)  # rollouts of 16 steps
    rates = [metrics["learning_rate"].item() for metrics in run(agent, Stream(), 48)]
    assert rates == pytest.approx([1e-3 * share for share in (1, 0.75, 0.5, 0.25, 0, 0) for _ in range(6)])
    constant = small_agent(lr=1e-3)
    assert [m["learning_rate"].item() for m in run(constant, Stream(), 16)] == pytest.approx([1e-3] * 12)


def test_target_kl_ends_the_epochs_early() -> None:
    assert len(run(small_agent(target_kl=1e-9), Stream(), 8)) == 2  # one epoch of two minibatches
    assert len(run(small_agent(target_kl=1e9), Stream(), 8)) == 6


def test_every_epoch_learns_from_every_step_once_in_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, stream, seen = small_agent(), Stream(), []
    learn: Callable[..., Any] = agent.learn
    monkeypatch.setattr(agent, "learn", lambda batch: seen.append(gathered(batch).log_prob) or learn(batch))
    collect(agent, stream, 8)
    agent.update()
    assert agent.experience is not None
    everything = agent.experience.log_prob.sort().values
    while agent.ready():
        agent.update()
    assert len(seen) == 6
    epochs = [torch.cat(seen[i : i + 2]) for i in (0, 2, 4)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, everything)
    assert not torch.equal(epochs[0], epochs[1])


@KINDS
def test_metrics_are_detached_tensors(action_space: spaces.Space) -> None:
    metrics = run(small_agent(action_space), Stream(), 8)[0]
    assert set(metrics) == {
        "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance", "learning_rate",
        "value_mean", "return_mean", "grad_norm",
    }  # fmt: skip
    for value in metrics.values():
        assert isinstance(value, Tensor)
        assert value.shape == ()
        assert value.isfinite()
        assert not value.requires_grad


def test_hooks_on_the_networks_change_nothing_and_frozen_parameters_stay() -> None:
    plain, hooked, calls = small_agent(), small_agent(), []
    for network in hooked.networks.values():
        for module in network.modules():
            module.register_forward_hook(lambda *_: None)
        for parameter in network.parameters():
            parameter.register_hook(lambda gradient: calls.append(gradient.shape))
    assert_same(run(plain, Stream(), 8), run(hooked, Stream(), 8))
    assert len(calls) == 6 * (7 + 6)
    frozen = hooked.networks["critic"].v[0].weight.requires_grad_(False)
    before = frozen.clone()
    run(hooked, Stream(), 8)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize(
    ("action_space", "network"), [(BOX, "nature_cnn"), (DISCRETE, "nature_cnn"), (DISCRETE, "minatar_cnn")]
)
def test_images(action_space: spaces.Space, network: str) -> None:
    shape = (4, 10, 10) if network == "minatar_cnn" else (3, 64, 64)
    space = spaces.Box(0, 255, shape, np.uint8)
    config = PPOConfig(network=network, hidden=(8,), num_steps=2, num_minibatches=1, num_epochs=2)
    agent = models.here(PPO, space, action_space, config, num_envs=2)
    assert (agent.config.activation, agent.config.lr, agent.normalisers) == ("relu", 2.5e-4, {})
    obs, no = torch.randint(256, (3, 2, *shape), dtype=torch.uint8), torch.zeros(2, dtype=torch.bool)
    for step in range(2):
        action = agent.act(obs[step], explore=True)
        agent.observe(
            SimpleNamespace(
                obs=obs[step], action=action, reward=torch.ones(2), next_obs=obs[step + 1], terminated=no, truncated=no
            )
        )
    assert agent.rollout.storage["obs"].dtype == torch.uint8
    while agent.ready():
        assert all(value.isfinite() for value in agent.update().values())
    assert agent.updates == 2


# --- settings and errors ---


def test_usual_settings_go_by_the_spaces() -> None:
    usual = [
        (BOX, (2048, 32, 10, 3e-4, 0.0, True, True, "tanh")),
        (DISCRETE, (128, 4, 4, 2.5e-4, 0.01, False, False, "tanh")),
    ]
    names = ("num_steps", "num_minibatches", "num_epochs", "lr", "entropy_coef", "normalize_observations",
             "normalize_rewards", "activation")  # fmt: skip
    for action_space, expected in usual:
        config = models.here(PPO, OBS_SPACE, action_space).config
        assert tuple(getattr(config, name) for name in names) == expected
    given = models.here(PPO, OBS_SPACE, BOX, PPOConfig(num_epochs=3, normalize_rewards=False, entropy_coef=0.1)).config
    assert (given.num_epochs, given.normalize_rewards, given.entropy_coef) == (3, False, 0.1)
    assert models.here(PPO, OBS_SPACE, BOX, PPOConfig(network="simba")).config.activation == "relu"


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (OBS_SPACE, spaces.MultiDiscrete([2, 2]), "^ppo needs .* action space, found MultiDiscrete.*or Discrete"),
        (OBS_SPACE, spaces.Box(-1, 1, (2, 2)), "^ppo needs a one-dimensional Box action space"),
        (OBS_SPACE, spaces.Discrete(3, start=1), "^ppo needs actions counted from 0"),
        (spaces.Dict({"a": OBS_SPACE}), BOX, "^ppo needs observations .*found Dict.*FlattenObservation"),
    ],
)
def test_unsupported_spaces(observation_space: spaces.Space, action_space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPO(observation_space, action_space)


def test_images_are_not_standardised() -> None:
    config = PPOConfig(network="minatar_cnn", normalize_observations=True)
    with pytest.raises(ValueError, match="ppo: normalize_observations is for vectors"):
        models.here(PPO, spaces.Box(0, 255, (4, 10, 10), np.uint8), DISCRETE, config)


@KINDS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(action_space: spaces.Space, bad: float) -> None:
    agent, stream = small_agent(action_space), Stream()
    collect(agent, stream, 7)
    step = stream.step(agent.act(stream.obs, explore=True))
    step.reward[:] = bad
    agent.observe(step)
    with pytest.raises(FloatingPointError, match="ppo: policy_loss is not finite at update 1"):
        models.learn_and_save(agent)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0}, {"num_epochs": 0}, {"num_minibatches": 0}, {"lr": 0.0}, {"anneal_steps": -1}, {"gamma": 1.1},
        {"gae_lambda": -0.1}, {"clip_range": 0.0}, {"value_coef": -1.0}, {"entropy_coef": -1.0}, {"max_grad_norm": 0.0},
        {"target_kl": 0.0},
    ],
)  # fmt: skip
def test_config_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"PPOConfig needs {next(iter(changes))}"):
        PPOConfig(**changes)


@pytest.mark.parametrize("changes", [{"num_minibatches": 3}, {"num_steps": 4, "num_minibatches": 8}])
def test_minibatches_must_divide_the_rollout(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ppo: num_steps \d times 2 environments must be at least twice"):
        small_agent(**changes)


def test_registry() -> None:
    assert AGENTS["ppo"] == (PPO, PPOConfig)
