"""Soft Actor-Critic with a learned temperature (Haarnoja et al. 2018, arXiv 1812.05905).

Two critics learn Q(s, a) of rewards plus alpha times entropy, a tanh-squashed Gaussian actor maximises it, and the
temperature alpha is moved so that the policy's entropy stays at `target_entropy`. One update, on one replayed batch:

    y        = r + gamma * (1 - terminated) * (min_i Qtarget_i(s', a') - alpha * log pi(a'|s')),      a' ~ pi(s')
    J_critic = 1/2 * sum_i mean (Q_i(s, a) - y)^2
    J_actor  = mean (alpha * log pi(a|s) - min_i Q_i(s, a)),                                          a ~ pi(s)
    J_alpha  = log_alpha * (-mean log pi(a|s) - target_entropy)
    Qtarget_i += target_tau * (Q_i - Qtarget_i)

Conventions. The numbers are those of stable-baselines3 (a test holds the two equal, parameter by parameter):
the log-density of the actor's loss serves the temperature too, and all three losses use alpha from before the update.
stable-baselines3 draws and steps in another order (temperature, critics, actor); as no step feeds another one's loss
except critics -> actor, the result is the same. CleanRL differs in three places: its critic loss has no factor 1/2
(under Adam that is nearly a matter of epsilon only), its temperature loss weighs by exp(log_alpha) instead of log_alpha
and draws fresh actions, and its log_std is tanh-rescaled into [-5, 2] instead of clamped to [-20, 2].
Truncation bootstraps: only `terminated` cuts the return. Actions are in [-1, 1]; the environment rescales them, so
the bounds of the action space are not read here. Every loss back-propagates into the parameters of its own optimizer
only, so after an update `.grad` of a critic is the gradient of the critic loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from . import adam
from .actor_critic import CRITICS, ActorCritic, ActorCriticConfig, pooled
from .batch_norm import batch_statistics
from .bodies import Body
from .choices import OneOf
from .gradient import Compile
from .hl_gauss import Quantiles
from .inputs import Chosen
from .optimism import (
    BETAS,
    RATE,
    OptimismConfig,
    Optimist,
    divergence_of,
    optimistic_loss,
    raw_gradient,
    raw_weights,
    shifted_action,
    weights_of,
)
from .optimizers import OPTIMIZERS
from .policies import ACTORS, ActorKind, AmortizedConfig
from .products import Precision
from .replay import Batch
from .rows import as_tensor

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


@dataclass(frozen=True)
class SACConfig(OptimismConfig, AmortizedConfig, ActorCriticConfig):
    actor: Annotated[str, OneOf(ACTORS)] = "gaussian"
    """Kind of policy: a squashed Gaussian, or a network of observation and noise that has no density."""
    actor_lr: float = 3e-4
    """Learning rate of the actor."""
    critic_lr: float = 1e-3
    """Learning rate of both critics: CleanRL's and the GraMa paper's; stable-baselines3 uses 3e-4."""
    alpha_lr: float = 1e-3
    """Learning rate of log alpha: CleanRL's; with stable-baselines3's 3e-4 the temperature takes 20,000 updates to fall
    from 1 to where rewards of at most 1 per step need it."""
    policy_every: int = 1
    """Updates of the critics per update of actor and temperature; 3 in CrossQ."""
    target_entropy: float | None = None
    """Entropy the temperature steers to, in nats; None: minus the number of action dimensions, or of an amortized actor
    diversity_target."""
    init_alpha: float = 1.0
    """Initial temperature."""
    learn_alpha: bool = True
    """Adapt the temperature; otherwise it stays at init_alpha."""

    def rules(self) -> dict[str, bool]:
        counts = {f"{name} >= 1": getattr(self, name) >= 1 for name in ("latent_dim", "num_pairs", "policy_every")}
        positive = {f"{name} > 0": getattr(self, name) > 0 for name in ("init_alpha", "diversity_target")}
        plain = self.actor == "gaussian" and self.network != "crossq"
        alone = {"optimism=0 unless the actor is gaussian, and with crossq": not self.optimism or plain}
        return {**super().rules(), **counts, **positive, **self.optimism_rules(), **alone}


class SAC(ActorCritic):
    """Soft Actor-Critic for continuous actions; vectors or uint8 images."""

    TARGETS = ("critic_1", "critic_2")

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: SACConfig | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "sac",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        config, how = config or SACConfig(), {"num_envs": num_envs, "compile": compile, "precision": precision}
        super().__init__(observation_space, action_space, config, name=name, seed=seed, device=device, **how)
        self.steps["actor"].split = self.actor_parts
        self.target_entropy = self.policy.target if config.target_entropy is None else config.target_entropy
        self.log_alpha = torch.tensor(math.log(config.init_alpha), device=self.device, requires_grad=config.learn_alpha)
        if config.learn_alpha:
            self.optimizers["alpha"] = OPTIMIZERS["adam"]([self.log_alpha], lr=config.alpha_lr)
        if config.optimism:
            self.forward = {**self.forward, "optimist": self.shift_of}
            self.add_step("optimist", self.optimist_loss, ["optimist"], config.actor_lr)
            self.raw_weights = raw_weights(config.optimism).to(self.device).requires_grad_(True)
            self.optimizers["optimism"] = OPTIMIZERS["adam"]([self.raw_weights], lr=RATE, betas=BETAS)

    @cached_property
    def policy(self) -> ActorKind:
        """The kind of the actor."""
        return ACTORS[self.config.actor](self.config, self.action_dim)

    def exploration(self) -> tuple[Callable[..., Tensor], tuple[int, ...]]:
        return self.policy.draw, (self.policy.noise_dim,)

    def make_actors(self, make_body: Callable[[int], Body]) -> dict[str, nn.Module]:
        actors = {"actor": self.policy.make(make_body(self.policy.latent_dim))}
        if self.config.optimism:
            actors["optimist"] = Optimist(make_body(self.action_dim), self.action_dim)
        return actors

    def respond(self, obs: Any, noise: Any | None) -> Any:
        if noise is None or not self.config.optimism:
            return self.policy.act(self.actor, obs, noise)
        mean, log_std = map(as_tensor, self.actor(obs))
        with torch.no_grad():
            shift = self.networks["optimist"](as_tensor(obs), mean)
        return shifted_action(mean, log_std, shift, as_tensor(noise), self.config.explore_std)

    def learn(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Take the update itself: critics, actor, temperature, targets."""
        num = 3 if self.config.optimism else 2
        noise, next_noise, *more = self.policy.noises(num, len(batch.index), self.generators["update"])
        alpha = self.log_alpha.detach().exp()

        metrics = self.learn_value(batch)
        metrics |= self.move_batch_norms(self.steps["critic"](batch, alpha, next_noise, updates=self.updates), *CRITICS)
        if (self.updates + 1) % self.config.policy_every == 0:
            metrics |= self.move_batch_norms(self.steps["actor"](batch, alpha, noise, updates=self.updates), "actor")
            metrics |= self.learn_optimism(batch, *more) if more else {}
        if self.policy.measure in metrics and self.config.learn_alpha:
            entropy = metrics[self.policy.measure]
            self.log_alpha.grad = entropy - self.target_entropy  # of alpha_loss, which is linear
            metrics["alpha_loss"] = alpha_loss(self.log_alpha.detach(), entropy, self.target_entropy)
            adam.step(self.optimizers["alpha"], [self.log_alpha])
        self.move_targets()
        self.check(metrics, *metrics)
        return {**metrics, "alpha": alpha}

    def critic_loss(self, batch: Batch, alpha: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return the loss of both critics on a batch, and metrics; `noise` draws the next actions."""
        if self.joint:
            action, log_prob = self._sample(batch.next_obs, noise)
            loss, metrics = self.joint_loss(batch, action.detach(), -alpha * log_prob.detach())
            if self.returns is None:
                loss = metrics["critic_loss"] = 0.5 * loss
            return loss, metrics
        q = self.q(batch.obs, batch.action)
        if self.returns is None:
            loss = critic_loss(q, self.target_value(batch, alpha, noise))
        else:
            action, log_prob = self._sample(batch.next_obs, noise)
            loss = self.distributed_loss(batch, self.judges(), action.detach(), -alpha * log_prob.detach())
        return loss, {"critic_loss": loss, "q_mean": q.mean()}

    def actor_loss(self, batch: Batch, alpha: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return the loss of the actor at the observations of a batch, and metrics; `noise` draws the actions."""
        with batch_statistics([self.networks["actor"]] if self.joint else []) as seen:
            action, log_prob = self._sample(batch.obs, noise)
        loss = actor_loss(self.q(batch.obs, action), log_prob, alpha, self.config.pessimism)
        metrics = {"actor_loss": loss, self.policy.measure: -log_prob.mean()}
        return loss, {**metrics, "batch_statistics": seen()} if self.joint else metrics

    def actor_parts(self, batch: Batch, alpha: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return the parts of which the actor's loss is the sum: minus the value, and minus the entropy bonus."""
        loss, metrics = self.actor_loss(batch, alpha, noise)
        bonus = alpha * metrics[self.policy.measure]
        return {"value": loss + bonus, "entropy": -bonus}

    def learn_optimism(self, batch: Batch | Chosen, noise: Tensor) -> dict[str, Tensor]:
        """Take the step of the optimistic policy and of its two weights, and return metrics."""
        raw = self.raw_weights.detach()
        weights = weights_of(raw)
        metrics = self.steps["optimist"](batch, weights, noise, updates=self.updates)
        raw_kl = metrics["optimist_kl"] / self.action_dim
        self.raw_weights.grad = raw_gradient(raw, raw_kl, self.config.kl_target)
        adam.step(self.optimizers["optimism"], [self.raw_weights])
        return {**metrics, "optimism": weights[0], "kl_weight": weights[1]}

    def optimist_loss(self, batch: Batch, weights: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the optimistic policy on a batch, and metrics; `weights` (2,), see `optimism.py`."""
        mean, log_std = self._gaussian(batch.obs)
        shift = self.networks["optimist"](batch.obs, mean)
        action = shifted_action(mean, log_std, shift, noise, self.config.explore_std)
        by_quantile = isinstance(self.returns, Quantiles)
        q = torch.stack([self.networks[name](batch.obs, action, by_quantile) for name in CRITICS])
        divergence = divergence_of(shift, log_std)
        loss = optimistic_loss(q, divergence, weights)
        return loss, {"optimist_loss": loss, "optimist_kl": divergence}

    def shift_of(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the output of the optimist, or of a copy of it, at the observations of a batch."""
        shift: Tensor = module(batch.obs, self._gaussian(batch.obs)[0])
        return shift

    @torch.no_grad()
    def _gaussian(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actor's mean and log_std, both (batch, action_dim)."""
        mean, log_std = self.networks["actor"](obs)
        return mean, log_std

    @torch.no_grad()
    def target_value(self, batch: Batch, alpha: Tensor, noise: Tensor) -> Tensor:
        """Return y (batch,), the target of both critics; `noise` draws the next action."""
        action, log_prob = self._sample(batch.next_obs, noise)
        next_q = pooled(
            torch.stack([target(batch.next_obs, action) for target in self.judges()]), self.config.pessimism
        )
        return self.rewards(batch) + self.config.gamma * ~batch.terminated * self.leaned(
            batch, next_q - alpha * log_prob
        )

    def quiet_target(self, batch: Batch) -> Tensor:
        """Return y (batch,) for the next action without random numbers, of a Gaussian tanh(mean)."""
        return self.target_value(batch, self.log_alpha.exp(), self.policy.quiet(batch))

    def _sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return an action (batch, action_dim) of the current policy and its log-density (batch,)."""
        return self.policy.sample(self.networks["actor"], obs, noise)

    def own_state(self) -> dict[str, Any]:
        optimism = {"optimism": self.raw_weights.detach()} if self.config.optimism else {}
        return {**super().own_state(), "log_alpha": self.log_alpha.detach(), **optimism}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; ValueError for a saved agent with other parts."""
        for name, option in (("alpha", "learn_alpha"), ("optimism", "optimism > 0"), ("value", "value_expectile > 0")):
            if (saved := name in state["optimizers"]) != (here := name in self.optimizers):
                raise ValueError(f"{self.name}: saved with {option}={saved}, this agent has {option}={here}")
        super().load_state_dict(state)

    @torch.no_grad()
    def load_own_state(self, state: Mapping[str, Any]) -> None:
        super().load_own_state(state)
        self.log_alpha.copy_(state["log_alpha"])
        if self.config.optimism:
            self.raw_weights.copy_(state["optimism"])


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return 1/2 sum_i mean (Q_i - y)^2; q (critics, batch), target (batch,)."""
    return 0.5 * (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor, pessimism: float = 1.0) -> Tensor:
    """Return mean (alpha log pi - min_i Q_i), pooled by `pessimism`; q (critics, batch), log_prob (batch,)."""
    return (alpha * log_prob - pooled(q, pessimism)).mean()


def alpha_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Return log_alpha (entropy - target_entropy), entropy = -mean log pi: lowers alpha while that is too large."""
    return log_alpha * (entropy - target_entropy)
