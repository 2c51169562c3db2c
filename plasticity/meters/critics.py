"""Critics: whether they agree, and whether they promise more than episodes return."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context

from .meter import Measured, Meter


def disagreement(values: Tensor) -> Tensor:
    """Return the mean over states of the deviation among critics, (critics, states), over the mean |value|."""
    values = values.double()
    scale = values.abs().mean()
    return values.std(0, correction=0).mean() / torch.where(scale == 0, 1, scale)


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Return the discounted return from every step of an episode to its end, (steps,), float64."""
    found, total = [], torch.zeros((), dtype=torch.float64, device=rewards.device)
    for reward in rewards.double().flip(0):
        total = reward + gamma * total
        found.append(total)
    return torch.stack(found).flip(0)


@dataclass
class CriticDisagreement(Meter):
    """Deviation among the critics on past transitions, over the mean |value|.

    Logs ``critic_disagreement`` of the first critic. 0: the critics have become one, and the smaller of two protects
    from nothing. Critics are the networks that match ``networks``, ``critic*`` by default. Source: Fujimoto et al. 2018
    (TD3, arXiv 1802.09477), section 4, for why there are two.
    """

    NAME: ClassVar[str] = "critic_disagreement"
    NEEDS: ClassVar[tuple[str, ...]] = ("forward", "peek")

    networks: tuple[str, ...] = ("critic*",)
    """Names or globs of the critics."""
    num_states: int = 256
    """Transitions to look at."""

    def on_train_start(self, ctx: Context) -> None:
        """Check that there are two critics."""
        super().on_train_start(ctx)
        if len(critics := self.chosen(ctx)) < 2:
            raise ValueError(f"CriticDisagreement needs two critics; {ctx.name} has {', '.join(critics)}")

    def measure(self, ctx: Context) -> Measured:
        """Return the disagreement, under the name of the first critic."""
        assert ctx.peek is not None
        batch, critics = ctx.peek(self.num_states, self.generator), self.chosen(ctx)
        values = torch.stack([ctx.forward[name](net, batch).flatten() for name, net in critics.items()])
        return {next(iter(critics)): {"critic_disagreement": disagreement(values)}}


@dataclass
class Overestimation(Meter):
    """Values of the steps of finished episodes, less their returns.

    Logs ``overestimation``, in units of the return, and ``overestimation_share``, over the mean |return|; above 0 the
    critic promises too much. Of the last ``episodes`` training episodes of the first environment, exploration included,
    at the present weights. Steps whose return was cut (an episode that was truncated) count where less than 1 % of the
    discount is left beyond its end. SAC's values also hold its entropy bonus. Source: Fujimoto et al. 2018 (arXiv
    1802.09477), section 4.1; van Hasselt et al. 2016 (arXiv 1509.06461).
    """

    NAME: ClassVar[str] = "overestimation"

    gamma: float = 0.99
    """Discount of the returns; that of the agent."""
    episodes: int = 5
    """Finished episodes to keep."""
    most: int = 2000
    """Steps of an episode that are kept, the last ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.gamma <= 1 and self.episodes >= 1 and self.most >= 1):
            raise ValueError("Overestimation needs gamma in (0, 1], and at least 1 of episodes and most")
        self._done: deque[dict[str, Any]] = deque(maxlen=self.episodes)
        self._steps: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.most)

    def on_train_start(self, ctx: Context) -> None:
        """Check that the run lends a value function."""
        super().on_train_start(ctx)
        if ctx.value is None and ctx.state_value is None:
            ctx.require("value", type(self).__name__)

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Keep the step of the first environment; note the end of its episode."""
        obs, action, reward = (
            t[0].detach().cpu().clone() for t in (transition.obs, transition.action, transition.reward)
        )
        self._steps.append((obs, action, reward))
        if bool(transition.terminated[0]) or bool(transition.truncated[0]):
            obs, action, reward = (torch.stack(parts) for parts in zip(*self._steps, strict=True))
            whole = bool(transition.terminated[0])
            self._done.append({"obs": obs, "action": action, "reward": reward, "terminated": whole})
            self._steps.clear()

    def forget(self, lost: Tensor) -> None:
        """Drop the episode that will not go on."""
        if bool(lost[0]):
            self._steps.clear()

    def measure(self, ctx: Context) -> Measured:
        """Return both; nothing before an episode has ended."""
        pairs = [self._of(ctx, episode) for episode in self._done]
        if not sum(len(returns) for _, returns in pairs):
            return {}
        values, returns = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        rise, scale = (values - returns).mean(), returns.abs().mean()
        share = rise / torch.where(scale == 0, 1, scale)
        name = next((n for n in ctx.networks if n.startswith(("critic", "q"))), next(iter(ctx.networks)))
        return {name: {"overestimation": rise, "overestimation_share": share}}

    def _of(self, ctx: Context, episode: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the values and returns of an episode's steps, as far as its return was not cut."""
        returns = discounted_returns(episode["reward"], self.gamma)
        left = torch.arange(len(returns), 0, -1, dtype=torch.float64, device=returns.device)
        counts = torch.ones_like(returns, dtype=torch.bool) if episode["terminated"] else self.gamma**left < 0.01
        device = next(next(iter(ctx.networks.values())).parameters()).device
        obs, action = episode["obs"][counts].to(device), episode["action"][counts].to(device)
        if not len(obs):
            return returns[:0], returns[:0]
        value = ctx.value(obs, action) if ctx.value is not None else ctx.state_value(obs)  # type: ignore[misc]
        return value.double().cpu().flatten(), returns[counts]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a meter, and the episodes."""
        return {**super().state_dict(), "done": list(self._done), "steps": [list(step) for step in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._done = deque(state["done"], self.episodes)
        self._steps = deque([tuple(step) for step in state["steps"]], self.most)
