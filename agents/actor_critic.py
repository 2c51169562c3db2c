"""The parts that SAC and TD3 share: one actor, two critics, and updates in proportion to environment steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from .acting import Acting
from .batch_norm import batch_norms, batch_statistics, follow
from .bodies import Body, make_body, widths
from .choices import OneOf
from .draws import normal, uniform
from .forward import of_obs, of_obs_and_action
from .inputs import Chosen
from .networks import VALUE_HEADS, Critic, StateValue
from .off_policy import OffPolicy
from .optimizers import AgentConfig
from .replay import Batch
from .returns import RETURNS, Mean, Returns
from .rewards import FittedRewards
from .rows import like
from .seeding import drawn_on_the_cpu, split_seed
from .spaces import box_dim
from .updates import Followers, as_batch

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces

CRITICS = ("critic_1", "critic_2")


@dataclass(frozen=True)
class ActorCriticConfig(AgentConfig):
    """The options of SAC and TD3."""

    gamma: float = 0.99
    """Discount factor, per environment step."""
    target_tau: float = 0.005
    """Share by which the targets move towards their networks whenever they move."""
    batch_size: int = 256
    """Transitions per update."""
    actor_lr: float = 1e-3
    """Learning rate of the actor."""
    critic_lr: float = 1e-3
    """Learning rate of both critics."""
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers; None: `hidden`, or what is usual for a critic of the network."""
    critic_head: Annotated[str, OneOf(VALUE_HEADS)] = "linear"
    """Head of the critics; unit: on features of length 1 (Hussing et al. 2024)."""
    critic_returns: Annotated[str, OneOf(RETURNS)] = "mean"
    """Learn the mean return by regression (mean) or by classification (two_hot, hl_gauss), or its distribution (c51,
    quantiles)."""
    num_atoms: int = 101
    """Points or bins of the grid of returns, or quantiles, where critic_returns are not mean."""
    v_min: float = -100.0
    """Smallest return on the grid; returns below count as this one."""
    v_max: float = 100.0
    """Largest return on the grid; returns above count as this one."""
    normalize_rewards: bool = False
    """Divide rewards by the spread of their discounted sums so far, and where critics learn on a grid by as much as
    brings all of these between v_min and v_max (SimbaV2)."""
    pessimism: float = 1.0
    """Weight p of the critics' disagreement in (Q_1 + Q_2) / 2 - p |Q_1 - Q_2| / 2: 1 is the smaller one; BRO: 0."""
    value_expectile: float = 0.0
    """Expectile of min_i Q_i that a network of state values learns, for targets to lean on (DrM: 0.9); 0: none."""
    learning_starts: int = 5_000
    """Environment steps with uniformly random actions before the first update."""
    buffer_size: int = 1_000_000
    """Transitions kept for replay."""
    updates_per_step: float = 1.0
    """Updates per environment step (each of num_envs parallel environments counts); may be a fraction."""

    def rules(self) -> dict[str, bool]:
        return {
            **super().rules(),
            "gamma in [0, 1]": 0 <= self.gamma <= 1,
            "target_tau in (0, 1]": 0 < self.target_tau <= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "updates_per_step > 0": self.updates_per_step > 0,
            "num_atoms >= 2": self.num_atoms >= 2,
            "v_min < v_max": self.v_min < self.v_max,
            "v_min < 0 < v_max with normalize_rewards": not self.normalize_rewards or self.v_min < 0 < self.v_max,
            "pessimism in [0, 1]": 0 <= self.pessimism <= 1,
            "value_expectile in [0, 1)": 0 <= self.value_expectile < 1,
            "value_expectile=0 unless critic_returns is mean, and with crossq": not self.value_expectile
            or (self.critic_returns == "mean" and self.network != "crossq"),
            "0 <= learning_starts < buffer_size": 0 <= self.learning_starts < self.buffer_size,
        }


class ActorCritic(OffPolicy):
    """Base of SAC and TD3, for vectors or uint8 images (channels, height, width) and one-dimensional Box actions.

    With images every network has convolutions of its own: nothing is shared, and the actor's are trained by its loss.
    """

    MOVES_BATCH_NORMS = True
    TARGETS: ClassVar[tuple[str, ...]]
    """Networks that have targets; none of critics with batch norms (CrossQ)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: Any,
        *,
        name: str,
        seed: int = 0,
        **how: Any,
    ) -> None:
        super().__init__(observation_space, config, name=name, **how)
        self.action_dim = box_dim(action_space, name, "action", "its policy is continuous")
        self.updates_owed = 0.0
        act, update, replay, weights = split_seed(seed, 4)
        self.add_draws(*self.exploration(), act)
        self.add_generator("update", update)
        self.buffer = self.make_buffer((self.action_dim,), replay)
        learns_mean = config.critic_returns == "mean"
        self.returns = None if learns_mean else RETURNS[config.critic_returns](config, self.device)
        """Reading of the critics' outputs; None where each has one, the mean return."""
        networks = self._make_networks(weights)
        self.joint = bool(batch_norms(networks[name] for name in CRITICS))
        """True if critics judge present and next actions in one pass, without targets (CrossQ)."""
        self.add_networks(networks, () if self.joint else self.TARGETS)
        self.followers = Followers(self.networks, self.targets)
        self.actor = Acting(self.networks, "actor", self.compiles)
        self.forward = {"actor": of_obs, **dict.fromkeys(CRITICS, of_obs_and_action)}
        self.add_step("actor", self.actor_loss, ["actor"], config.actor_lr)
        self.add_step("critic", self.critic_loss, CRITICS, config.critic_lr, targets=True)
        bound = min(-config.v_min, config.v_max) if config.critic_returns not in ("mean", "quantiles") else math.inf
        fitted = FittedRewards(self.num_envs, config.gamma, bound).to(self.device)
        self.fitted = fitted if config.normalize_rewards else None
        """Statistics of the rewards so far, where these are scaled."""
        self.reward_scale = torch.ones((), device=self.device)
        """Factor of rewards in targets."""
        self.exploitation = torch.zeros((), device=self.device)
        """Share of the state value in targets; `set_exploitation` moves it."""
        if config.value_expectile:
            self.forward = {**self.forward, "value": of_obs}
            self.add_step("value", self.value_loss, ["value"], config.critic_lr)

    def _make_networks(self, seed: int) -> dict[str, nn.Module]:
        config, shape = self.config, self.obs_shape
        with drawn_on_the_cpu(seed):
            actors = self.make_actors(partial(make_body, config, shape, widths(config, "policy")))
            hidden = widths(config, "value") if config.critic_hidden is None else config.critic_hidden
            bodies = (make_body(config, shape, hidden, extra_dim=self.action_dim) for _ in CRITICS)
            head, values = config.critic_head, self.returns
            critics = {key: Critic(body, head, values) for key, body in zip(CRITICS, bodies, strict=True)}
            value = {"value": StateValue(make_body(config, shape, hidden))} if config.value_expectile else {}
        return {**actors, **critics, **value}

    def exploration(self) -> tuple[Callable[..., Tensor], tuple[int, ...]]:
        """Return how the numbers that disturb one action are drawn, and their shape."""
        return normal, (self.action_dim,)

    def make_actors(self, make_body: Callable[[int], Body]) -> dict[str, nn.Module]:
        """Return the new actor, and what stands beside it, on `make_body(extra_dim)`.

        So many features join the observation's behind its encoder.
        """
        raise NotImplementedError

    def distributed_loss(
        self, batch: Batch, targets: Sequence[nn.Module], action: Tensor, bonus: Tensor | None = None
    ) -> Tensor:
        """Return the sum over critics of the mean loss of their outputs, 0-D, where these are no mean returns.

        The target at (s, a) is r + discount * (Z + bonus), Z of the target critic that has the smaller mean at the next
        `action`, (batch, action_dim); `bonus` (batch,) is SAC's entropy.
        """
        with torch.no_grad():
            following = torch.stack([target(batch.next_obs, action, True) for target in targets])
        outputs = [self.networks[key](batch.obs, batch.action, True) for key in CRITICS]
        return self._errors(batch, outputs, following, bonus)

    def joint_loss(self, batch: Batch, action: Tensor, bonus: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same of CrossQ's critics, and metrics; `action`, `bonus`: as in `distributed_loss`.

        Each critic judges (s, a) and (s', a') in one batch, whose statistics normalise both, and is its own target
        (Bhatt et al. 2024, arXiv 1902.05605, figure 2). The statistics stand in the metrics for `move_batch_norms`.
        """
        critics = [self.networks[key] for key in CRITICS]
        obs, actions = torch.cat([batch.obs, batch.next_obs]), torch.cat([batch.action, action])
        with batch_statistics(critics) as seen:
            both = [critic(obs, actions, True).chunk(2) for critic in critics]
        outputs, following = [now for now, _ in both], torch.stack([later.detach() for _, later in both])
        loss, values = self._errors(batch, outputs, following, bonus), self.returns or Mean()
        q_mean = values.q(torch.stack(outputs)).mean()
        return loss, {"critic_loss": loss, "q_mean": q_mean, "batch_statistics": seen()}

    def _errors(self, batch: Batch, outputs: Sequence[Tensor], following: Tensor, bonus: Tensor | None) -> Tensor:
        """Return the sum over critics of mean losses; `following`: outputs of all judges at the next action."""
        returns = self.returns or Mean("mse")
        with torch.no_grad():
            chosen = self._chosen(returns, following)
            discount = self.config.gamma * ~batch.terminated
            reward = self.rewards(batch) if bonus is None else self.rewards(batch) + discount * bonus
            target = returns.target(reward, discount, chosen)
        return torch.stack([returns.losses(output, target)[0].mean() for output in outputs]).sum()

    def _chosen(self, returns: Returns, following: Tensor) -> Tensor:
        """Return the outputs that stand for the value, (batch, ...), of those of all judges."""
        if self.config.pessimism < 1:
            return pooled(following, self.config.pessimism)  # quantile by quantile, as in BRO
        smallest = returns.q(following).argmin(0)
        return following[smallest, torch.arange(len(smallest), device=following.device)]

    def move_batch_norms(self, metrics: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
        """Move the statistics of networks towards those that stand in the metrics of their step; return the others."""
        if (statistics := metrics.pop("batch_statistics", None)) is not None:
            follow([self.networks[name] for name in names], statistics)
        return metrics

    @property
    def set_exploitation(self) -> Callable[[float], None] | None:
        """Sets the share of the state value in targets, in [0, 1]; None without such a value."""
        return self._set_exploitation if self.config.value_expectile else None

    def _set_exploitation(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"{self.name}: the share of the state value in targets is in [0, 1], got {share}")
        self.exploitation.fill_(share)

    def learn_value(self, batch: Batch | Chosen) -> dict[str, Tensor]:
        """Take the step of the state value, where there is one, and return its metrics."""
        return self.steps["value"](batch, updates=self.updates) if self.config.value_expectile else {}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the expectile loss of V(s) towards min_i Q_i(s, a), and metrics (Xu et al. 2023, DrM, section 4.3)."""
        with torch.no_grad():
            q = self.q(batch.obs, batch.action).amin(0)
        loss = expectile_loss(self.networks["value"](batch.obs), q, self.config.value_expectile)
        return loss, {"value_loss": loss}

    def leaned(self, batch: Batch, value: Tensor) -> Tensor:
        """Return values of the next states (batch,), of which the state value has its share."""
        if not self.config.value_expectile:
            return value
        return torch.lerp(value, self.networks["value"](batch.next_obs), self.exploitation)

    def observe(self, transition: Any) -> None:
        """Store one step of every environment, owe the updates that it brings, and follow its rewards."""
        super().observe(transition)
        if self.fitted is not None:
            reward, ended = transition.reward, transition.terminated | transition.truncated
            self.fitted.follow(torch.as_tensor(reward).to(self.device), torch.as_tensor(ended).to(self.device))
            self.reward_scale.copy_(self.fitted.scale())

    def rewards(self, batch: Batch) -> Tensor:
        """Return the rewards of a batch as they are learned, (batch,)."""
        return batch.reward if self.fitted is None else batch.reward * self.reward_scale

    def reward_factor(self) -> float:
        """Return the factor of the rewards whose values are learned, now."""
        return float(self.reward_scale)

    def own_state(self) -> dict[str, Any]:
        exploitation = {"exploitation": self.exploitation} if self.config.value_expectile else {}
        return exploitation if self.fitted is None else {**exploitation, "rewards": dict(self.fitted.state_dict())}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        if self.config.value_expectile:
            self.exploitation.copy_(state["exploitation"])
        if (saved := "rewards" in state) != (self.fitted is not None):
            raise ValueError(f"{self.name}: saved with normalize_rewards={saved}, this agent has it the other way")
        if self.fitted is not None:
            self.fitted.load_state_dict(state["rewards"])
            self.reward_scale.copy_(self.fitted.scale())

    def judges(self) -> list[nn.Module]:
        """Return the critics whose values are targets."""
        return [(self.networks if self.joint else self.targets)[key] for key in CRITICS]

    def owe(self, num_steps: int) -> None:
        """Owe `updates_per_step` for every step."""
        self.updates_owed += num_steps * self.config.updates_per_step

    def ready(self) -> bool:
        """Return whether an update is owed."""
        return self.updates_owed >= 1 - 1e-9  # ten times 0.1 is below 1 in floating point

    def act(self, obs: Any, explore: bool) -> Any:
        """Return actions (N, action_dim) in [-1, 1]: evenly random at first; without explore the best ones known.

        Of an array it returns an array, of a tensor a tensor.
        """
        seen = self.seen(obs)
        if explore and self.env_steps < self.config.learning_starts:
            return like(2 * uniform((len(seen), self.action_dim), self.generators["act"]) - 1, obs)
        assert self.draws is not None
        noise = self.draws.row(len(seen)) if explore else None
        return like(self.respond(seen, noise), obs)

    def respond(self, obs: Any, noise: Any | None) -> Any:
        """Return the actor's actions, disturbed by `noise` (see `exploration`) if it is given."""
        raise NotImplementedError

    @torch.no_grad()
    def value(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return min_i Q_i(s, a), shape (N,)."""
        return self.q(obs.to(self.device, self.obs_dtype), action.to(self.device, torch.float32)).amin(0)

    def state_value(self, obs: Tensor) -> Tensor:
        """Return min_i Q_i(s, a) of the action taken without exploration, shape (N,)."""
        return self.value(obs, self.act(obs, explore=False))

    @torch.no_grad()
    def td_error(self, transition: Any) -> Tensor:
        """Return the root mean square over both critics of Q_i(s, a) - y, (N,), for steps just taken.

        y is the target of `learn` with noise of 0, so that no random number is drawn.
        """
        batch = as_batch(transition, self.device, self.obs_dtype)
        y = self.quiet_target(batch)
        return (self.q(batch.obs, batch.action) - y).square().mean(0).sqrt()

    def q(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return the values of both critics, (2, batch)."""
        return torch.stack([self.networks[key](obs, action) for key in CRITICS])

    def settle(self) -> None:
        super().settle()
        if self.targets:
            self.followers.settle()

    def move_targets(self) -> None:
        """Move every target towards its network by the share `target_tau`."""
        if self.targets:
            self.followers.move(self.config.target_tau)

    def critic_loss(self, batch: Batch, *more: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of both critics on a batch, and metrics."""
        raise NotImplementedError

    def actor_loss(self, batch: Batch, *more: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the actor at the observations of a batch, and metrics."""
        raise NotImplementedError

    def quiet_target(self, batch: Batch) -> Tensor:
        """Return y (batch,), the target of both critics, without random numbers."""
        raise NotImplementedError


def expectile_loss(value: Tensor, target: Tensor, expectile: float) -> Tensor:
    """Return the mean of w (v - y)^2, 0-D: w is `expectile` where v < y, else 1 - expectile; both (batch,)."""
    error = value - target
    return (torch.where(error > 0, 1 - expectile, expectile) * error.square()).mean()


def pooled(q: Tensor, pessimism: float) -> Tensor:
    """Return mean - p * half of the difference of two critics' values, (...), q (2, ...); p of 1 is the smaller one."""
    if pessimism == 1:
        return q.amin(0)
    return q.mean(0) - pessimism * (q[0] - q[1]).abs() / 2
