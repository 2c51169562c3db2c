"""Steps as rows of numpy: the numbers of tensors, and of a second implementation that knows neither."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plasticity import Callback
from plasticity.agents import AGENTS
from plasticity.agents.draws import NUM_ROWS, Draws, gumbel, normal, uniform
from plasticity.agents.train import context, train
from plasticity.envs import Transition, make_env
from plasticity.envs.transition import Rows

FIELDS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
ON_POLICY: dict[str, Any] = {"hidden": (8,), "num_steps": 16, "num_minibatches": 2, "num_epochs": 2}
REPLAY: dict[str, Any] = {"hidden": (8,), "learning_starts": 30, "buffer_size": 160, "batch_size": 4}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("Pendulum-v1", ON_POLICY),
    "ppo_discrete": ("CartPole-v1", ON_POLICY),
    "dqn": ("CartPole-v1", REPLAY),
    "c51": ("CartPole-v1", {**REPLAY, "returns": "c51"}),
    "n_step": ("CartPole-v1", {**REPLAY, "n_step": 3}),
    "images": ("minatar/breakout", {**REPLAY, "network": "minatar_cnn"}),
    "sac": ("Pendulum-v1", REPLAY),
    "td3": ("Pendulum-v1", REPLAY),
}


class Tensors:
    """An environment that gives and takes tensors alone, as one of another package does."""

    def __init__(self, env: Any) -> None:
        self.env, self.name, self.num_envs, self.task = env, env.name, env.num_envs, None

    def reset(self, done: Tensor | None = None) -> Tensor:
        return self.env.reset(done).clone()

    def step(self, action: Tensor) -> Transition:
        assert isinstance(action, Tensor)
        step = self.env.step(action)
        return Transition(**{name: getattr(step, name).clone() for name in FIELDS})


class Stop(Callback):
    """Ends episodes from outside: by assigning the flags, or in place."""

    def __init__(self, way: str) -> None:
        self.way, self.steps = way, 0

    def on_step(self, ctx: Any, transition: Any) -> None:
        self.steps += 1
        stop = torch.zeros_like(transition.truncated)
        stop[0] = self.steps % 7 == 0
        if self.way == "assigned":
            transition.truncated = (transition.truncated | stop) & ~transition.terminated
        elif self.way == "in place":
            transition.truncated |= stop & ~transition.terminated


def agent_and_env(name: str, num_envs: int) -> tuple[Any, Any]:
    kind = {"ppo_discrete": "ppo", "c51": "dqn", "n_step": "dqn", "images": "dqn"}.get(name, name)
    env_name, settings = SMALL[name]
    env = make_env(env_name, num_envs=num_envs, seed=1, max_episode_steps=25)
    agent, config = AGENTS[kind]
    how: dict[str, Any] = {"num_envs": num_envs, "seed": 2, "compile": "off"}
    return agent(env.observation_space, env.action_space, config(**settings), **how), env


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for i, (x, y) in enumerate(zip(one, other, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("way", ["none", "assigned", "in place"])
@pytest.mark.parametrize("num_envs", [1, 2, 16])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.some(14)
def test_arrays_and_tensors_train_alike(name: str, num_envs: int, way: str) -> None:
    if name == "images":
        pytest.importorskip("minatar")
    if way != "none" and (num_envs == 16 or name in ("c51", "td3")):
        pytest.skip("seen with fewer environments and other agents")
    states = []
    for wrap in (lambda env: env, Tensors):
        agent, env = agent_and_env(name, num_envs)
        train(wrap(env), agent, 60 * num_envs, [Stop(way)], context(agent))
        seen = vars(agent.buffer.read(torch.arange(len(agent.buffer)))) if hasattr(agent, "buffer") else {}
        states.append([agent.state_dict(), seen])
    assert agent.updates
    assert_equal(*states)


# --- PPO, by a second implementation ---


def naive_rollout(agent: Any, env: Any, num_steps: int) -> dict[str, np.ndarray]:
    """The rows that PPO stores, from lists of all that was seen, the modules, and noise drawn as one block."""
    num_envs, (action_dim,) = env.num_envs, env.action_space.shape
    noise = torch.randn(NUM_ROWS, num_envs, action_dim, generator=torch.Generator().manual_seed(agent_seed(agent)))
    seen: list[np.ndarray] = []  # observations
    sums: list[np.ndarray] = []  # discounted returns
    rows: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    running = np.zeros(num_envs)

    def normalised(obs: np.ndarray) -> np.ndarray:
        if not seen:
            return obs
        every = np.concatenate(seen).astype(np.float64)
        return np.clip((obs - every.mean(0)) / np.sqrt(every.var(0) + 1e-8), -10, 10).astype(np.float32)

    obs = env.reset().numpy()
    for t in range(num_steps):
        x = normalised(obs)
        with torch.no_grad():
            policy = agent.networks["actor"](torch.from_numpy(x))
            sample = policy.mean + policy.log_std.exp() * noise[t]
        step = env.step(sample.clamp(-1, 1))
        ended = (step.terminated | step.truncated).numpy()
        running = running * 0.99 + step.reward.numpy()
        sums.append(running.copy())
        reward = np.clip(step.reward.numpy() / np.sqrt(np.concatenate(sums).var() + 1e-8), -10, 10)
        running[ended] = 0
        seen.append(obs)
        found = (
            sample.numpy(),
            reward,
            normalised(step.next_obs.numpy()),
            step.terminated.numpy(),
            step.truncated.numpy(),
        )
        for name, value in zip(FIELDS, (x, *found), strict=True):
            rows[name].append(value)
        obs = env.reset(step.terminated | step.truncated).numpy() if ended.any() else step.next_obs.numpy()
    return {name: np.stack(values) for name, values in rows.items()}


def agent_seed(agent: Any) -> int:
    return int(agent.generators["act"].initial_seed())


@pytest.mark.parametrize("num_envs", [1, 2, 16])
def test_a_rollout_of_ppo_is_the_naive_one(num_envs: int) -> None:
    kind, config = AGENTS["ppo"]
    envs = [make_env("Pendulum-v1", num_envs=num_envs, seed=3, max_episode_steps=23) for _ in range(2)]
    settings = config(hidden=(16, 16), num_steps=60, num_minibatches=2)
    agent = kind(envs[0].observation_space, envs[0].action_space, settings, num_envs=num_envs, seed=4, compile="off")
    twin = copy.deepcopy(agent)
    train(envs[0], agent, 59 * num_envs)  # one row short of learning
    expected = naive_rollout(twin, envs[1], 59)
    assert expected["truncated"].any()
    for name in FIELDS:
        found = agent.rollout.storage[name][:59].numpy()
        np.testing.assert_allclose(found, expected[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_a_run_goes_on_in_the_middle_of_a_block() -> None:
    agent, env = agent_and_env("ppo", 2)
    whole, _ = agent_and_env("ppo", 2)
    obs = env.reset()
    first = [whole.act(obs, explore=True) for _ in range(NUM_ROWS + 40)]
    again = [agent.act(obs, explore=True) for _ in range(50)]
    for _ in range(2):
        fresh, _ = agent_and_env("ppo", 2)
        fresh.load_state_dict(agent.state_dict())
        agent = fresh
        again += [agent.act(obs, explore=True) for _ in range(59)]
    assert all(map(torch.equal, first, again))


# --- parts ---


@pytest.mark.parametrize("draw", [normal, uniform, gumbel])
def test_draws_are_rows_of_blocks(draw: Any) -> None:
    draws, twin = (Draws(draw, (2, 3), torch.Generator().manual_seed(1)) for _ in range(2))
    block = draw((NUM_ROWS, 2, 3), torch.Generator().manual_seed(1)).numpy()
    rows = np.stack([draws.row(2) for _ in range(NUM_ROWS)])
    assert np.array_equal(rows, block)
    assert draws.row(2).shape == (2, 3)
    assert draws.row(5).shape == (5, 3)
    for _ in range(3):
        twin.row(2)
    saved = copy.deepcopy(twin.state_dict())
    other = Draws(draw, (2, 3), twin.generator)
    other.load_state_dict(saved)
    assert np.array_equal(other.row(2), block[3])
    narrow = Draws(draw, (1, 3), twin.generator)
    narrow.load_state_dict(saved)  # of other environments: left out
    assert narrow.row(1).shape == (1, 3)


def test_draws_have_their_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    assert gumbel((200_000,), generator).mean().item() == pytest.approx(np.euler_gamma, abs=0.02)
    assert gumbel((200_000,), generator).var().item() == pytest.approx(np.pi**2 / 6, rel=0.02)
    assert uniform((200_000,), generator).mean().item() == pytest.approx(0.5, abs=0.01)
    assert normal((200_000,), generator).std().item() == pytest.approx(1, rel=0.01)


def test_tensors_of_a_step_are_made_once_and_share_memory() -> None:
    env = make_env("CartPole-v1", num_envs=2, seed=1)
    env.reset()
    step: Any = env.step(torch.tensor([0, 1]))
    assert isinstance(step, Transition)
    assert step.obs is step.obs
    assert step.next_obs.numpy().base is not None
    assert np.shares_memory(step.next_obs.numpy(), step.arrays["next_obs"])
    other, told = copy.copy(step), torch.tensor([True, False])
    step.truncated = told
    assert step.truncated is told
    assert step.arrays["truncated"].tolist() == [True, False]
    assert other.truncated.tolist() == other.arrays["truncated"].tolist() == [False, False]
    assert torch.equal(pickle.loads(pickle.dumps(step)).obs, step.obs)
    with pytest.raises(AttributeError, match="Rows has no attribute 'info'"):
        _ = step.info
    assert isinstance(step, Rows)


def test_arrays_act_and_step_as_tensors_do() -> None:
    for name in SMALL:
        if name == "images":
            continue
        agent, env = agent_and_env(name, 2)
        twin, _ = agent_and_env(name, 2)
        obs = env.reset()
        for explore in (True, False):
            array, tensor = agent.act(obs.numpy(), explore), twin.act(obs, explore)
            assert isinstance(array, np.ndarray)
            assert isinstance(tensor, Tensor)
            assert np.array_equal(array, tensor.numpy())
        env.step(array)
        with pytest.raises(ValueError, match="as action, got"):
            env.step(array[:1])
