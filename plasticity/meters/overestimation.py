"""Overestimation: whether values promise more than episodes return, in training and in evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context

from .meter import Measured, Meter

STEPS_AT_ONCE = 256
"""Steps of an evaluation whose values are computed at once."""
SHARE_BEYOND = 0.01
"""Share of the discount that may lie beyond the end of an episode that was cut."""
NONE_ENDED = "no episode has ended yet"
CUT = "all its episodes were cut too early: of no step is the return known to 1 % of the discount"
"""The reasons of values that are missing."""
Pair = tuple[Tensor, Tensor]
"""Values of some steps, and the returns that followed, float64."""


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Return the discounted return from every step of an episode to its end, (steps,), float64."""
    found, total = [], torch.zeros((), dtype=torch.float64, device=rewards.device)
    for reward in rewards.double().flip(0):
        total = reward + gamma * total
        found.append(total)
    return torch.stack(found).flip(0)


def known_returns(rewards: Tensor, terminated: bool, gamma: float) -> Pair:
    """Return the discounted returns of an episode's steps, and which of them are known, (steps,) bool.

    All of an episode that terminated; of one that was cut, steps with less than 1 % of the discount beyond its end.
    """
    returns = discounted_returns(rewards, gamma)
    left = torch.arange(len(returns), 0, -1, dtype=torch.float64, device=returns.device)
    return returns, torch.ones_like(returns, dtype=torch.bool) if terminated else gamma**left < SHARE_BEYOND


def excess(pairs: Sequence[Pair], name: str) -> dict[str, Tensor | str]:
    """Return the mean of values less returns as ``name``, and over the mean |return|; why not, without any step."""
    if not sum(len(returns) for _, returns in pairs):
        reason = CUT if pairs else NONE_ENDED
        return {name: reason, f"{name}_share": reason}
    values, returns = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
    rise, scale = (values - returns).mean(), returns.abs().mean()
    return {name: rise, f"{name}_share": rise / torch.where(scale == 0, 1, scale)}


@dataclass
class Overestimation(Meter):
    """Values of the steps of finished episodes, less their returns.

    Logs ``overestimation``, in units of the return, and ``overestimation_share``, over the mean |return|; above 0 the
    critic promises too much. Of the last ``episodes`` training episodes of the first environment, exploration included,
    at the present weights. After every evaluation of the run also ``overestimation_eval`` and its ``_share``: of the
    evaluation's own episodes, which the present policy plays without exploration. Steps whose return was cut (an
    episode that was truncated) count where less than 1 % of the discount is left beyond its end. Values are in units of
    the environment's rewards, whatever the agent scales them by; SAC's also hold its entropy bonus. Source: Fujimoto et
    al. 2018 (arXiv 1802.09477), section 4.1; van Hasselt et al. 2016 (arXiv 1509.06461).
    """

    NAME: ClassVar[str] = "overestimation"

    gamma: float | None = None
    """Discount of the returns; None: that of the agent."""
    episodes: int = 5
    """Finished training episodes to keep."""
    most: int = 2000
    """Steps of a training episode that are kept, the last ones."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not ((self.gamma is None or 0 < self.gamma <= 1) and self.episodes >= 1 and self.most >= 1):
            raise ValueError("Overestimation needs gamma in (0, 1], and at least 1 of episodes and most")
        self._done: deque[dict[str, Any]] = deque(maxlen=self.episodes)
        self._steps: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.most)
        self._played: list[tuple[Tensor, ...]] = []
        """Observation, action, reward, terminated, truncated of steps of an evaluation."""
        self._judged: list[tuple[Tensor, ...]] = []
        """Value, reward, terminated, truncated of earlier ones, (steps, environments) each."""

    def on_train_start(self, ctx: Context) -> None:
        """Check that the run lends a value function, and says how it discounts."""
        super().on_train_start(ctx)
        if ctx.value is None and ctx.state_value is None:
            ctx.require("value", type(self).__name__)
        if self.gamma is None:
            ctx.require("discount", type(self).__name__)

    # -- training episodes ---------------------------------------------------------------------------------------------

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
        """Return both of training episodes; before one has ended, that none has."""
        return {_network(ctx): excess([self._of(ctx, episode) for episode in self._done], "overestimation")}

    def _of(self, ctx: Context, episode: dict[str, Any]) -> Pair:
        """Return the values and returns of an episode's steps, as far as its return was not cut."""
        returns, known = known_returns(episode["reward"], episode["terminated"], self._gamma(ctx))
        if not known.any():
            return returns[:0], returns[:0]
        return self._values(ctx, episode["obs"][known], episode["action"][known]), returns[known]

    # -- evaluation episodes -------------------------------------------------------------------------------------------

    def on_evaluation_step(self, ctx: Context, transition: Any) -> None:
        """Take in a step of an evaluation."""
        if not self.failure:
            names = ("obs", "action", "reward", "terminated", "truncated")
            self._played.append(tuple(getattr(transition, name).detach().cpu().clone() for name in names))
            if len(self._played) >= STEPS_AT_ONCE:
                self._guarded(ctx, self._judge)

    def on_evaluation_end(self, ctx: Context) -> None:
        """Log both of the episodes that were played."""
        self._log(ctx, lambda ctx: {_network(ctx): self._of_evaluation(ctx)})
        self._played, self._judged = [], []

    def _judge(self, ctx: Context) -> None:
        """Put the values of the steps in the place of their observations."""
        obs, action, *rest = (torch.stack(parts) for parts in zip(*self._played, strict=True))
        self._played = []
        value = self._values(ctx, obs.flatten(0, 1), action.flatten(0, 1))
        self._judged.append((value.view(rest[0].shape), *rest))

    def _of_evaluation(self, ctx: Context) -> dict[str, Tensor | str]:
        if self._played:
            self._judge(ctx)
        if not self._judged:
            return excess([], "overestimation_eval")
        value, reward, terminated, truncated = (torch.cat(parts) for parts in zip(*self._judged, strict=True))
        ends = [(terminated[:, i] | truncated[:, i]).nonzero().flatten().tolist() for i in range(value.shape[1])]
        share = min(map(len, ends))  # every environment plays as many episodes, the slowest no more
        pairs: list[Pair] = []
        for i, lasts in enumerate(ends):
            for first, last in zip([0, *(end + 1 for end in lasts)], lasts[:share], strict=False):
                steps = slice(first, last + 1)
                returns, known = known_returns(reward[steps, i], bool(terminated[last, i]), self._gamma(ctx))
                pairs.append((value[steps, i][known], returns[known]))
        return excess(pairs, "overestimation_eval")

    # -- both ----------------------------------------------------------------------------------------------------------

    def _gamma(self, ctx: Context) -> float:
        return self.gamma if self.gamma is not None else ctx.require("discount", type(self).__name__)

    def _values(self, ctx: Context, obs: Tensor, action: Tensor) -> Tensor:
        """Return the values of steps in units of the environment's rewards, (steps,), float64 on the host."""
        device = next(next(iter(ctx.networks.values())).parameters()).device
        obs, action = obs.to(device), action.to(device)
        value = ctx.value(obs, action) if ctx.value is not None else ctx.state_value(obs)  # type: ignore[misc]
        return value.double().cpu().flatten() / (1.0 if ctx.reward_factor is None else ctx.reward_factor())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a meter, and the training episodes."""
        return {**super().state_dict(), "done": list(self._done), "steps": [list(step) for step in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._done = deque(state["done"], self.episodes)
        self._steps = deque((tuple(step) for step in state["steps"]), self.most)


def _network(ctx: Context) -> str:
    """Return the name of the network whose values are looked at."""
    return next((n for n in ctx.networks if n.startswith(("critic", "q"))), next(iter(ctx.networks)))
