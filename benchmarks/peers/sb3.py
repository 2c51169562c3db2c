"""stable-baselines3 with the settings of the comparison; `learn(steps)` goes on where it was."""

from __future__ import annotations

from collections.abc import Callable

import stable_baselines3 as sb3
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

from .cleanrl import MakeEnv

Learn = Callable[[int], None]


def learner(model: sb3.common.base_class.BaseAlgorithm) -> Learn:
    """Return what makes so many more environment steps."""
    return lambda steps: model.learn(steps, reset_num_timesteps=False)


def vector(make_env: MakeEnv, num_envs: int = 1) -> VecEnv:
    return DummyVecEnv([lambda: Monitor(make_env())] * num_envs)


def sac(make_env: MakeEnv, learning_starts: int, updates: int = 1) -> Learn:
    policy, more = {"net_arch": [256, 256]}, {"learning_starts": learning_starts, "gradient_steps": updates}
    return learner(sb3.SAC("MlpPolicy", vector(make_env), policy_kwargs=policy, device="cpu", **more))


def td3(make_env: MakeEnv, learning_starts: int) -> Learn:
    policy = {"net_arch": [256, 256]}
    return learner(
        sb3.TD3("MlpPolicy", vector(make_env), learning_starts=learning_starts, policy_kwargs=policy, device="cpu")
    )


def ppo(make_env: MakeEnv, num_envs: int = 1) -> Learn:
    """With observations and rewards normalised, as CleanRL and we do."""
    envs, num_steps = VecNormalize(vector(make_env, num_envs), gamma=0.99), 2048 // num_envs
    policy = {"net_arch": [64, 64], "activation_fn": nn.Tanh}
    return learner(
        sb3.PPO("MlpPolicy", envs, n_steps=num_steps, batch_size=64, n_epochs=10, policy_kwargs=policy, device="cpu")
    )


def dqn(make_env: MakeEnv, learning_starts: int, epsilon: float) -> Learn:
    """With CleanRL's settings, and epsilon constant."""
    constant = {"exploration_initial_eps": epsilon, "exploration_final_eps": epsilon}
    schedule = {"train_freq": 10, "gradient_steps": 1, "target_update_interval": 500}
    sizes = {"buffer_size": 10_000, "batch_size": 128, "learning_starts": learning_starts}
    policy = {"net_arch": [120, 84]}
    envs = vector(make_env)
    return learner(
        sb3.DQN(
            "MlpPolicy", envs, learning_rate=2.5e-4, policy_kwargs=policy, device="cpu", **constant, **schedule, **sizes
        )
    )


torch.set_num_threads(1)
