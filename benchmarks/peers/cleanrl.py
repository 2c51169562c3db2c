"""Loops that do, step by step, what CleanRL's scripts do (github.com/vwxyzjn/cleanrl at fe8d8a03): own code.

Networks, losses, order of operations, one Adam per network without further options, `.item()` where the scripts call
it, replay through stable-baselines3's buffer and rows for TensorBoard as there; only what they print is left out.
Environments are gymnasium's own vector environments, which reset in the same step as the scripts assume.
Every function is a generator of environment steps done: whoever times it asks for the next one.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import (
    ClipAction,
    FlattenObservation,
    NormalizeObservation,
    NormalizeReward,
    RecordEpisodeStatistics,
    TransformObservation,
    TransformReward,
)
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter

MakeEnv = Callable[[], gymnasium.Env]


def sac(make_env: MakeEnv, learning_starts: int, updates: int = 1, seed: int = 1) -> Iterator[int]:
    """`sac_continuous_action.py` with its settings: 256-256, batch 256, an update per step, the actor every second.

    `updates`: of so many, the script knows one only.
    """
    envs, writer = vector(make_env, seed), SummaryWriter(tempfile.mkdtemp())
    num_inputs, num_actions = width(envs), int(np.prod(envs.single_action_space.shape))
    actor = SquashedActor(num_inputs, num_actions, envs.single_action_space)
    q1, q2, target1, target2 = (Critic(num_inputs + num_actions) for _ in range(4))
    target1.load_state_dict(q1.state_dict())
    target2.load_state_dict(q2.state_dict())
    q_optimizer = Adam([*q1.parameters(), *q2.parameters()], lr=1e-3)
    actor_optimizer = Adam(actor.parameters(), lr=3e-4)
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha, alpha_optimizer = log_alpha.exp().item(), Adam([log_alpha], lr=1e-3)
    replay = memory(envs, 1_000_000)
    obs, _ = envs.reset(seed=seed)
    step = 0
    while True:
        if step < learning_starts:
            action = np.array([envs.single_action_space.sample()])
        else:
            action = actor.sample(torch.Tensor(obs))[0].detach().numpy()
        obs = store(envs, replay, writer, step, obs, action)
        if step > learning_starts:
            for update in range(step * updates, (step + 1) * updates):
                data = replay.sample(256)
                with torch.no_grad():
                    next_action, next_log_prob = actor.sample(data.next_observations)
                    next_q = torch.min(
                        target1(data.next_observations, next_action), target2(data.next_observations, next_action)
                    )
                    next_q = next_q - alpha * next_log_prob
                    y = data.rewards.flatten() + (1 - data.dones.flatten()) * 0.99 * next_q.view(-1)
                q1_values = q1(data.observations, data.actions).view(-1)
                q2_values = q2(data.observations, data.actions).view(-1)
                q1_loss, q2_loss = nn.functional.mse_loss(q1_values, y), nn.functional.mse_loss(q2_values, y)
                loss = q1_loss + q2_loss
                q_optimizer.zero_grad()
                loss.backward()
                q_optimizer.step()
                if update % 2 == 0:
                    for _ in range(2):
                        action_now, log_prob = actor.sample(data.observations)
                        q = torch.min(q1(data.observations, action_now), q2(data.observations, action_now))
                        actor_loss = (alpha * log_prob - q).mean()
                        actor_optimizer.zero_grad()
                        actor_loss.backward()
                        actor_optimizer.step()
                        with torch.no_grad():
                            _, log_prob = actor.sample(data.observations)
                        alpha_loss = (-log_alpha.exp() * (log_prob - num_actions)).mean()
                        alpha_optimizer.zero_grad()
                        alpha_loss.backward()
                        alpha_optimizer.step()
                        alpha = log_alpha.exp().item()
                follow(target1, q1)
                follow(target2, q2)
            if step % 100 == 0:
                rows = {"q1": q1_values.mean(), "q2": q2_values.mean(), "q1_loss": q1_loss, "q2_loss": q2_loss}
                rows |= {"q_loss": loss / 2, "actor_loss": actor_loss, "alpha_loss": alpha_loss}
                for name, value in rows.items():
                    writer.add_scalar(f"losses/{name}", value.item(), step)
                writer.add_scalar("losses/alpha", alpha, step)
        step += 1
        yield step


def td3(make_env: MakeEnv, learning_starts: int, seed: int = 1) -> Iterator[int]:
    """`td3_continuous_action.py` with its settings: 256-256, batch 256, an update per step, the actor every second."""
    envs, writer = vector(make_env, seed), SummaryWriter(tempfile.mkdtemp())
    space = envs.single_action_space
    num_inputs, num_actions = width(envs), int(np.prod(space.shape))
    actor, target_actor = (TanhActor(num_inputs, num_actions, space) for _ in range(2))
    q1, q2, target1, target2 = (Critic(num_inputs + num_actions) for _ in range(4))
    target_actor.load_state_dict(actor.state_dict())
    target1.load_state_dict(q1.state_dict())
    target2.load_state_dict(q2.state_dict())
    q_optimizer = Adam([*q1.parameters(), *q2.parameters()], lr=3e-4)
    actor_optimizer = Adam(actor.parameters(), lr=3e-4)
    replay = memory(envs, 1_000_000)
    obs, _ = envs.reset(seed=seed)
    step = 0
    while True:
        if step < learning_starts:
            action = np.array([space.sample()])
        else:
            with torch.no_grad():
                mean = actor(torch.Tensor(obs))
                mean += torch.normal(0, actor.action_scale * 0.1)
                action = mean.numpy().clip(space.low, space.high)
        obs = store(envs, replay, writer, step, obs, action)
        if step > learning_starts:
            data = replay.sample(256)
            with torch.no_grad():
                noise = (torch.randn_like(data.actions) * 0.2).clamp(-0.5, 0.5) * target_actor.action_scale
                next_action = (target_actor(data.next_observations) + noise).clamp(space.low[0], space.high[0])
                next_q = torch.min(
                    target1(data.next_observations, next_action), target2(data.next_observations, next_action)
                )
                y = data.rewards.flatten() + (1 - data.dones.flatten()) * 0.99 * next_q.view(-1)
            q1_values = q1(data.observations, data.actions).view(-1)
            q2_values = q2(data.observations, data.actions).view(-1)
            q1_loss, q2_loss = nn.functional.mse_loss(q1_values, y), nn.functional.mse_loss(q2_values, y)
            loss = q1_loss + q2_loss
            q_optimizer.zero_grad()
            loss.backward()
            q_optimizer.step()
            if step % 2 == 0:
                actor_loss = -q1(data.observations, actor(data.observations)).mean()
                actor_optimizer.zero_grad()
                actor_loss.backward()
                actor_optimizer.step()
                follow(target_actor, actor)
                follow(target1, q1)
                follow(target2, q2)
            if step % 100 == 0:
                rows = {"q1": q1_values.mean(), "q2": q2_values.mean(), "q1_loss": q1_loss, "q2_loss": q2_loss}
                rows |= {"q_loss": loss / 2, "actor_loss": actor_loss}
                for name, value in rows.items():
                    writer.add_scalar(f"losses/{name}", value.item(), step)
        step += 1
        yield step


def dqn(make_env: MakeEnv, learning_starts: int, epsilon: float, seed: int = 1) -> Iterator[int]:
    """`dqn.py` with its settings: 120-84, batch 128, an update per 10 steps; epsilon constant, not on its schedule."""
    envs, writer = vector(make_env, seed), SummaryWriter(tempfile.mkdtemp())
    num_actions = int(envs.single_action_space.n)
    network, target = (QNetwork(width(envs), num_actions) for _ in range(2))
    target.load_state_dict(network.state_dict())
    optimizer = Adam(network.parameters(), lr=2.5e-4)
    replay = memory(envs, 10_000)
    obs, _ = envs.reset(seed=seed)
    step = 0
    while True:
        if random.random() < epsilon:
            action = np.array([envs.single_action_space.sample()])
        else:
            action = torch.argmax(network(torch.Tensor(obs)), dim=1).numpy()
        obs = store(envs, replay, writer, step, obs, action)
        if step > learning_starts and step % 10 == 0:
            data = replay.sample(128)
            with torch.no_grad():
                best, _ = target(data.next_observations).max(dim=1)
                y = data.rewards.flatten() + 0.99 * best * (1 - data.dones.flatten())
            values = network(data.observations).gather(1, data.actions).squeeze()
            loss = nn.functional.mse_loss(y, values)
            if step % 100 == 0:
                writer.add_scalar("losses/td_loss", loss, step)
                writer.add_scalar("losses/q_values", values.mean().item(), step)
                writer.add_scalar("charts/SPS", 0, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step > learning_starts and step % 500 == 0:
            follow(target, network, 1.0)
        step += 1
        yield step


def ppo(make_env: MakeEnv, num_envs: int = 1, seed: int = 1) -> Iterator[int]:
    """`ppo_continuous_action.py` with its settings: 64-64 tanh, 2048 steps, 10 epochs of 32 minibatches.

    Several environments share the 2048 steps.
    """
    num_steps, gamma, lam = 2048 // num_envs, 0.99, 0.95

    def make() -> gymnasium.Env:
        env = ClipAction(RecordEpisodeStatistics(FlattenObservation(make_env())))
        env = TransformObservation(NormalizeObservation(env), lambda o: np.clip(o, -10, 10), env.observation_space)
        return TransformReward(NormalizeReward(env, gamma=gamma), lambda r: np.clip(r, -10, 10))

    envs = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    writer = SummaryWriter(tempfile.mkdtemp())
    agent = ActorCritic(width(envs), int(np.prod(envs.single_action_space.shape)))
    optimizer = Adam(agent.parameters(), lr=3e-4, eps=1e-5)
    obs = torch.zeros((num_steps, num_envs, *envs.single_observation_space.shape))
    actions = torch.zeros((num_steps, num_envs, *envs.single_action_space.shape))
    log_probs, rewards, dones, values = (torch.zeros((num_steps, num_envs)) for _ in range(4))
    step, next_done = 0, torch.zeros(num_envs)
    next_obs = torch.Tensor(envs.reset(seed=seed)[0])
    while True:
        for t in range(num_steps):
            obs[t], dones[t] = next_obs, next_done
            with torch.no_grad():
                action, log_prob, _, value = agent(next_obs)
                values[t] = value.flatten()
            actions[t], log_probs[t] = action, log_prob
            found, reward, terminated, truncated, infos = envs.step(action.numpy())
            log_episodes(writer, step, infos)
            rewards[t] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(found), torch.Tensor(np.logical_or(terminated, truncated))
            step += num_envs
            if t < num_steps - 1:
                yield step
        with torch.no_grad():
            next_value = agent.critic(next_obs).reshape(1, -1)
            advantages, last = torch.zeros_like(rewards), 0
            for t in reversed(range(num_steps)):
                is_last = t == num_steps - 1
                alive = 1.0 - (next_done if is_last else dones[t + 1])
                delta = rewards[t] + gamma * (next_value if is_last else values[t + 1]) * alive - values[t]
                advantages[t] = last = delta + gamma * lam * alive * last
            returns = advantages + values
        flat = [
            x.reshape(num_steps * num_envs, *x.shape[2:])
            for x in (obs, actions, log_probs, advantages, returns, values)
        ]
        order, clipped = np.arange(num_steps * num_envs), []
        for _ in range(10):
            np.random.shuffle(order)
            for start in range(0, num_steps * num_envs, 64):
                clipped.append(ppo_update(agent, optimizer, *(x[order[start : start + 64]] for x in flat)))
        writer.add_scalar("losses/clipfrac", np.mean(clipped), step)
        for name, value in {"explained_variance": 1 - (returns - values).var() / returns.var(), "lr": 3e-4}.items():
            writer.add_scalar(f"losses/{name}", float(value), step)
        yield step


def ppo_update(
    agent: ActorCritic, optimizer: Adam, obs: Tensor, action: Tensor, log_prob: Tensor, advantage: Tensor,
    target: Tensor, old_value: Tensor,
) -> float:  # fmt: skip
    """Take one step on a minibatch; return the share of clipped ratios."""
    _, new_log_prob, entropy, value = agent(obs, action)
    log_ratio = new_log_prob - log_prob
    ratio = log_ratio.exp()
    with torch.no_grad():
        ((ratio - 1) - log_ratio).mean()
        clipped = ((ratio - 1.0).abs() > 0.2).float().mean().item()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy_loss = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 0.8, 1.2)).mean()
    value = value.view(-1)
    moved = old_value + torch.clamp(value - old_value, -0.2, 0.2)
    value_loss = 0.5 * torch.max((value - target) ** 2, (moved - target) ** 2).mean()
    loss = policy_loss - 0.0 * entropy.mean() + 0.5 * value_loss
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    return clipped


# --- parts ---


def vector(make_env: MakeEnv, seed: int) -> SyncVectorEnv:
    """Return one environment, counted and seeded, as a vector environment."""

    def make() -> gymnasium.Env:
        env = RecordEpisodeStatistics(make_env())
        env.action_space.seed(seed)
        return env

    envs = SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP)
    if envs.single_observation_space.dtype == np.float64:
        envs.single_observation_space.dtype = np.dtype(np.float32)  # as the scripts do
    return envs


def width(envs: SyncVectorEnv) -> int:
    """Return the number of input features."""
    return int(np.prod(envs.single_observation_space.shape))


def memory(envs: SyncVectorEnv, size: int) -> ReplayBuffer:
    """Return the replay memory that the scripts use."""
    spaces = (envs.single_observation_space, envs.single_action_space)
    return ReplayBuffer(size, *spaces, "cpu", n_envs=1, handle_timeout_termination=False)


def store(
    envs: SyncVectorEnv, replay: ReplayBuffer, writer: SummaryWriter, step: int, obs: np.ndarray, action: np.ndarray
) -> np.ndarray:
    """Step, store the transition with its true successor, and return the observations to go on from."""
    next_obs, reward, terminated, truncated, infos = envs.step(action)
    log_episodes(writer, step, infos)
    successor = next_obs.copy()
    for index, cut in enumerate(truncated):
        if cut:
            successor[index] = infos["final_obs"][index]
    replay.add(obs, successor, action, reward, terminated, [infos])
    return next_obs


def log_episodes(writer: SummaryWriter, step: int, infos: dict[str, Any]) -> None:
    """Write return and length of the episode that ended, if one did."""
    if "final_info" in infos:
        episode = infos["final_info"]["episode"]
        writer.add_scalar("charts/episodic_return", episode["r"][0], step)
        writer.add_scalar("charts/episodic_length", episode["l"][0], step)


def follow(target: nn.Module, source: nn.Module, tau: float = 0.005) -> None:
    """Move a target network."""
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.data.copy_(tau * new.data + (1 - tau) * old.data)


class Critic(nn.Module):
    """Q(s, a)."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(num_inputs, 256), nn.Linear(256, 256), nn.Linear(256, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = nn.functional.relu(self.fc1(torch.cat([obs, action], 1)))
        return self.fc3(nn.functional.relu(self.fc2(x)))


class TanhActor(nn.Module):
    """TD3's policy."""

    def __init__(self, num_inputs: int, num_actions: int, space: gymnasium.spaces.Box) -> None:
        super().__init__()
        self.fc1, self.fc2, self.mean = nn.Linear(num_inputs, 256), nn.Linear(256, 256), nn.Linear(256, num_actions)
        scale, bias = (space.high - space.low) / 2, (space.high + space.low) / 2
        self.register_buffer("action_scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("action_bias", torch.tensor(bias, dtype=torch.float32))

    def body(self, obs: Tensor) -> Tensor:
        return nn.functional.relu(self.fc2(nn.functional.relu(self.fc1(obs))))

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.mean(self.body(obs))) * self.action_scale + self.action_bias


class SquashedActor(TanhActor):
    """SAC's policy."""

    def __init__(self, num_inputs: int, num_actions: int, space: gymnasium.spaces.Box) -> None:
        super().__init__(num_inputs, num_actions, space)
        self.log_std = nn.Linear(256, num_actions)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(obs)
        mean, log_std = self.mean(features), -5 + 3.5 * (torch.tanh(self.log_std(features)) + 1)
        normal = Normal(mean, log_std.exp())
        x = normal.rsample()
        y = torch.tanh(x)
        log_prob = normal.log_prob(x) - torch.log(self.action_scale * (1 - y.pow(2)) + 1e-6)
        torch.tanh(mean) * self.action_scale + self.action_bias
        return y * self.action_scale + self.action_bias, log_prob.sum(1, keepdim=True)


class QNetwork(nn.Module):
    """Values of all actions."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()
        layers = [nn.Linear(num_inputs, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_actions)]
        self.network = nn.Sequential(*layers)

    def forward(self, obs: Tensor) -> Tensor:
        return self.network(obs)


class ActorCritic(nn.Module):
    """PPO's two networks."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()
        self.critic, self.mean = (self._mlp(num_inputs, n, std) for n, std in ((1, 1.0), (num_actions, 0.01)))
        self.log_std = nn.Parameter(torch.zeros(1, num_actions))

    @staticmethod
    def _mlp(num_inputs: int, num_outputs: int, std: float) -> nn.Sequential:
        layers = []
        for n, m, gain in ((num_inputs, 64, 2**0.5), (64, 64, 2**0.5), (64, num_outputs, std)):
            layer = nn.Linear(n, m)
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.constant_(layer.bias, 0.0)
            layers += [layer, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def forward(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = self.mean(obs)
        policy = Normal(mean, torch.exp(self.log_std.expand_as(mean)))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action).sum(1), policy.entropy().sum(1), self.critic(obs)
