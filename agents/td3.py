"""Twin Delayed Deep Deterministic policy gradient (Fujimoto et al. 2018, arXiv 1802.09477).

Two critics learn Q(s, a) of a deterministic actor that ends in a tanh; the smaller of the two target critics, asked at
a slightly disturbed action, guards against overestimation. One update, on one replayed batch:

    a'       = clip(pi_target(s') + clip(N(0, target_noise), -noise_clip, noise_clip), -1, 1)
    y        = r + gamma * (1 - terminated) * min_i Qtarget_i(s', a')
    J_critic = sum_i mean (Q_i(s, a) - y)^2

and at every `policy_every`-th update also

    J_actor  = -mean Q_1(s, pi(s))
    target  += target_tau * (network - target),     of the actor and both critics

Conventions. The numbers are those of stable-baselines3 (a test holds the two equal, parameter by parameter), which
updates the actor at the second, fourth, ... update; the authors' newest code does the same, CleanRL goes by the parity
of the environment step. The actor explores with N(0, exploration_noise) added to its action, clipped to [-1, 1]; the
standard deviations are in units of that range, whose bounds the environment rescales. Truncation bootstraps: only
`terminated` cuts the return. Every loss back-propagates into the parameters of its own optimizer only, so after an
update `.grad` of a critic is the gradient of the critic loss alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .actor_critic import CRITICS, ActorCritic, ActorCriticConfig, pooled
from .batch_norm import batch_statistics
from .bodies import Body
from .gradient import Compile
from .inputs import Chosen
from .networks import DeterministicActor
from .products import Precision
from .replay import Batch

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


@dataclass(frozen=True)
class TD3Config(ActorCriticConfig):
    actor_lr: float = 1e-3
    """Learning rate of the actor: the paper's and stable-baselines3's; CleanRL and the authors' later code use 3e-4."""
    critic_lr: float = 1e-3
    """Learning rate of both critics, as for the actor."""
    policy_every: int = 2
    """Updates of the critics per update of the actor and of the targets."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target's action, which smooths the value over similar actions."""
    noise_clip: float = 0.5
    """Bound of that noise, in both directions."""
    exploration_noise: float = 0.1
    """Standard deviation of the noise on the actions taken while training."""

    def rules(self) -> dict[str, bool]:
        return {
            **super().rules(),
            "policy_every >= 1": self.policy_every >= 1,
            "target_noise >= 0": self.target_noise >= 0,
            "noise_clip >= 0": self.noise_clip >= 0,
            "exploration_noise >= 0": self.exploration_noise >= 0,
        }


class TD3(ActorCritic):
    """Twin Delayed DDPG for continuous actions; vectors or uint8 images."""

    TARGETS = ("actor", *CRITICS)

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: TD3Config | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "td3",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        config, how = config or TD3Config(), {"num_envs": num_envs, "compile": compile, "precision": precision}
        super().__init__(observation_space, action_space, config, name=name, seed=seed, device=device, **how)
        self.noise = config.exploration_noise

    def make_actors(self, make_body: Callable[[int], Body]) -> dict[str, nn.Module]:
        """Return a deterministic actor."""
        return {"actor": DeterministicActor(make_body(0), self.action_dim)}

    def respond(self, obs: Any, noise: Any | None) -> Any:
        """Return pi(s), with noise of the present scale."""
        output = self.actor(obs)
        return output.clip(-1, 1) if noise is None else (output + self.noise * noise).clip(-1, 1)

    def set_noise(self, scale: float) -> None:
        """Set the standard deviation of the exploration noise, in place of config.exploration_noise."""
        if not scale >= 0:
            raise ValueError(f"{self.name}: exploration noise is a standard deviation >= 0, got {scale}")
        self.noise = float(scale)

    def learn(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Take the update itself: critics; at every `policy_every`-th one also the actor and targets."""
        shape = (len(batch.index), self.action_dim)
        noise = torch.randn(shape, generator=self.generators["update"], device=self.device)

        metrics = self.learn_value(batch)
        metrics |= self.move_batch_norms(self.steps["critic"](batch, noise, updates=self.updates), *CRITICS)
        if (self.updates + 1) % self.config.policy_every == 0:
            metrics |= self.move_batch_norms(self.steps["actor"](batch, updates=self.updates), "actor")
            self.move_targets()
        self.check(metrics, *metrics)
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return the loss of both critics on a batch, and metrics; `noise` smooths the target."""
        if self.joint:
            return self.joint_loss(batch, self.next_action(batch, noise))
        q = self.q(batch.obs, batch.action)
        if self.returns is None:
            loss = critic_loss(q, self.target_value(batch, noise))
        else:
            action = self.next_action(batch, noise)
            loss = self.distributed_loss(batch, self.judges(), action)
        return loss, {"critic_loss": loss, "q_mean": q.mean()}

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Return the loss of the actor at the observations of a batch, judged by the first critic, and metrics."""
        with batch_statistics([self.networks["actor"]] if self.joint else []) as seen:
            action = self.networks["actor"](batch.obs)
        loss = actor_loss(self.networks["critic_1"](batch.obs, action))
        return loss, {"actor_loss": loss, **({"batch_statistics": seen()} if self.joint else {})}

    @torch.no_grad()
    def target_value(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return y (batch,), the target of both critics; `noise` (batch, action_dim) ~ N(0, 1), as yet unscaled."""
        action = self.next_action(batch, noise)
        next_q = pooled(torch.stack([judge(batch.next_obs, action) for judge in self.judges()]), self.config.pessimism)
        return self.rewards(batch) + self.config.gamma * ~batch.terminated * self.leaned(batch, next_q)

    @torch.no_grad()
    def next_action(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the target policy's next actions (batch, action_dim), smoothed by `noise` ~ N(0, 1)."""
        policy = self.targets.get("actor", self.networks["actor"])(batch.next_obs)
        return smoothed(policy, noise, self.config.target_noise, self.config.noise_clip)

    def quiet_target(self, batch: Batch) -> Tensor:
        """Return y (batch,) without the noise on the next action."""
        return self.target_value(batch, torch.zeros_like(batch.action))

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "noise": self.noise}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        super().load_own_state(state)
        self.noise = state["noise"]


def smoothed(action: Tensor, noise: Tensor, std: float, clip: float) -> Tensor:
    """Return clip(action + clip(std * noise, -clip, clip), -1, 1): smoothing of Fujimoto et al. 2018, section 5.3.

    action, noise: (batch, action_dim), noise ~ N(0, 1); std and clip in units of the actions.
    """
    return (action + (std * noise).clamp(-clip, clip)).clamp(-1, 1)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Return sum_i mean (Q_i - y)^2; q (critics, batch), target (batch,)."""
    return (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor) -> Tensor:
    """Return -mean Q_1(s, pi(s)); q (batch,)."""
    return -q.mean()
