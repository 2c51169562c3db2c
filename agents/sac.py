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
from .compiled import Precision
from .gradient import Compile
from .inputs import Chosen
from .optimizers import OPTIMIZERS
from .policies import ACTORS, ActorKind, AmortizedConfig
from .replay import Batch

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


@dataclass(frozen=True)
class SACConfig(AmortizedConfig, ActorCriticConfig):
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
        return {**super().rules(), **counts, **positive}


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

    @cached_property
    def policy(self) -> ActorKind:
        """The kind of the actor."""
        return ACTORS[self.config.actor](self.config, self.action_dim)

    def exploration(self) -> tuple[Callable[..., Tensor], tuple[int, ...]]:
        return self.policy.draw, (self.policy.noise_dim,)

    def make_actor(self, make_body: Callable[[int], Body]) -> nn.Module:
        return self.policy.make(make_body(self.policy.latent_dim))

    def respond(self, obs: Any, noise: Any | None) -> Any:
        return self.policy.act(self.actor, obs, noise)

    def learn(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Take the update itself: critics, actor, temperature, targets."""
        noise, next_noise = self.policy.noises(2, len(batch.index), self.generators["update"])
        alpha = self.log_alpha.detach().exp()

        metrics = self.learn_value(batch)
        metrics |= self.move_batch_norms(self.steps["critic"](batch, alpha, next_noise, updates=self.updates), *CRITICS)
        if (self.updates + 1) % self.config.policy_every == 0:
            metrics |= self.move_batch_norms(self.steps["actor"](batch, alpha, noise, updates=self.updates), "actor")
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

    @torch.no_grad()
    def target_value(self, batch: Batch, alpha: Tensor, noise: Tensor) -> Tensor:
        """Return y (batch,), the target of both critics; `noise` draws the next action."""
        action, log_prob = self._sample(batch.next_obs, noise)
        next_q = pooled(
            torch.stack([target(batch.next_obs, action) for target in self.judges()]), self.config.pessimism
        )
        return batch.reward + self.config.gamma * ~batch.terminated * self.leaned(batch, next_q - alpha * log_prob)

    def quiet_target(self, batch: Batch) -> Tensor:
        """Return y (batch,) for the next action without random numbers, of a Gaussian tanh(mean)."""
        return self.target_value(batch, self.log_alpha.exp(), self.policy.quiet(batch))

    def _sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return an action (batch, action_dim) of the current policy and its log-density (batch,)."""
        return self.policy.sample(self.networks["actor"], obs, noise)

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "log_alpha": self.log_alpha.detach()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; ValueError for a saved agent with another learn_alpha."""
        if state["optimizers"].keys() != self.optimizers.keys():
            saved, here = "alpha" in state["optimizers"], "alpha" in self.optimizers
            raise ValueError(f"{self.name}: saved with learn_alpha={saved}, this agent has learn_alpha={here}")
        super().load_state_dict(state)

    @torch.no_grad()
    def load_own_state(self, state: Mapping[str, Any]) -> None:
        super().load_own_state(state)
        self.log_alpha.copy_(state["log_alpha"])


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return 1/2 sum_i mean (Q_i - y)^2; q (critics, batch), target (batch,)."""
    return 0.5 * (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor, pessimism: float = 1.0) -> Tensor:
    """Return mean (alpha log pi - min_i Q_i), pooled by `pessimism`; q (critics, batch), log_prob (batch,)."""
    return (alpha * log_prob - pooled(q, pessimism)).mean()


def alpha_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """Return log_alpha (entropy - target_entropy), entropy = -mean log pi: lowers alpha while that is too large."""
    return log_alpha * (entropy - target_entropy)
