"""Proximal Policy Optimization with a clipped ratio (Schulman et al. 2017, arXiv 1707.06347).

Act for `num_steps` steps of every environment, then learn from these alone: `num_epochs` times all of them, in
shuffled minibatches. With A the generalised advantage estimates and R = A + V_old, one update on one minibatch takes
one step on

    ratio    = pi(a|s) / pi_old(a|s)
    J_policy = -mean min(ratio * A', clip(ratio, 1 - eps, 1 + eps) * A'),     A' = (A - mean A) / std A
    J_value  = 1/2 mean max((V - R)^2, (V_old + clip(V - V_old, -eps, eps) - R)^2)
    J        = J_policy + value_coef * J_value - entropy_coef * mean H(pi)

Conventions. Losses, defaults and initialisation are those of CleanRL's two scripts; with `clip_values=False` the
numbers are those of stable-baselines3 at half its vf_coef (a test holds them equal, parameter by parameter). Truncation
bootstraps with the value of the true successor, which CleanRL leaves out: only `terminated` cuts the return.
Actor and critic share nothing; one optimizer steps both, their gradients clipped together. A Gaussian's action is
clipped to [-1, 1] for the environment only: the ratio is of the sample itself. The observations of a rollout are
stored as they were acted upon, normalised by the statistics of that moment: normalised anew, they would be others, and
the ratio would not be 1 before the first update. So statistics inside the networks (simba) move between rollouts only.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from . import native
from .acting import Acting
from .asymmetric import CriticsConfig, all_values, critic_names, own_mean, sigma_of, turns, without
from .bodies import NETWORKS, make_body, widths
from .choices import OneOf, OrInfinite
from .draws import gumbel, normal
from .forward import of_obs
from .gradient import Compile
from .inputs import Chosen, gathered
from .learner import Learner
from .networks import VALUE_HEADS, CategoricalPolicy, GaussianPolicy, StateValue, orthogonal_
from .normalise import RunningNorm, update_norms
from .optimizers import AgentConfig
from .parts import ACTIVATIONS
from .ppo_losses import (
    approx_kl,
    clip_fraction,
    explained_variance,
    policy_loss,
    standardised,
    value_errors,
    value_loss,
)
from .products import Precision
from .replay import Batch
from .rewards import ReturnScaler
from .rollout import Experience, Rollout, gae
from .rows import as_tensor, equal_rows, like, row_of
from .seeding import drawn_on_the_cpu, split_seed
from .spaces import box_dim, is_discrete, num_actions

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces

# What None stands for: with continuous actions and vector observations, and otherwise (discrete actions, or images).
USUAL: dict[str, tuple[Any, Any]] = {
    "num_steps": (2048, 128),
    "num_minibatches": (32, 4),
    "num_epochs": (10, 4),
    "lr": (3e-4, 2.5e-4),
    "entropy_coef": (0.0, 0.01),
    "normalize_observations": (True, False),
    "normalize_rewards": (True, False),
}

# Steps whose old value and log-density are computed at once; bounds the memory that images need.
CHUNK = 1024

BOUND = np.ones((), np.float32)  # numpy takes an array faster than a number


@dataclass(frozen=True)
class PPOConfig(CriticsConfig, AgentConfig):
    activation: Annotated[str, OneOf(ACTIVATIONS)] | None = None  # type: ignore[assignment]
    """Hidden activation; None: tanh for mlp, relu for other networks."""
    critic_head: Annotated[str, OneOf(VALUE_HEADS)] = "linear"
    """Head of the critic; unit: on features of length 1 (Hussing et al. 2024)."""
    num_steps: int | None = None
    """Steps of every environment between two rounds of learning; None: 2048 for continuous actions, 128 otherwise."""
    num_minibatches: int | None = None
    """Parts into which these are shuffled in every epoch, each good for one update; None: 32 or 4."""
    num_epochs: int | None = None
    """Times that all of them are learned from; None: 10 or 4."""
    lr: float | None = None
    """Learning rate of actor and critic, before annealing; None: 3e-4 or 2.5e-4."""
    anneal_steps: int | None = None
    """Environment steps over which the learning rate falls linearly to 0, from rollout to rollout; 0 keeps it. None:
    keeps it too, unless whoever starts the run knows its length and fills it in."""
    gamma: float = 0.99
    """Discount factor, per environment step."""
    gae_lambda: float = 0.95
    """Lambda of the advantage estimates: 0 trusts the critic, 1 the returns alone."""
    clip_range: float = 0.2
    """How far the ratio of new to old policy may move from 1 before its gradient stops; eps above."""
    clip_values: bool = True
    """Clip the value's change too, by the same amount, in the units of (normalised) rewards."""
    value_coef: float = 0.5
    """Weight of the value loss."""
    entropy_coef: float | None = None
    """Weight of the entropy bonus; None: 0 for continuous actions, 0.01 otherwise."""
    max_grad_norm: Annotated[float, OrInfinite()] = 0.5
    """Largest norm of the gradient of all parameters together; longer ones are shortened to it. inf for none."""
    init_log_std: float = 0.0
    """Initial logarithm of the standard deviation of continuous actions."""
    target_kl: float | None = None
    """Approximate KL divergence at the end of an epoch beyond which no further epoch follows; None: no such limit."""
    value_target: Literal["lambda", "returns"] = "lambda"
    """Return that the critic learns, bootstrapped where an episode is cut: the lambda-return A + V_old, or the
    discounted rewards to go."""
    standardise: Literal["minibatch", "rollout"] = "minibatch"
    """Steps over which advantages are standardised: those of each minibatch, or all of the rollout, once."""
    initialisation: Literal["orthogonal", "default"] = "orthogonal"
    """First weights of mlp networks and of all heads: orthogonal and scaled, as PPO usually has them, or PyTorch's."""
    reward_scale: float = 1.0
    """Factor of the rewards that are learned from, normalised or not; returns are logged without it."""
    normalize_observations: bool | None = None
    """Standardise observations by running statistics; None: for continuous actions and vectors only."""
    normalize_rewards: bool | None = None
    """Scale rewards by the running spread of their discounted sums; None: as for observations."""

    def rules(self) -> dict[str, bool]:
        counts = ("num_steps", "num_minibatches", "num_epochs")
        return {
            **super().rules(),
            **self.critic_rules(),
            **{f"{name} >= 1": (value := getattr(self, name)) is None or value >= 1 for name in counts},
            "lr > 0": self.lr is None or self.lr > 0,
            "anneal_steps >= 0": self.anneal_steps is None or self.anneal_steps >= 0,
            "gamma in [0, 1]": 0 <= self.gamma <= 1,
            "gae_lambda in [0, 1]": 0 <= self.gae_lambda <= 1,
            "clip_range > 0": self.clip_range > 0,
            "value_coef >= 0": self.value_coef >= 0,
            "entropy_coef >= 0": self.entropy_coef is None or self.entropy_coef >= 0,
            "max_grad_norm > 0": self.max_grad_norm > 0,
            "reward_scale > 0": self.reward_scale > 0,
            "target_kl > 0": self.target_kl is None or self.target_kl > 0,
        }

    def filled(self, continuous: bool) -> PPOConfig:
        """Return the same with every None replaced by what is usual, save for target_kl, where None means none."""
        usual = {name: choices[0 if continuous else 1] for name, choices in USUAL.items()}
        usual |= {"activation": "tanh" if self.network == "mlp" else "relu", "anneal_steps": 0}
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})


class PPO(Learner):
    """Proximal Policy Optimization for any actions; vectors or uint8 images."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: PPOConfig | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "ppo",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        how: dict[str, Any] = {"device": device, "compile": compile, "precision": precision}
        super().__init__(observation_space, config, name=name, num_envs=num_envs, **how)
        shape, self.continuous = self.obs_shape, not is_discrete(action_space)
        if self.continuous:
            action_dim = box_dim(action_space, name, "action", "it takes a Box of one dimension, or Discrete")
        else:
            action_dim = num_actions(action_space, name)
        self.config = (config or PPOConfig()).filled(self.continuous and len(shape) == 1)
        self.minibatch_size = self._split(self.config)
        self.critics = critic_names(self.config.num_critics)
        if self.config.critic_split and num_envs % len(self.critics):
            raise ValueError(
                f"{name}: critic_split deals environments out evenly: num_envs must be a multiple of num_critics, and "
                f"{num_envs} is none of {len(self.critics)}"
            )

        act, update, weights = split_seed(seed, 3)
        self.add_draws(normal if self.continuous else gumbel, (action_dim,), act)
        self.add_generator("update", update)
        self.add_networks(self._make_networks(shape, action_dim, weights))
        self.policy = Acting(self.networks, "actor", self.compiles)
        self.forward = dict.fromkeys(("actor", *self.critics), of_obs)
        self.add_step(
            "ppo",
            self.loss,
            self.networks,
            self.config.lr,
            max_norm=self.config.max_grad_norm,
            eps=1e-5,
        )
        self.steps["ppo"].split = self.loss_parts
        self.normalisers = self._make_normalisers(shape)

        actions = ((action_dim,), torch.float32) if self.continuous else ((), torch.int64)
        self.rollout = Rollout(
            self.config.num_steps, num_envs, shape, actions[0],
            device=self.device, obs_dtype=self.obs_dtype, action_dtype=actions[1],
        )  # fmt: skip
        self._sampled: tuple[Any, Any, Any] | None = None  # what act saw, drew, and handed out
        self._next: tuple[Any, Any] = None, None  # what observe saw last, and normalised
        self._reset_learning()

    def _split(self, config: Any) -> int:
        """Return the steps per minibatch; ValueError where the rollout cannot be divided evenly."""
        size, rest = divmod(config.num_steps * self.num_envs, config.num_minibatches)
        if rest or size < 2:
            raise ValueError(
                f"{self.name}: num_steps {config.num_steps} times {self.num_envs} environments must be at least twice "
                f"num_minibatches {config.num_minibatches}, and a multiple of it: change one of the three"
            )
        return size

    def _make_networks(self, shape: tuple[int, ...], action_dim: int, seed: int) -> dict[str, nn.Module]:
        """Return actor and critic."""
        config, policy = self.config, GaussianPolicy if self.continuous else CategoricalPolicy
        with drawn_on_the_cpu(seed):
            actor = policy(make_body(config, shape, widths(config, "policy", (64, 64))), action_dim)
            hidden = widths(config, "value", (64, 64)) if config.critic_hidden is None else config.critic_hidden
            critics = {n: StateValue(make_body(config, shape, hidden), config.critic_head) for n in self.critics}
            orthogonal = config.initialisation == "orthogonal"
            if orthogonal and NETWORKS[config.network].orthogonal:
                orthogonal_(actor, math.sqrt(2))
                for critic in critics.values():
                    orthogonal_(critic, math.sqrt(2))
            if self.continuous:
                nn.init.constant_(actor.log_std, config.init_log_std)
            if orthogonal:
                orthogonal_(actor.pi[-1], 0.01)  # all actions alike at first, whatever is observed
                for critic in critics.values():
                    orthogonal_(critic.v[-1], 1.0)
        for critic in critics.values() if config.critics_alike else ():
            critic.load_state_dict(critics[self.critics[0]].state_dict())
        return {"actor": actor, **critics}

    def _make_normalisers(self, shape: tuple[int, ...]) -> dict[str, nn.Module]:
        """Return the normalisers that are switched on, by name; they belong to the agent and are no network of it."""
        normalisers: dict[str, nn.Module] = {}
        if self.config.normalize_observations:
            if len(shape) != 1:
                raise ValueError(f"{self.name}: normalize_observations is for vectors; images need none")
            normalisers["observations"] = RunningNorm(shape, clip=10.0).to(self.device)
        if self.config.normalize_rewards:
            normalisers["rewards"] = ReturnScaler(self.num_envs, self.config.gamma).to(self.device)
        return normalisers

    def act(self, obs: Any, explore: bool) -> Any:
        """Return actions, (N, action_dim) in [-1, 1] or (N,) int64: sampled; without explore the most likely ones.

        Sampled ones are remembered for the `observe` that follows; those without explore leave no trace.
        """
        known, normalised = self._next
        seen = normalised if obs is known else self._normalised(self.seen(obs))
        distribution = self.policy(seen)
        if not explore:
            return like(self._bounded(distribution.mode()), obs)
        assert self.draws is not None
        sample, action = self._sample(distribution, self.draws.row(len(seen)))
        self._sampled = seen, sample, action
        return like(action, obs)

    def observe(self, transition: Any) -> None:
        """Store one step of every environment; its action must be the one that `act` has sampled last.

        Rewards are scaled, and statistics take in the step: what is acted upon is never moved in between.
        """
        row = row_of(transition, self.device, self.obs_dtype)
        obs, sample = self._take_sampled(row["action"])
        self._next = None, None  # the statistics are about to move
        reward = row["reward"]
        if "rewards" in self.normalisers:
            reward = self.normalisers["rewards"].update(reward, row["terminated"] | row["truncated"])
        if "observations" in self.normalisers:
            self.normalisers["observations"].update(row["obs"])
        next_obs = self._normalised(row["next_obs"])
        self._next = row["next_obs"], next_obs  # mostly what is acted upon next, and not normalised twice then
        self.rollout.add(**{**row, "obs": obs, "action": sample, "reward": reward, "next_obs": next_obs})
        self.env_steps += self.num_envs

    def updates_in(self, steps: int) -> int:
        """Return the updates of the rounds of learning that `steps` environment steps make, of one round at least."""
        rounds = max(1, round(steps / (self.config.num_steps * self.num_envs)))
        return rounds * self.config.num_epochs * self.config.num_minibatches

    def ready(self) -> bool:
        """Return whether the rollout is full, and its minibatches are not used up."""
        return self.rollout.full

    def update(self) -> dict[str, Tensor]:
        """Take a gradient step on the next minibatch; the first one of a rollout judges it. Metrics are tensors."""
        if self.experience is None:
            self._judge()
        assert self.experience is not None
        part = self.minibatch % self.config.num_minibatches
        if part == 0:  # a new epoch
            self.order = torch.randperm(len(self.rollout), generator=self.generators["update"], device=self.device)
        index = self.order[part * self.minibatch_size : (part + 1) * self.minibatch_size]
        batch = Chosen(Experience, self.experience.known(), index)
        # A graph on a device copies its inputs: there they are to be few.
        metrics = self.learn(batch if self.device.type == "cpu" else gathered(batch))
        metrics["explained_variance"] = self.explained_variance
        if self.experience.values is not None:
            metrics["critic_sigma"] = sigma_of(self.experience.values).mean()
        self.updates += 1
        self.minibatch += 1
        if self._done(metrics["approx_kl"]):
            update_norms(self.norms, self.rollout.flat("obs"))
            self.rollout.clear()
            self._reset_learning()
        return metrics

    @torch.no_grad()
    def state_value(self, obs: Tensor) -> Tensor:
        """Return V(s), (N,), in the units of the normalised rewards where these are on."""
        return self._values(as_tensor(self._normalised(self.seen(obs)))).mean(-1)

    def _values(self, obs: Tensor) -> Tensor:
        """Return the values of all critics, (batch, critics)."""
        return all_values(self.networks, self.critics, obs)

    def _mean_values(self, obs: Tensor) -> Tensor:
        """Return the mean value of all critics, (batch,)."""
        return torch.cat([self._values(o).mean(-1) for o in obs.split(CHUNK)])

    def reward_factor(self) -> float:
        """Return the factor of the rewards whose values are learned, now."""
        scaler = self.normalisers.get("rewards")
        return self.config.reward_scale * (1.0 if scaler is None else scaler.factor())

    def learn(self, batch: Experience | Chosen) -> dict[str, Tensor]:
        """Take the update itself: one step of the optimizer on both losses and the entropy."""
        metrics = self.steps["ppo"](batch, updates=self.updates)
        self.check(metrics, "policy_loss", "value_loss", "entropy")
        return {**metrics, "learning_rate": self.number("rate", self.optimizers["ppo"].param_groups[0]["lr"])}

    def loss(self, batch: Experience) -> tuple[Tensor, dict[str, Tensor]]:
        """Return both losses and the entropy of a minibatch as one, and metrics."""
        c = self.config
        distribution, values = self.networks["actor"](batch.obs), self._values(batch.obs)
        log_ratio = distribution.log_prob(batch.action) - batch.log_prob
        losses = {
            "policy_loss": policy_loss(log_ratio, self._advantage(batch), c.clip_range),
            "value_loss": self._value_loss(values, batch),
            "entropy": (entropy := distribution.entropy()).mean(),
        }
        bonus = losses["entropy"]
        if c.entropy_filter and batch.values is not None:
            bonus = (without(sigma_of(batch.values), c.entropy_filter, highest=True) * entropy).mean()
        loss = losses["policy_loss"] + c.value_coef * losses["value_loss"] - c.entropy_coef * bonus
        log_ratio = log_ratio.detach()
        return loss, {
            **losses,
            "approx_kl": approx_kl(log_ratio),
            "clip_fraction": clip_fraction(log_ratio, c.clip_range),
            "value_mean": values.mean(),
            "return_mean": batch.target.mean(),
        }

    def _value_loss(self, values: Tensor, batch: Experience) -> Tensor:
        """Return the loss of all critics, each of which is clipped at its own old value, 0-D."""
        limit = self.config.clip_range if self.config.clip_values else None
        if batch.values is None:
            return value_loss(values[:, 0], batch.value, batch.target, limit)
        return own_mean(value_errors(values, batch.values, batch.target[:, None], limit), batch.turn)

    def loss_parts(self, batch: Experience) -> dict[str, Tensor]:
        """Return the parts of which the loss of a minibatch is the sum."""
        loss, metrics = self.loss(batch)
        policy, value = metrics["policy_loss"], self.config.value_coef * metrics["value_loss"]
        return {"policy": policy, "value": value, "entropy": loss - policy - value}

    def _advantage(self, batch: Experience) -> Tensor:
        found = standardised(batch.advantage) if self.config.standardise == "minibatch" else batch.advantage
        if self.config.advantage_mask and batch.values is not None:
            found = found * without(sigma_of(batch.values), self.config.advantage_mask)
        return found

    @torch.no_grad()
    def _judge(self) -> None:
        """Compute log-densities, values and advantages of the rollout's steps by the old networks, and anneal."""
        obs, action = self.rollout.flat("obs"), self.rollout.flat("action")
        pairs = zip(obs.split(CHUNK), action.split(CHUNK), strict=True)
        log_prob = torch.cat([self.networks["actor"](o).log_prob(a) for o, a in pairs])
        values = torch.cat([self._values(o) for o in obs.split(CHUNK)])
        value = values.mean(-1)

        cut, grid = self.rollout.cut(), value.view(-1, self.num_envs)
        next_value = torch.cat([grid[1:], torch.zeros_like(grid[:1])])
        if self.device.type == "cpu":
            next_value[cut] = self._mean_values(self.rollout.storage["next_obs"][cut])
        else:  # all of them: to know how many are cut means to wait
            next_value = torch.where(cut, self._mean_values(self.rollout.flat("next_obs")).view_as(grid), next_value)
        reward, terminated = self.rollout.storage["reward"], self.rollout.storage["terminated"]
        if self.config.reward_scale != 1:
            reward = reward * self.config.reward_scale
        steps = reward, grid, next_value, terminated, cut, self.config.gamma
        advantage = gae(*steps, self.config.gae_lambda).flatten()
        returns = self.config.value_target == "returns"
        target = (gae(*steps, 1.0).flatten() if returns else advantage) + value  # with lambda 1, A is R - V
        if self.config.standardise == "rollout":
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-5)

        several = self._several(values)
        self.experience = Experience(obs, action, log_prob, value, advantage, target, **several)
        self.explained_variance = explained_variance(value, self.experience.target)
        if self.config.anneal_steps:
            progress = (self.env_steps - len(self.rollout)) / self.config.anneal_steps
            for group in self.optimizers["ppo"].param_groups:
                group["lr"] = self.config.lr * max(0.0, 1.0 - progress)

    def _several(self, values: Tensor) -> dict[str, Tensor]:
        """Return the fields of Experience that several critics need, of their values (steps, critics)."""
        if len(self.critics) == 1:
            return {}
        turn = {"turn": turns(self.num_envs, len(self.critics), values)} if self.config.critic_split else {}
        return {"values": values, **turn}

    def _done(self, kl: Tensor) -> bool:
        """Return whether the rollout is used up: after the last epoch, or one that has moved the policy too far."""
        epoch, part = divmod(self.minibatch, self.config.num_minibatches)
        limit = self.config.target_kl
        return epoch == self.config.num_epochs or (limit is not None and part == 0 and bool(kl > limit))

    def _reset_learning(self) -> None:
        self.experience: Experience | None = None
        self.order = torch.empty(0, dtype=torch.int64, device=self.device)
        self.explained_variance = torch.zeros((), device=self.device)
        self.minibatch = 0

    def _normalised(self, obs: Any) -> Any:
        """Return observations, an array or a tensor, as the networks take them."""
        normaliser = self.normalisers.get("observations")
        if normaliser is None:
            return obs
        return normaliser.of_rows(obs) if isinstance(obs, np.ndarray) else normaliser(obs)

    def _sample(self, distribution: Any, noise: Any) -> tuple[Any, Any]:
        """Return what is drawn by noise, and that within the bounds of actions."""
        if self.continuous and isinstance(noise, np.ndarray) and self.compiles():
            sample, action = np.empty_like(noise), np.empty_like(noise)
            if native.loaded.sample(*distribution, noise, sample, action):
                return sample, action
        sample = distribution.sample(noise)
        return sample, self._bounded(sample)

    def _bounded(self, action: Any) -> Any:
        if not self.continuous:
            return action
        # What clip does, in a fraction of the time.
        return np.minimum(np.maximum(action, -BOUND), BOUND) if isinstance(action, np.ndarray) else action.clamp(-1, 1)

    def _take_sampled(self, action: Any) -> tuple[Any, Any]:
        """Return observation and sample of the last act(explore=True); ValueError if it returned another `action`."""
        if self._sampled is None:
            raise ValueError(f"{self.name} learns from its own actions only: call act(obs, explore=True) first")
        obs, sample, given = self._sampled
        if not equal_rows(action, given):
            raise ValueError(
                f"{self.name} learns from its own actions only: the transition's action {action.tolist()} is not the "
                f"{given.tolist()} that act(obs, explore=True) returned last"
            )
        self._sampled = None
        return obs, sample

    def own_state(self) -> dict[str, Any]:
        """Return normalisers, the rollout in progress, and how far it is learned from; valid between two steps."""
        learning: dict[str, Any] = {}
        if self.experience is not None:
            learning = {n: field for n, field in self.experience.known().items() if n not in ("obs", "action")}
            learning |= {name: getattr(self, name) for name in ("order", "minibatch", "explained_variance")}
        return {
            "normalisers": {key: dict(one.state_dict()) for key, one in self.normalisers.items()},
            "rollout": self.rollout.state_dict(),
            "learning": learning,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; ValueError for a saved agent that normalises something else.

        The rollout in progress is left out, and a new one begun, where its number of steps or environments differs.
        """
        if state["normalisers"].keys() != self.normalisers.keys():
            saved, here = (sorted(names) or "nothing" for names in (state["normalisers"], self.normalisers))
            raise ValueError(f"{self.name}: saved with normalised {saved}, this agent normalises {here}")
        super().load_state_dict(state)

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore normalisers and the rollout in progress."""
        self._load_normalisers(state["normalisers"])
        self._sampled, self._next = None, (None, None)
        self.rollout.clear()
        self._reset_learning()
        if self.rollout.fits(state["rollout"]):
            self.rollout.load_state_dict(state["rollout"])
            self._load_learning(copy.deepcopy(state["learning"]))

    def peek(self, num: int, generator: torch.Generator) -> Batch:
        """Return `num` steps of the rollout, or of the one before where it has been overwritten in part only.

        Drawn evenly with replacement; nothing that is learned changes. Observations and rewards are normalised as they
        were stored. Raises ValueError before the first step.
        """
        return self.rollout.peek(num, generator)

    def _load_normalisers(self, state: dict[str, Any]) -> None:
        for key, normaliser in self.normalisers.items():
            saved = dict(state[key])
            if "returns" in saved and len(saved["returns"]) != self.num_envs:  # the episodes under way are others
                saved["returns"] = saved["returns"].new_zeros(self.num_envs)
            normaliser.load_state_dict(saved)

    def _load_learning(self, learning: dict[str, Any]) -> None:
        if learning:
            learning = {"target": learning["advantage"] + learning["value"], **learning}  # version 0.1.0 saved none
            judged = {f.name: learning[f.name].to(self.device) for f in fields(Experience) if f.name in learning}
            self.experience = Experience(self.rollout.flat("obs"), self.rollout.flat("action"), **judged)
            self.order, self.minibatch = learning["order"].to(self.device), learning["minibatch"]
            self.explained_variance = learning["explained_variance"].to(self.device)
