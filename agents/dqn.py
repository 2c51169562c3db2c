"""Deep Q-learning (Mnih et al. 2015, Nature 518), with the extensions of Rainbow (Hessel et al. 2018) as options.

A network learns Q(s, a) of all actions at once; the agent takes the best one, or with probability epsilon a random one.
One update, on one replayed batch:

    y      = r + gamma * (1 - terminated) * Qtarget(s', a*),        a* = argmax_a Qtarget(s', a)
    J      = mean w * huber(Q(s, a) - y),                           w = 1
    Qtarget = Q, at every `target_every`-th update

`double`: a* = argmax_a Q(s', a) (van Hasselt et al. 2016, arXiv 1509.06461). `n_step`: r is the discounted sum of n
rewards and s' the state after them (Sutton 1988); the bootstrap counts gamma^n. `head` dueling: Q = V + A - mean A
(Wang et al. 2016). `returns` c51: a distribution of the return in place of its mean (Bellemare et al. 2017).
`prioritised`: transitions are drawn by error, w corrects for it (Schaul et al. 2016).

Conventions. The numbers of an update are those of stable-baselines3 (a test holds the two equal, parameter by
parameter): Huber loss of scale 1, gradient norm clipped to 10; CleanRL has the squared error and does not clip. What
counts is gradient steps, not environment steps: `target_every` is in updates. Truncation bootstraps: only `terminated`
cuts the return; n-step returns stop at either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from .acting import Acting
from .bodies import make_body, widths
from .choices import OneOf, OrInfinite
from .distributions import numpy_or_torch
from .draws import uniform
from .forward import of_obs
from .gradient import Compile
from .inputs import Chosen
from .networks import HEADS
from .off_policy import OffPolicy
from .optimizers import AgentConfig
from .priorities import Priorities
from .products import Precision
from .replay import Batch
from .returns import LOSSES, RETURNS
from .rows import like
from .seeding import drawn_on_the_cpu, split_seed
from .spaces import num_actions
from .updates import Followers, as_batch

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


@dataclass(frozen=True)
class DQNConfig(AgentConfig):
    gamma: float = 0.99
    """Discount factor, per environment step."""
    lr: float = 2.5e-4
    """Learning rate of Adam."""
    batch_size: int = 128
    """Transitions per update."""
    buffer_size: int = 100_000
    """Transitions kept for replay."""
    learning_starts: int = 1_000
    """Environment steps before the first update."""
    train_every: int = 4
    """Environment steps (each of num_envs parallel environments counts) between two rounds of updates."""
    updates_per_train: int = 1
    """Updates per round."""
    target_every: int = 250
    """Updates between two moves of the target network."""
    target_tau: float = 1.0
    """Share by which the target network then moves towards the network."""
    epsilon_start: float = 1.0
    """Probability of a random action at the first step."""
    epsilon_end: float = 0.05
    """Probability of a random action after `exploration_steps`."""
    exploration_steps: int = 10_000
    """Environment steps over which that probability falls, linearly."""
    loss: Annotated[str, OneOf(LOSSES)] = "huber"
    """Loss of an error; huber is half the square up to 1, then linear. C51 has its own."""
    max_grad_norm: Annotated[float, OrInfinite()] = 10.0
    """Gradients of a larger norm are scaled down to it; inf for none."""
    double: bool = False
    """Let the network, not its target, choose the next action that the target judges."""
    n_step: int = 1
    """Rewards summed before bootstrapping."""
    head: Annotated[str, OneOf(HEADS)] = "linear"
    """Output layers; dueling: a state value and advantages, each with a hidden layer as wide as the last one; unit:
    on features of length 1 (Hussing et al. 2024)."""
    returns: Annotated[str, OneOf(RETURNS)] = "mean"
    """Learn the mean return by regression (mean) or by classification (two_hot, hl_gauss), or its distribution (c51,
    quantiles)."""
    num_atoms: int = 51
    """Points or bins of the grid of returns, or quantiles, where returns are not mean."""
    v_min: float = -10.0
    """Smallest return on the grid; returns below count as this one."""
    v_max: float = 10.0
    """Largest return on the grid; returns above count as this one."""
    prioritised: bool = False
    """Replay transitions in proportion to their last error."""
    priority_alpha: float = 0.6
    """Exponent of the errors; 0 is uniform replay."""
    priority_beta: float = 0.4
    """Exponent of the importance weights at the start; it rises to 1, the full correction."""
    priority_steps: int = 100_000
    """Environment steps over which that exponent rises to 1, linearly."""

    def rules(self) -> dict[str, bool]:
        shares = ("gamma", "epsilon_start", "epsilon_end", "priority_alpha", "priority_beta")
        counts = ("batch_size", "train_every", "updates_per_train", "target_every", "n_step", "priority_steps")
        return {
            **super().rules(),
            **{f"{name} in [0, 1]": 0 <= getattr(self, name) <= 1 for name in shares},
            **{f"{name} >= 1": getattr(self, name) >= 1 for name in counts},
            "target_tau in (0, 1]": 0 < self.target_tau <= 1,
            "exploration_steps >= 0": self.exploration_steps >= 0,
            "max_grad_norm > 0": self.max_grad_norm > 0,
            "num_atoms >= 2": self.num_atoms >= 2,
            "v_min < v_max": self.v_min < self.v_max,
            "0 <= learning_starts < buffer_size": 0 <= self.learning_starts < self.buffer_size,
        }


class DQN(OffPolicy):
    """Deep Q-learning for discrete actions; vectors or uint8 images."""

    COUNTERS: ClassVar[dict[str, str]] = {
        **OffPolicy.COUNTERS, "steps_waiting": "steps_waiting", "epsilon_end": "epsilon_end",
    }  # fmt: skip

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: DQNConfig | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "dqn",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        config, how = config or DQNConfig(), {"device": device, "compile": compile, "precision": precision}
        super().__init__(observation_space, config, name=name, num_envs=num_envs, **how)
        self.num_actions = num_actions(action_space, name)
        self.values = RETURNS[config.returns](config, self.device)
        self.epsilon_end = config.epsilon_end  # set_noise moves it
        self.updates_owed = 0
        self.steps_waiting = 0
        """Environment steps that can be learned from, since the last round of updates."""

        act, replay, weights = split_seed(seed, 3)
        self.add_draws(uniform, (1 + self.num_actions,), act)  # whether an action is random; the largest says which
        capacity = config.buffer_size // num_envs * num_envs
        priorities = Priorities(capacity, config.priority_alpha, device=self.device) if config.prioritised else None
        n_steps = {"n_step": config.n_step, "gamma": config.gamma}
        self.buffer = self.make_buffer((), replay, action_dtype=torch.int64, priorities=priorities, **n_steps)
        with drawn_on_the_cpu(weights):
            network = make_network(config, self.obs_shape, self.num_actions, self.values.num_atoms)
        self.add_networks({"q": network}, targets=["q"])
        self.followers = Followers(self.networks, self.targets)
        self.output = Acting(self.networks, "q", self.compiles)
        self.forward = {"q": of_obs}
        self.add_step("q", self.q_loss, ["q"], config.lr, targets=True, max_norm=config.max_grad_norm)

    @property
    def epsilon(self) -> float:
        """Probability of a random action at this step."""
        length = self.config.exploration_steps
        passed = 1.0 if self.env_steps >= length else self.env_steps / length
        return self.config.epsilon_start + passed * (self.epsilon_end - self.config.epsilon_start)

    @property
    def beta(self) -> float:
        """Exponent of the importance weights at this step."""
        passed = min(1.0, self.env_steps / self.config.priority_steps)
        return self.config.priority_beta + passed * (1.0 - self.config.priority_beta)

    def set_noise(self, scale: float) -> None:
        """Set the value at which epsilon ends, in place of config.epsilon_end; ValueError outside [0, 1]."""
        if not 0 <= scale <= 1:
            raise ValueError(f"{self.name}: exploration noise is a probability in [0, 1], got {scale}")
        self.epsilon_end = float(scale)

    @property
    def discount(self) -> float:
        """The discount of the values that are learned, per step, at present: `set_horizon` moves it."""
        return self.buffer.gamma

    @property
    def set_horizon(self) -> Callable[[int | None, float | None], None] | None:
        """Sets the rewards summed and the discount of replayed returns; None without n-step returns."""
        return self._set_horizon if self.config.n_step > 1 else None

    def _set_horizon(self, n_step: int | None, gamma: float | None) -> None:
        most = self.config.n_step
        if n_step is not None and not 2 <= n_step <= most:
            raise ValueError(f"{self.name}: sums of 2 to --n-step {most} rewards can be replayed, not of {n_step}")
        if gamma is not None and not 0 <= gamma <= 1:
            raise ValueError(f"{self.name}: a discount is in [0, 1], got {gamma}")
        self.buffer.n_step = most if n_step is None else n_step
        self.buffer.gamma = self.config.gamma if gamma is None else gamma

    def act(self, obs: Any, explore: bool) -> Any:
        """Return actions (N,) int64 of the largest Q; with explore each is random with probability epsilon."""
        seen = self.seen(obs)
        if not explore:
            return like(self._best(seen), obs)
        assert self.draws is not None
        drawn, epsilon = self.draws.row(len(seen)), self.epsilon
        # A device would have to be waited for.
        answers = [x < epsilon for x in drawn[:, 0].tolist()] if self.takes_arrays else (True, False)
        if True not in answers:
            return like(self._best(seen), obs)
        random = drawn[:, 1:].argmax(-1)
        if False not in answers:
            return like(random, obs)
        return like(numpy_or_torch(drawn).where(drawn[:, 0] < epsilon, random, self._best(seen)), obs)

    def _best(self, seen: Any) -> Any:
        """Return the actions (N,) int64 of the largest Q."""
        return self.values.q(self.output(seen)).argmax(-1)

    def owe(self, num_steps: int) -> None:
        """Owe a round of updates for every `train_every` steps."""
        rounds, self.steps_waiting = divmod(self.steps_waiting + num_steps, self.config.train_every)
        self.updates_owed += rounds * self.config.updates_per_train

    def ready(self) -> bool:
        """Return whether an update is owed."""
        return self.updates_owed >= 1 - 1e-9

    def settle(self) -> None:
        super().settle()
        self.followers.settle()

    def update(self) -> dict[str, Tensor]:
        """Take one update on a replayed batch, and move the target. Metrics are tensors on the agent's device."""
        metrics = super().update()
        if self.updates % self.config.target_every == 0:
            self.followers.move(self.config.target_tau)
        return metrics

    def sample(self) -> Batch | Chosen:
        """Draw the batch of an update, with importance weights where replay is prioritised."""
        batch = super().sample()
        if isinstance(batch, Batch) and self.buffer.priorities is not None:
            batch.weight = self.buffer.priorities.importance(batch.index, self.beta)
        return batch

    def learn(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Take the gradient step, and set the new priorities of its batch; `update` moves the target network."""
        metrics = self.steps["q"](batch, updates=self.updates)
        errors = metrics.pop("errors", None)
        self.check(metrics, "q_loss")
        if self.buffer.priorities is not None and errors is not None:
            self.buffer.priorities.update(batch.index, errors)
        return {**metrics, "epsilon": self.number("epsilon", self.epsilon)}

    def q_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss on a batch, and metrics; with prioritised replay the errors (batch,) are among these."""
        output = take(self.networks["q"](batch.obs), batch.action)
        losses, errors = self.values.losses(output, self.target_value(batch))
        loss = (losses if batch.weight is None else batch.weight * losses).mean()
        metrics = {"q_loss": loss, "q_mean": self.values.q(output).mean()}
        return loss, metrics if batch.weight is None else {**metrics, "errors": errors}

    @torch.no_grad()
    def target_value(self, batch: Batch) -> Tensor:
        """Return y (batch,), or with C51 the probabilities (batch, num_atoms) that the network is moved towards."""
        following, best = self._following(batch.next_obs)
        discount = self.config.gamma if batch.discount is None else batch.discount
        return self.values.target(batch.reward, discount * ~batch.terminated, take(following, best))

    def _following(self, next_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target network's outputs at the next observations, and the actions chosen there."""
        following = self.targets["q"](next_obs)
        judged = self.networks["q"](next_obs) if self.config.double else following
        return following, self.values.q(judged).argmax(-1)

    @torch.no_grad()
    def q(self, obs: Tensor) -> Tensor:
        """Return Q(s, a) of all actions, (N, num_actions)."""
        return self.values.q(self.output(obs.to(self.device, self.obs_dtype)))

    def state_value(self, obs: Tensor) -> Tensor:
        """Return max_a Q(s, a), (N,)."""
        return self.q(obs).amax(-1)

    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return Q(s, a), (N,), of int64 actions (N,)."""
        return take(self.q(obs), action.to(self.device))

    @torch.no_grad()
    def td_error(self, transition: Any) -> Tensor:
        """Return |Q(s, a) - y|, (N,), for steps just taken; y is the target of one step; C51: both are means."""
        batch = as_batch(transition, self.device, self.obs_dtype)
        following, best = self._following(batch.next_obs)
        y = batch.reward + self.discount * ~batch.terminated * take(self.values.q(following), best)
        return (self.value(batch.obs, batch.action) - y).abs()


def make_network(config: DQNConfig, shape: tuple[int, ...], num_actions: int, num_atoms: int = 1) -> nn.Module:
    """Return a new Q network for observations of this shape; CleanRL's 120-84 is usual for mlp."""
    hidden = widths(config, "value", (120, 84))
    body, layer = make_body(config, shape, hidden), replace(config, network="mlp")
    stream = partial(make_body, layer, (body.num_features,), hidden[-1:])
    return HEADS[config.head](body, num_actions, num_atoms, stream)


def take(output: Tensor, action: Tensor) -> Tensor:
    """Return the part of output (batch, num_actions, ...) that belongs to each action (batch,) int64."""
    return output[torch.arange(len(action), device=output.device), action]
