"""TD3 against stable-baselines3, typed-out numbers, and problems with known values."""

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

from plasticity.agents.records import Losses
from plasticity.agents.replay import Batch
from plasticity.agents.spaces import box_dim, num_actions, obs_dtype, obs_shape
from plasticity.agents.td3 import TD3, TD3Config, actor_loss, critic_loss, smoothed
from plasticity.agents.train import context, train
from plasticity.callback import Context
from plasticity.envs import make_env
from plasticity.envs.sanity import SANITY, values
from plasticity.testing.runs import require_same

pytestmark = pytest.mark.usefixtures("everywhere")

OBS, ACTION = 5, 3
OBS_SPACE = spaces.Box(-math.inf, math.inf, (OBS,))
ACTION_SPACE = spaces.Box(-1, 1, (ACTION,))
SMALL = TD3Config(hidden=(16, 16), batch_size=8, learning_starts=4, buffer_size=64)


def small_agent(seed: int = 0, num_envs: int = 1, **changes: Any) -> TD3:
    config = TD3Config(**{**vars(SMALL), **changes})
    return models.here(TD3, OBS_SPACE, ACTION_SPACE, config, num_envs=num_envs, seed=seed)


def make_batch(size: int, seed: int) -> Batch:
    generator = models.generator(seed)
    obs, next_obs = torch.randn(2, size, OBS, generator=generator)
    action = torch.tanh(torch.randn(size, ACTION, generator=generator))
    reward, terminated = torch.randn(size, generator=generator), torch.rand(size, generator=generator) < 0.3
    return Batch(obs, action, reward, next_obs, terminated, age=torch.arange(size), index=torch.arange(size))


def make_transition(agent: TD3, generator: torch.Generator) -> SimpleNamespace:
    obs, next_obs = torch.randn(2, agent.num_envs, OBS, generator=generator)
    reward, action = torch.randn(agent.num_envs, generator=generator), agent.act(obs, explore=True)
    terminated = torch.rand(agent.num_envs, generator=generator) < 0.1
    parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
    return SimpleNamespace(**parts, terminated=terminated, truncated=~terminated)


def run(agent: TD3, num_steps: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    metrics = []
    for _ in range(num_steps):
        agent.observe(make_transition(agent, generator))
        while agent.ready():
            metrics.append(agent.update())
    return metrics


def assert_same(one: Any, other: Any) -> None:
    require_same(one, other, "state")


# --- stable-baselines3, the second implementation ---


class BoxEnv(gymnasium.Env):
    observation_space, action_space = OBS_SPACE, ACTION_SPACE


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def paired_parameters(agent: TD3, twin: Any) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    pairs = {
        "actor": (agent.networks["actor"], twin.actor),
        "critic_1": (agent.networks["critic_1"], twin.critic.qf0),
        "critic_2": (agent.networks["critic_2"], twin.critic.qf1),
        "target actor": (agent.targets["actor"], twin.actor_target),
        "target_1": (agent.targets["critic_1"], twin.critic_target.qf0),
        "target_2": (agent.targets["critic_2"], twin.critic_target.qf1),
    }
    return {name: (list(a.parameters()), list(b.parameters())) for name, (a, b) in pairs.items()}


def stable_baselines3_twin(agent: TD3, monkeypatch: pytest.MonkeyPatch) -> Any:
    """stable-baselines3's TD3 with our widths and the weights of `agent`."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

    # stable-baselines3 casts observations to float32
    monkeypatch.setattr("stable_baselines3.common.policies.preprocess_obs", lambda obs, *_, **__: obs)
    with torch.device("cpu"):
        twin = sb3.TD3("MlpPolicy", BoxEnv(), device="cpu", buffer_size=10, policy_kwargs={"net_arch": [256, 256]})
    twin.set_logger(configure(None, []))
    with torch.no_grad():
        for ours, theirs in paired_parameters(agent, twin).values():
            for mine, other in zip(ours, theirs, strict=True):
                other.copy_(mine)
    return twin


def train_twin(twin: Any, batch: Batch, noise: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One update of stable-baselines3 on our batch and our noise."""
    data = SimpleNamespace(
        observations=batch.obs, actions=batch.action, next_observations=batch.next_obs, discounts=None,
        rewards=batch.reward[:, None], dones=batch.terminated[:, None].to(batch.reward.dtype),
    )  # fmt: skip
    with monkeypatch.context() as patch, torch.device("cpu"):
        patch.setattr(twin.replay_buffer, "sample", lambda *_, **__: data)
        patch.setattr(Tensor, "normal_", lambda self, mean, std: self.copy_(mean + std * noise))
        twin.train(gradient_steps=1, batch_size=len(batch.reward))


def test_updates_equal_stable_baselines3(monkeypatch: pytest.MonkeyPatch, default_dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5}[default_dtype]
    agent = models.here(TD3, OBS_SPACE, ACTION_SPACE, TD3Config(), seed=3)
    twin = stable_baselines3_twin(agent, monkeypatch)
    start = {name: [p.detach().clone() for p in ours] for name, (ours, _) in paired_parameters(agent, twin).items()}
    noise_source = models.generator()
    noise_source.set_state(agent.generators["update"].get_state())
    logged: dict[str, float] = {}
    monkeypatch.setattr(twin.logger, "record", lambda key, value, **_: logged.__setitem__(key, value))

    for count in range(1, 7):
        batch = make_batch(256, count)
        monkeypatch.setattr(agent.buffer, "sample", lambda _, batch=batch: batch)
        logged.clear()
        metrics = agent.update()
        noise = torch.randn(256, ACTION, generator=noise_source).cpu()
        train_twin(twin, models.on("cpu", batch), noise, monkeypatch)
        assert ("actor_loss" in metrics) == ("train/actor_loss" in logged) == (count % 2 == 0)
        for key in metrics.keys() & {"critic_loss", "actor_loss"}:
            assert metrics[key].item() == pytest.approx(float(logged[f"train/{key}"]), abs=tolerance), key
        for name, (mine, other) in paired_parameters(agent, twin).items():
            moves = count > 1 or name.startswith("critic")  # actor and targets wait for the second update
            for p, q, p_start in zip(mine, other, start[name], strict=True):
                assert (p.cpu() - q).abs().max() <= tolerance, (name, count)
                # what moves has moved by much more than the tolerance (a target moves 0.005 times as far)
                if not moves:
                    assert torch.equal(p, p_start)
                elif count == 6 and default_dtype == torch.float64:
                    assert (p - p_start).abs().max() > (1e-6 if "target" in name else 5e-4), name


# --- typed-out numbers ---


def test_smoothing_noise_is_clipped_and_so_is_the_action() -> None:
    action = torch.tensor([[0.0, 0.0, 0.9, -0.9]])
    noise = torch.tensor([[1.0, 10.0, 2.0, -10.0]])
    # 0.2 * noise = 0.2, 2, 0.4, -2; within 0.5: 0.2, 0.5, 0.4, -0.5; then within [-1, 1]
    assert smoothed(action, noise, 0.2, 0.5).tolist()[0] == pytest.approx([0.2, 0.5, 1.0, -1.0])
    assert torch.equal(smoothed(action, noise, 0.2, 0.0), action)


def test_losses_by_hand() -> None:
    q = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # ((1-2)^2 + (2-4)^2)/2 + ((3-2)^2 + (0-4)^2)/2 = 2.5 + 8.5
    assert critic_loss(q, torch.tensor([2.0, 4.0])).item() == pytest.approx(11.0)
    assert actor_loss(torch.tensor([1.0, -4.0])).item() == pytest.approx(1.5)


def constant_agent() -> TD3:
    """Target critics say 2 and 3 everywhere, the critics 1 and 7."""
    agent = small_agent(gamma=0.9)
    with torch.no_grad():
        for networks, ends in ((agent.targets, (2.0, 3.0)), (agent.networks, (1.0, 7.0))):
            for key, end in zip(("critic_1", "critic_2"), ends, strict=True):
                *_, last = networks[key].parameters()
                for parameter in networks[key].parameters():
                    parameter.zero_()
                last.fill_(end)
    return agent


def test_target_of_terminated_and_not() -> None:
    agent, batch = constant_agent(), make_batch(2, 0)
    batch.reward, batch.terminated = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    target = agent.target_value(batch, torch.zeros(2, ACTION))
    assert target.tolist() == pytest.approx([1.0, 1 + 0.9 * 2])


def test_truncated_transitions_bootstrap() -> None:
    agent, stream = constant_agent(), models.generator()
    transition = make_transition(agent, stream)
    transition.reward[:], transition.terminated[:], transition.truncated[:] = 1.0, False, True
    agent.observe(transition)
    target = agent.target_value(agent.buffer.sample(1), torch.zeros(1, ACTION))
    assert target.item() == pytest.approx(2.8)
    assert agent.td_error(transition).item() == pytest.approx(math.sqrt(((1 - 2.8) ** 2 + (7 - 2.8) ** 2) / 2))
    assert agent.value(transition.obs, transition.action).item() == pytest.approx(1.0)


def test_the_target_asks_the_target_actor_at_the_disturbed_action() -> None:
    agent, batch = small_agent(target_noise=0.3, noise_clip=0.4), make_batch(8, 0)
    with torch.no_grad():
        for parameter in agent.targets["actor"].parameters():
            parameter.mul_(1.5)
    noise = 3 * torch.randn(8, ACTION, generator=models.generator(1))
    expected = []
    for obs, reward, terminated, row in zip(batch.next_obs, batch.reward, batch.terminated, noise, strict=True):
        mean = agent.targets["actor"](obs[None])[0].tolist()
        action = [min(1, max(-1, m + min(0.4, max(-0.4, 0.3 * e)))) for m, e in zip(mean, row.tolist(), strict=True)]
        q = min(agent.targets[k](obs[None], torch.tensor([action])).item() for k in ("critic_1", "critic_2"))
        expected.append(reward.item() + (0 if terminated else 0.99 * q))
    assert agent.target_value(batch, noise).tolist() == pytest.approx(expected, abs=1e-6)
    assert (noise.abs() * 0.3 > 0.4).any()


# --- problems with known values ---


QUICK = ("both", "clock", "discount")
"""Observation and action, truncation, and delayed rewards: what only the others have, SAC's quick tests cover."""


def solve(name: str, gamma: float) -> TD3:
    env = make_env(f"sanity/{name}-continuous", num_envs=8, seed=0)
    config = TD3Config(
        gamma=gamma, hidden=(32, 32), batch_size=64, learning_starts=512, buffer_size=4096, updates_per_step=1 / 8,
        actor_lr=3e-3, critic_lr=3e-3, target_tau=0.1, exploration_noise=0.5,
    )  # fmt: skip
    agent = models.here(TD3, env.observation_space, env.action_space, config, num_envs=8, seed=0)
    train(env, agent, 512 + 8 * 400)
    env.close()
    return agent


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SANITY])
@pytest.mark.on_real_devices
def test_true_values_and_the_best_actions_are_learned(name: str) -> None:
    agent = solve(name, gamma=0.8)
    truth = models.on(models.place(), values(f"sanity/{name}-continuous", 0.8))
    for obs, q in zip(truth.obs, truth.q, strict=True):
        best = truth.action[q.argmax()]
        near = (truth.action[:, 0] - best).abs() <= 1  # where the agent still goes once it has learned
        found = agent.value(obs.expand(len(q), 1), truth.action)
        torch.testing.assert_close(found[near], q[near], rtol=0.08, atol=0.1)
        if name in ("action", "both"):
            action = agent.act(obs[None], explore=False)
            torch.testing.assert_close(action[0], best, rtol=0, atol=0.1)


# --- the agent in a loop ---


def test_actor_and_targets_wait_for_every_third_update() -> None:
    agent, stream = small_agent(policy_every=3), models.generator()
    watched = {"critic": agent.networks["critic_1"], "actor": agent.networks["actor"]}
    watched |= {f"target {key}": target for key, target in agent.targets.items()}
    run(agent, 4, stream)
    moved = []
    for _ in range(6):
        before = {key: [p.detach().clone() for p in network.parameters()] for key, network in watched.items()}
        [metrics] = run(agent, 1, stream)
        assert ("actor_loss" in metrics) == (agent.updates % 3 == 0)
        moved.append({key for key, n in watched.items() if not all(map(torch.equal, before[key], n.parameters()))})
    assert moved == [{"critic"}, {"critic"}, set(watched)] * 2


def test_metrics_are_detached_tensors_averaged_over_the_updates_that_have_them() -> None:
    agent, logged = small_agent(), []
    metrics = run(agent, 8, models.generator())
    assert [set(m) for m in metrics] == [{"critic_loss", "q_mean"}, {"critic_loss", "actor_loss", "q_mean"}] * 2
    assert all(v.shape == () and not v.requires_grad for m in metrics for v in m.values())
    losses = Losses(every=4)
    losses.on_train_start(Context())
    writer = SimpleNamespace(log=lambda step, row: logged.append(row))
    for row in metrics:
        losses.on_update_end(Context(writer=writer), row)  # type: ignore[arg-type]
    for key, having in (("critic_loss", metrics), ("actor_loss", metrics[1::2])):
        assert logged[0][f"losses/{key}"] == pytest.approx(sum(m[key].item() for m in having) / len(having))


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


@pytest.mark.parametrize("steps", [11, 12])  # between two updates of the actor, and just after one
def test_resumed_run_continues_bit_for_bit(tmp_path: Path, steps: int) -> None:
    agent, stream = small_agent(), models.generator()
    agent.set_noise(0.3)
    run(agent, steps, stream)
    torch.save({"agent": agent.state_dict(), "buffer": agent.buffer.state_dict()}, tmp_path / "agent.pt")
    resumed_stream = models.generator()
    resumed_stream.set_state(stream.get_state())
    expected = run(agent, 15, stream)

    resumed = small_agent(seed=9)
    state = torch.load(tmp_path / "agent.pt", weights_only=True)
    resumed.load_state_dict(state["agent"])
    resumed.buffer.load_state_dict(state["buffer"])
    assert_same(run(resumed, 15, resumed_stream), expected)
    assert_same(resumed.state_dict(), agent.state_dict())


def test_warm_up_then_noise_then_deterministic() -> None:
    agent, obs = small_agent(), torch.zeros(4000, OBS)
    random = agent.act(obs, explore=True)
    assert (random.shape, random.dtype) == ((4000, ACTION), torch.float32)
    assert random.var().item() == pytest.approx(1 / 3, abs=0.02)  # uniform on [-1, 1]
    agent.env_steps = agent.config.learning_starts
    quiet = agent.act(obs, explore=False)
    assert torch.equal(quiet, agent.networks["actor"](obs))
    noise = agent.act(obs, explore=True) - quiet
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.1, abs=0.005)
    agent.set_noise(5.0)
    loud = agent.act(obs, explore=True)
    assert loud.abs().max() == 1
    assert not loud.requires_grad
    with pytest.raises(ValueError, match="td3: exploration noise is a standard deviation >= 0, got -1"):
        agent.set_noise(-1)


def test_callbacks_are_lent_value_td_error_noise_targets_and_memory() -> None:
    agent = small_agent()
    ctx = context(agent)
    assert (ctx.value, ctx.td_error, ctx.set_noise) == (agent.value, agent.td_error, agent.set_noise)
    assert set(ctx.targets) == set(ctx.networks) == {"actor", "critic_1", "critic_2"}
    assert set(ctx.optimizers) == {"actor", "critic"}
    assert ctx.buffer is agent.buffer


@pytest.mark.parametrize("network", ["simba", "bronet", "minatar_cnn"])
def test_other_networks_learn_and_resume(network: str) -> None:
    image = network == "minatar_cnn"
    space = spaces.Box(0, 255, (2, 10, 10), np.uint8) if image else OBS_SPACE
    config = TD3Config(network=network, hidden=(8,), batch_size=4, learning_starts=2, buffer_size=32)
    agents, stream = (
        [models.here(TD3, space, ACTION_SPACE, config, seed=seed) for seed in (0, 1)],
        np.random.default_rng(0),
    )
    for _ in range(8):
        obs, next_obs = (
            torch.as_tensor(stream.integers(0, 255, (1, *space.shape))).to(agents[0].obs_dtype) for _ in "12"
        )
        parts = {"obs": obs, "next_obs": next_obs, "action": agents[0].act(obs, explore=True)}
        no = torch.zeros(1, dtype=torch.bool)
        agents[0].observe(SimpleNamespace(**parts, reward=torch.ones(1), terminated=no, truncated=no))
        while agents[0].ready():
            agents[0].update()
    assert agents[0].updates == 6
    means = [norm.mean for norm in agents[0].norms]
    assert len(means) == (6 if network == "simba" else 0)  # three networks and their targets, all fed alike
    assert all(torch.equal(mean, means[0]) and mean.any() for mean in means)
    agents[1].load_state_dict(agents[0].state_dict())
    assert torch.equal(*(agent.act(obs, explore=False) for agent in agents))


def test_critics_keep_the_gradient_of_their_own_loss() -> None:
    agent, seen = small_agent(policy_every=1), []
    weight = next(agent.networks["critic_1"].parameters())
    agent.optimizers["critic"].register_step_pre_hook(lambda *_: seen.append(weight.grad.clone()))
    metrics = agent.learn(make_batch(8, 0))
    assert "actor_loss" in metrics
    assert len(seen) == 1
    assert torch.equal(weight.grad, seen[0])
    assert all(p.requires_grad for network in agent.networks.values() for p in network.parameters())
    assert all(p.grad is None for target in agent.targets.values() for p in target.parameters())


# --- errors ---


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (OBS_SPACE, spaces.Discrete(3), r"^td3 needs a one-dimensional Box action .* Discrete\(3\): its policy"),
        (OBS_SPACE, spaces.Box(-1, 1, (2, 2)), "^td3 needs a one-dimensional Box action space"),
        (spaces.Dict({"a": OBS_SPACE}), ACTION_SPACE, "^td3 needs observations .* found Dict.*FlattenObservation"),
        (spaces.Box(0, 1, (3, 8, 8)), ACTION_SPACE, "^td3 needs observations .* uint8 images"),
    ],
)
def test_unsupported_spaces(observation_space: spaces.Space, action_space: spaces.Space, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TD3(observation_space, action_space)


def test_spaces() -> None:
    image = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    assert (obs_shape(image, "dqn"), obs_dtype(image)) == ((3, 8, 8), torch.uint8)
    assert (obs_shape(OBS_SPACE, "dqn"), obs_dtype(OBS_SPACE)) == ((OBS,), torch.float32)
    assert obs_dtype(spaces.Box(0, 255, (128,), np.uint8)) == torch.float32
    assert box_dim(ACTION_SPACE, "sac", "action", "...") == ACTION
    assert num_actions(spaces.Discrete(4), "dqn") == 4
    with pytest.raises(ValueError, match="dqn needs a Discrete action space, found Box"):
        num_actions(ACTION_SPACE, "dqn")
    with pytest.raises(ValueError, match="dqn needs actions counted from 0"):
        num_actions(spaces.Discrete(4, start=1), "dqn")


@pytest.mark.parametrize("field", ["reward", "obs", "next_obs"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(field: str, bad: float) -> None:
    batch = make_batch(8, 0)
    batch.terminated[:] = False
    getattr(batch, field)[0] = bad
    with pytest.raises(FloatingPointError, match="td3: critic_loss is not finite at update 1"):
        models.learn_and_save(small_agent(), batch)


def test_an_actor_loss_that_is_not_finite_is_named() -> None:
    agent = small_agent(policy_every=1)
    with torch.no_grad():
        next(agent.networks["actor"].parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"td3: actor_loss is not finite at update 1.*: \{'actor_loss': nan\}"):
        models.learn_and_save(agent, make_batch(8, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 1.1}, {"target_tau": 0.0}, {"batch_size": 0}, {"policy_every": 0}, {"target_noise": -0.1},
        {"noise_clip": -1}, {"exploration_noise": -0.1}, {"updates_per_step": 0}, {"learning_starts": 64},
    ],
)  # fmt: skip
def test_config_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TD3Config(**{**vars(SMALL), **changes})


def test_warm_up_must_fit_into_the_memory() -> None:
    with pytest.raises(ValueError, match="td3: learning_starts 62 does not fit"):
        small_agent(learning_starts=62, num_envs=8)
