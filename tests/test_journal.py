"""An environment goes on in the middle of its episodes after a restart, or says that it cannot."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from plasticity.envs import make_env
from plasticity.envs.gym import GymEnv
from plasticity.envs.journal import Journal
from plasticity.envs.serial import serial

NAMES = ["Pendulum-v1", "HalfCheetah-v5", "dmc/cartpole-swingup", "dmc/walker-walk", "sanity/clock"]


def actions(env: Any, steps: int) -> list[torch.Tensor]:
    generator = np.random.default_rng(7)
    if isinstance(env.action_space, gymnasium.spaces.Discrete):
        return [torch.from_numpy(generator.integers(0, env.action_space.n, env.num_envs)) for _ in range(steps)]
    shape = (env.num_envs, *env.action_space.shape)
    return [torch.from_numpy(generator.uniform(-1, 1, shape).astype(np.float32)) for _ in range(steps)]


def play(env: Any, chosen: list[torch.Tensor]) -> list[torch.Tensor]:
    seen = []
    for action in chosen:
        transition = env.step(action)
        done = transition.terminated | transition.truncated
        seen += [transition.next_obs.clone(), transition.reward.clone(), done, env.reset(done).clone()]
    return seen


@pytest.mark.parametrize("name", [*NAMES, "minatar/breakout"])
@pytest.mark.parametrize("before", [130])
def test_a_restarted_environment_goes_on_bit_by_bit(name: str, before: int) -> None:
    if name.startswith("minatar"):
        pytest.importorskip("minatar")
    limit = {"Pendulum-v1": 50, "dmc/cartpole-swingup": 90}.get(name)  # so that a few episodes lie behind
    first = make_env(name, num_envs=2, seed=3, max_episode_steps=limit)
    chosen = actions(first, before + 60)
    first.reset()
    play(first, chosen[:before])
    state = first.state_dict()
    expected = play(first, chosen[before:])
    second = make_env(name, num_envs=2, seed=3, max_episode_steps=limit)
    assert not second.load_state_dict(state).any()
    found = play(second, chosen[before:])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert first.action_space.sample() == pytest.approx(second.action_space.sample())
    first.close()
    second.close()


def test_what_becomes_of_a_transition_does_not_reach_the_journal() -> None:
    env = make_env("Pendulum-v1", seed=1)
    env.reset()
    for action in actions(env, 5):
        transition = env.step(action)
        action.zero_()
        present = transition.next_obs.clone()
        for field in (transition.obs, transition.action, transition.reward, transition.next_obs):
            field.zero_()
    again = make_env("Pendulum-v1", seed=1)
    assert not again.load_state_dict(env.state_dict()).any()
    assert torch.equal(again.obs, present)
    env.close()
    again.close()


class Rewarding(gymnasium.Env):
    """Return one array as every reward, and write into it."""

    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.reward = np.zeros(())
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        self.reward += 1
        return np.zeros(1, np.float32), self.reward, False, False, {}


def test_an_episode_whose_rewards_are_one_array_goes_on() -> None:
    env = GymEnv("rewarding", serial(lambda seed: Journal(Rewarding())), 1, 0)
    env.reset()
    for _ in range(3):
        env.step(torch.tensor([0]))
    again = GymEnv("rewarding", serial(lambda seed: Journal(Rewarding())), 1, 0)
    assert not again.load_state_dict(env.state_dict()).any()
    assert again.step(torch.tensor([0])).reward.item() == 4.0


class Secretive(gymnasium.Env):
    """Count the episodes of the process, which no random state tells."""

    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        Secretive.episodes += 1
        return np.array([Secretive.episodes], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.array([Secretive.episodes], np.float32), 0.0, False, False, {}


def test_an_episode_that_does_not_play_the_same_is_given_up() -> None:
    env = GymEnv("secretive", serial(lambda seed: Journal(Secretive())), 2, 0)
    env.reset()
    env.step(torch.tensor([0, 1]))
    state = env.state_dict()
    lost = env.load_state_dict(state)
    assert lost.tolist() == [True, True]
    assert env.step(torch.tensor([0, 1])).next_obs.shape == (2, 1)  # it plays on


def test_there_is_no_state_before_the_first_reset() -> None:
    env = make_env("CartPole-v1")
    with pytest.raises(RuntimeError, match="reset"):
        env.state_dict()
    with pytest.raises(RuntimeError, match="reset"):
        _ = env.obs
    env.close()
