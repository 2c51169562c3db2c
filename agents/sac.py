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

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .acting import Acting
from .bodies import make_body, widths
from .compiled import Precision
from .gradient import Compile, GradientStep
from .networks import Actor, Critic, squashed_gaussian
from .normalise import running_norms, update_norms
from .optimizers import OPTIMIZERS, AgentConfig
from .replay import Batch, ReplayBuffer
from .seeding import drawn_on_the_cpu, split_seed
from .spaces import box_dim, obs_dtype, obs_shape
from .state import load_shared_state, shared_state
from .updates import Finite, as_batch, gradient_step, polyak_

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


@dataclass(frozen=True)
class SACConfig(AgentConfig):
    gamma: float = 0.99
    """Discount factor, per environment step."""
    target_tau: float = 0.005
    """Share by which the target critics move towards the critics at every update."""
    batch_size: int = 256
    """Transitions per update."""
    actor_lr: float = 3e-4
    """Learning rate of the actor."""
    critic_lr: float = 1e-3
    """Learning rate of both critics: CleanRL's and the GraMa paper's; stable-baselines3 uses 3e-4."""
    alpha_lr: float = 1e-3
    """Learning rate of log alpha: CleanRL's; with stable-baselines3's 3e-4 the temperature takes 20,000 updates to fall
    from 1 to where rewards of at most 1 per step need it."""
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers; None: `hidden`, or what is usual for a critic of the network."""
    learning_starts: int = 5_000
    """Environment steps with uniformly random actions before the first update."""
    buffer_size: int = 1_000_000
    """Transitions kept for replay."""
    updates_per_step: float = 1.0
    """Updates per environment step (each of num_envs parallel environments counts); may be a fraction."""
    target_entropy: float | None = None
    """Entropy the temperature steers to, in nats; None: minus the number of action dimensions."""
    init_alpha: float = 1.0
    """Initial temperature."""
    learn_alpha: bool = True
    """Whether to adapt the temperature; if not, it stays at init_alpha."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "gamma in [0, 1]": 0 <= self.gamma <= 1,
            "target_tau in (0, 1]": 0 < self.target_tau <= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "updates_per_step > 0": self.updates_per_step > 0,
            "init_alpha > 0": self.init_alpha > 0,
            "0 <= learning_starts < buffer_size": 0 <= self.learning_starts < self.buffer_size,
        }
        if broken := [rule for rule, holds in checks.items() if not holds]:
            raise ValueError(f"SACConfig needs {', '.join(broken)}; got {self}")


class SAC:
    """Soft Actor-Critic for vectors or uint8 images (channels, height, width) and one-dimensional Box actions.

    With images every network has convolutions of its own: nothing is shared, and the actor's are trained by its loss.
    """

    def __init__(
        self,
        observation_space: "spaces.Space",
        action_space: "spaces.Space",
        config: SACConfig | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "sac",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.config = config = config or SACConfig()
        self.name, self.num_envs, self.device = name, num_envs, torch.device(device)
        shape, self.obs_dtype = obs_shape(observation_space, name), obs_dtype(observation_space)
        self.action_dim = action_dim = box_dim(action_space, name, "action", "its policy is continuous")
        self.target_entropy = -float(action_dim) if config.target_entropy is None else config.target_entropy
        self.steps = 0  # environment steps observed
        self.updates = 0
        self.finite = Finite(name)
        self.updates_owed = 0.0

        seeds = split_seed(seed, 4)
        self.generators = {
            "act": torch.Generator(self.device).manual_seed(seeds[0]),
            "update": torch.Generator(self.device).manual_seed(seeds[1]),
        }
        memory = {"num_envs": num_envs, "device": self.device, "seed": seeds[2], "obs_dtype": self.obs_dtype}
        self.buffer = ReplayBuffer(config.buffer_size, shape, (action_dim,), **memory)
        if config.learning_starts > self.buffer.capacity - num_envs:  # the memory would never be learnable
            raise ValueError(f"{name}: learning_starts {config.learning_starts} does not fit into {self.buffer}")

        with drawn_on_the_cpu(seeds[3]):
            actor = Actor(make_body(config, shape, widths(config, "policy")), action_dim)
            hidden = widths(config, "value") if config.critic_hidden is None else config.critic_hidden
            critics = {
                key: Critic(make_body(config, shape, hidden, extra_dim=action_dim)) for key in ("critic_1", "critic_2")
            }
        self.networks: dict[str, nn.Module] = {
            key: network.to(self.device) for key, network in {"actor": actor, **critics}.items()
        }
        self.actor = Acting(self.networks, "actor")
        self.targets = {key: copy.deepcopy(critic).requires_grad_(False) for key, critic in critics.items()}
        self.norms = running_norms([*self.networks.values(), *self.targets.values()])
        self.log_alpha = torch.tensor(math.log(config.init_alpha), device=self.device, requires_grad=config.learn_alpha)

        critic_parameters = [p for critic in critics.values() for p in critic.parameters()]
        self.optimizers: dict[str, Optimizer] = {
            "actor": config.make_optimizer(actor.parameters(), config.actor_lr),
            "critic": config.make_optimizer(critic_parameters, config.critic_lr),
        }
        if config.learn_alpha:
            self.optimizers["alpha"] = OPTIMIZERS["adam"]([self.log_alpha], lr=config.alpha_lr)
        how: dict[str, Any] = {"compile": compile, "precision": precision}
        self.critic_step = GradientStep(
            self.critic_loss, [self.networks, self.targets], self.optimizers, "critic", **how
        )
        self.actor_step = GradientStep(self.actor_loss, [self.networks], self.optimizers, "actor", **how)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool) -> Tensor:
        """Actions (N, action_dim) in [-1, 1]: random during the warm-up, then sampled; without explore tanh(mean)."""
        obs, generator = obs.to(self.device, self.obs_dtype), self.generators["act"]
        shape = (len(obs), self.action_dim)
        if explore and self.steps < self.config.learning_starts:
            return 2 * torch.rand(shape, generator=generator, device=self.device) - 1
        mean, log_std = self.actor(obs)
        if explore:  # what squashed_gaussian draws, without its density
            mean = mean + log_std.exp() * torch.randn(shape, generator=generator, device=self.device)
        return torch.tanh(mean)

    def observe(self, transition: Any) -> None:
        """Store one step of every environment, and owe the updates that it brings."""
        self.buffer.add(transition)
        if self.norms:
            update_norms(self.norms, transition.obs)
        self.steps += self.num_envs
        # Judged by the memory, not by steps: after resuming without it, learning waits until it is filled again.
        learnable = min(self.num_envs, len(self.buffer) - self.config.learning_starts)
        self.updates_owed += max(0, learnable) * self.config.updates_per_step

    def ready(self) -> bool:
        """Whether an update is owed."""
        return self.updates_owed >= 1 - 1e-9  # ten times 0.1 is below 1 in floating point

    def update(self) -> dict[str, Tensor]:
        """One update on a replayed batch. Metrics are tensors on the agent's device."""
        metrics = self.learn(self.buffer.sample(self.config.batch_size))
        self.updates += 1
        self.updates_owed -= 1
        return metrics

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """min_i Q_i(s, a), shape (N,)."""
        return self._q(obs.to(self.device, self.obs_dtype), action.to(self.device, torch.float32)).amin(0)

    @torch.no_grad()
    def td_error(self, transition: Any) -> Tensor:
        """Root mean square over both critics of Q_i(s, a) - y, (N,), for steps just taken.

        The next action is tanh(mean), so that no random number is drawn; y is the target of `learn` otherwise, with
        the log-density of that action.
        """
        batch = as_batch(transition, self.device, self.obs_dtype)
        y = self.target_value(batch, self.log_alpha.exp(), torch.zeros_like(batch.action))
        return (self._q(batch.obs, batch.action) - y).square().mean(0).sqrt()

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """The update itself: critics, actor, temperature, targets."""
        shape = (2, len(batch.reward), self.action_dim)
        noise, next_noise = torch.randn(shape, generator=self.generators["update"], device=self.device)
        alpha = self.log_alpha.detach().exp()

        metrics = self.critic_step(batch, alpha, next_noise, updates=self.updates)
        metrics |= self.actor_step(batch.obs, alpha, noise, updates=self.updates)
        if self.config.learn_alpha:
            loss = alpha_loss(self.log_alpha, metrics["entropy"], self.target_entropy)
            gradient_step(self.optimizers["alpha"], loss)
            metrics["alpha_loss"] = loss.detach()
        for key, target in self.targets.items():
            polyak_(target, self.networks[key], self.config.target_tau)
        self.finite.check(metrics, self.updates + 1)
        return {**metrics, "alpha": alpha}

    def critic_loss(self, batch: Batch, alpha: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of both critics on a batch; `noise` draws the next actions."""
        q = self._q(batch.obs, batch.action)
        loss = critic_loss(q, self.target_value(batch, alpha, noise))
        return loss, {"critic_loss": loss, "q_mean": q.mean()}

    def actor_loss(self, obs: Tensor, alpha: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the actor at these observations; `noise` draws the actions."""
        action, log_prob = self._sample(obs, noise)
        loss = actor_loss(self._q(obs, action), log_prob, alpha)
        return loss, {"actor_loss": loss, "entropy": -log_prob.mean()}

    @torch.no_grad()
    def target_value(self, batch: Batch, alpha: Tensor, noise: Tensor) -> Tensor:
        """y (batch,), the regression target of both critics; `noise` (batch, action_dim) draws the next action."""
        action, log_prob = self._sample(batch.next_obs, noise)
        next_q = torch.stack([target(batch.next_obs, action) for target in self.targets.values()]).amin(0)
        return batch.reward + self.config.gamma * ~batch.terminated * (next_q - alpha * log_prob)

    def _sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action (batch, action_dim) of the current policy and its log-density (batch,)."""
        mean, log_std = self.networks["actor"](obs)
        return squashed_gaussian(mean, log_std, noise)

    def _q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Both critics: (2, batch)."""
        return torch.stack([self.networks[key](obs, action) for key in self.targets])

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that is needed to act and to go on, except the replay memory (`buffer.state_dict()`)."""
        return copy.deepcopy(
            {
                **shared_state(self),
                "log_alpha": self.log_alpha.detach(),
                "counters": {"steps": self.steps, "updates": self.updates, "updates_owed": self.updates_owed},
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; learning rates come from the saved optimizers."""
        if state["optimizers"].keys() != self.optimizers.keys():
            saved, here = "alpha" in state["optimizers"], "alpha" in self.optimizers
            raise ValueError(f"{self.name}: saved with learn_alpha={saved}, this agent has learn_alpha={here}")
        load_shared_state(self, state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        counters = state["counters"]
        self.steps, self.updates, self.updates_owed = (counters[k] for k in ("steps", "updates", "updates_owed"))


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """1/2 sum_i mean (Q_i - y)^2; q (critics, batch), target (batch,)."""
    return 0.5 * (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """mean (alpha log pi - min_i Q_i); q (critics, batch), log_prob (batch,)."""
    return (alpha * log_prob - q.amin(0)).mean()


def alpha_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """log_alpha (entropy - target_entropy), entropy = -mean log pi: lowers alpha while the entropy is too large."""
    return log_alpha * (entropy - target_entropy)
