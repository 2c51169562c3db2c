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

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .acting import Acting
from .bodies import make_body, widths
from .compiled import Precision
from .gradient import Compile, GradientStep
from .networks import Critic, DeterministicActor
from .normalise import running_norms, update_norms
from .optimizers import AgentConfig
from .replay import Batch, ReplayBuffer
from .seeding import drawn_on_the_cpu, split_seed
from .spaces import box_dim, obs_dtype, obs_shape
from .state import load_shared_state, shared_state
from .updates import Finite, as_batch, polyak_

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces

CRITICS = ("critic_1", "critic_2")


@dataclass(frozen=True)
class TD3Config(AgentConfig):
    gamma: float = 0.99
    """Discount factor, per environment step."""
    target_tau: float = 0.005
    """Share by which the targets move towards the networks at every update of the actor."""
    batch_size: int = 256
    """Transitions per update."""
    actor_lr: float = 1e-3
    """Learning rate of the actor: the paper's and stable-baselines3's; CleanRL and the authors' later code use 3e-4."""
    critic_lr: float = 1e-3
    """Learning rate of both critics, as for the actor."""
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers; None: `hidden`, or what is usual for a critic of the network."""
    policy_every: int = 2
    """Updates of the critics per update of the actor and of the targets."""
    target_noise: float = 0.2
    """Standard deviation of the noise on the target's action, which smooths the value over similar actions."""
    noise_clip: float = 0.5
    """Bound of that noise, in both directions."""
    exploration_noise: float = 0.1
    """Standard deviation of the noise on the actions taken while training."""
    learning_starts: int = 5_000
    """Environment steps with uniformly random actions before the first update."""
    buffer_size: int = 1_000_000
    """Transitions kept for replay."""
    updates_per_step: float = 1.0
    """Updates per environment step (each of num_envs parallel environments counts); may be a fraction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "gamma in [0, 1]": 0 <= self.gamma <= 1,
            "target_tau in (0, 1]": 0 < self.target_tau <= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "policy_every >= 1": self.policy_every >= 1,
            "target_noise >= 0": self.target_noise >= 0,
            "noise_clip >= 0": self.noise_clip >= 0,
            "exploration_noise >= 0": self.exploration_noise >= 0,
            "updates_per_step > 0": self.updates_per_step > 0,
            "0 <= learning_starts < buffer_size": 0 <= self.learning_starts < self.buffer_size,
        }
        if broken := [rule for rule, holds in checks.items() if not holds]:
            raise ValueError(f"TD3Config needs {', '.join(broken)}; got {self}")


class TD3:
    """TD3 for vectors or uint8 images (channels, height, width) and one-dimensional Box actions."""

    def __init__(
        self,
        observation_space: "spaces.Space",
        action_space: "spaces.Space",
        config: TD3Config | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "td3",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.config = config = config or TD3Config()
        self.name, self.num_envs, self.device = name, num_envs, torch.device(device)
        shape, self.obs_dtype = obs_shape(observation_space, name), obs_dtype(observation_space)
        self.action_dim = action_dim = box_dim(action_space, name, "action", "its policy is continuous")
        self.noise = config.exploration_noise
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
            actor = DeterministicActor(make_body(config, shape, widths(config, "policy")), action_dim)
            hidden = widths(config, "value") if config.critic_hidden is None else config.critic_hidden
            critics = {key: Critic(make_body(config, shape, hidden, extra_dim=action_dim)) for key in CRITICS}
        self.networks: dict[str, nn.Module] = {
            key: network.to(self.device) for key, network in {"actor": actor, **critics}.items()
        }
        self.actor = Acting(self.networks, "actor")
        self.targets = {key: copy.deepcopy(network).requires_grad_(False) for key, network in self.networks.items()}
        self.norms = running_norms([*self.networks.values(), *self.targets.values()])

        critic_parameters = [p for critic in critics.values() for p in critic.parameters()]
        self.optimizers: dict[str, Optimizer] = {
            "actor": config.make_optimizer(actor.parameters(), config.actor_lr),
            "critic": config.make_optimizer(critic_parameters, config.critic_lr),
        }
        how: dict[str, Any] = {"compile": compile, "precision": precision}
        self.critic_step = GradientStep(
            self.critic_loss, [self.networks, self.targets], self.optimizers, "critic", **how
        )
        self.actor_step = GradientStep(self.actor_loss, [self.networks], self.optimizers, "actor", **how)

    @torch.no_grad()
    def act(self, obs: Tensor, explore: bool) -> Tensor:
        """Actions (N, action_dim) in [-1, 1]: random during the warm-up, then pi(s) with noise, or without explore."""
        obs, generator = obs.to(self.device, self.obs_dtype), self.generators["act"]
        shape = (len(obs), self.action_dim)
        if explore and self.steps < self.config.learning_starts:
            return 2 * torch.rand(shape, generator=generator, device=self.device) - 1
        action = self.actor(obs)
        if explore:
            action += self.noise * torch.randn(shape, generator=generator, device=self.device)
        return action.clamp(-1, 1)

    def set_noise(self, scale: float) -> None:
        """Set the standard deviation of the exploration noise, in place of config.exploration_noise."""
        if not scale >= 0:
            raise ValueError(f"{self.name}: exploration noise is a standard deviation >= 0, got {scale}")
        self.noise = float(scale)

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

        y is the target of `learn` without the noise on the next action, so that no random number is drawn.
        """
        batch = as_batch(transition, self.device, self.obs_dtype)
        y = self.target_value(batch, torch.zeros_like(batch.action))
        return (self._q(batch.obs, batch.action) - y).square().mean(0).sqrt()

    def learn(self, batch: Batch) -> dict[str, Tensor]:
        """The update itself: critics; at every `policy_every`-th one also the actor, whose loss is only then there."""
        shape = (len(batch.reward), self.action_dim)
        noise = torch.randn(shape, generator=self.generators["update"], device=self.device)

        metrics = self.critic_step(batch, noise, updates=self.updates)
        if (self.updates + 1) % self.config.policy_every == 0:
            metrics |= self.actor_step(batch.obs, updates=self.updates)
            for key, target in self.targets.items():
                polyak_(target, self.networks[key], self.config.target_tau)
        self.finite.check(metrics, self.updates + 1)
        return metrics

    def critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of both critics on a batch; `noise` smooths the target."""
        q = self._q(batch.obs, batch.action)
        loss = critic_loss(q, self.target_value(batch, noise))
        return loss, {"critic_loss": loss, "q_mean": q.mean()}

    def actor_loss(self, obs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the actor at these observations, judged by the first critic."""
        loss = actor_loss(self.networks["critic_1"](obs, self.networks["actor"](obs)))
        return loss, {"actor_loss": loss}

    @torch.no_grad()
    def target_value(self, batch: Batch, noise: Tensor) -> Tensor:
        """y (batch,), the regression target of both critics; `noise` (batch, action_dim) ~ N(0, 1), as yet unscaled."""
        action = smoothed(
            self.targets["actor"](batch.next_obs), noise, self.config.target_noise, self.config.noise_clip
        )
        next_q = torch.stack([self.targets[key](batch.next_obs, action) for key in CRITICS]).amin(0)
        return batch.reward + self.config.gamma * ~batch.terminated * next_q

    def _q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Both critics: (2, batch)."""
        return torch.stack([self.networks[key](obs, action) for key in CRITICS])

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that is needed to act and to go on, except the replay memory (`buffer.state_dict()`)."""
        return copy.deepcopy(
            {
                **shared_state(self),
                "counters": {"steps": self.steps, "updates": self.updates, "updates_owed": self.updates_owed},
                "noise": self.noise,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; learning rates and the scale of the exploration noise are the saved ones."""
        load_shared_state(self, state)
        counters = state["counters"]
        self.steps, self.updates, self.updates_owed = (counters[k] for k in ("steps", "updates", "updates_owed"))
        self.noise = state["noise"]


def smoothed(action: Tensor, noise: Tensor, std: float, clip: float) -> Tensor:
    """clip(action + clip(std * noise, -clip, clip), -1, 1): target policy smoothing, Fujimoto et al. 2018, section 5.3.

    action, noise: (batch, action_dim), noise ~ N(0, 1); std and clip in units of the actions.
    """
    return (action + (std * noise).clamp(-clip, clip)).clamp(-1, 1)


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """sum_i mean (Q_i - y)^2; q (critics, batch), target (batch,)."""
    return (q - target).square().mean(-1).sum()


def actor_loss(q: Tensor) -> Tensor:
    """-mean Q_1(s, pi(s)); q (batch,)."""
    return -q.mean()
