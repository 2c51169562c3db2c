"""Annealed horizon: short-sighted at first and after every reset, then far-sighted, as in BBF.

Schwarzer et al. 2023, *Bigger, Better, Faster: Human-level Atari with human-level efficiency*, arXiv 2305.19452,
section 4; code: google-research/google-research, `bigger_better_faster`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from plasticity.callback import Context
from plasticity.value_types import require

from .scheduled import Scheduled


def geometric(first: float, last: float, share: float) -> float:
    """Return first^(1 - share) * last^share, share cut to [0, 1]: from one to the other by equal factors."""
    share = min(max(share, 0.0), 1.0)
    return float(first ** (1 - share) * last**share)


@dataclass
class Horizon(Scheduled):
    """Anneal n-step returns and the discount after every reset.

    From the start, and anew at each application, over ``steps`` updates: the rewards summed before bootstrapping fall
    from ``n_first`` to ``n_last`` and the discount rises from ``gamma_first`` to ``gamma_last``, both geometrically: n
    is rounded, and of the discount it is 1 - gamma that falls. Long returns and a short horizon let a network that was
    reset catch up; short returns and a long horizon are better in the end. Compared with the schedules of the released
    code (its formula in numpy), at all 10,001 updates: n is the same, the discount agrees to 1e-16.

    ``bbf``: at the resets of ``--shrink-perturb.preset bbf``, whose companion it is; 10 to 3 and 0.97 to 0.997 over
    10 000 updates. Of an agent with n-step returns (DQN with ``--n-step 10``), whose memory sums up to so many rewards.
    """

    NAME: ClassVar[str] = "horizon"
    KIND: ClassVar[str] = "data"
    NEEDS: ClassVar[tuple[str, ...]] = ("networks", "optimizers", "set_horizon")
    STATE: ClassVar[tuple[str, ...]] = ("since",)
    PRESETS: ClassVar = {"bbf": {"every": 40_000, "stop": 160_000, "clock": "gradient_steps"}}

    preset: Literal["bbf"] = "bbf"
    """Defaults of the options that are None."""
    steps: int = 10_000
    """Updates over which both move, from the start and from every application."""
    n_first: int = 10
    """Rewards summed before bootstrapping, at first."""
    n_last: int = 3
    """Rewards summed before bootstrapping, in the end."""
    gamma_first: float = 0.97
    """Discount at first."""
    gamma_last: float = 0.997
    """Discount in the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        gammas = self.gamma_first, self.gamma_last
        rules = {
            "steps >= 1": self.steps >= 1,
            "n_first >= 2 and n_last >= 2": min(self.n_first, self.n_last) >= 2,
            "gamma_first and gamma_last in (0, 1)": all(0 < gamma < 1 for gamma in gammas),
        }
        require("Horizon", rules, self)
        self.since = 0
        """Updates since the start, or since the last application."""

    def prepare(self, ctx: Context) -> None:
        """Begin with short sight; ValueError for an agent whose returns cannot be set."""
        ctx.require("set_horizon", type(self).__name__)
        self.claim(ctx, "set_horizon")
        self.since, self._own = 0, ctx.discount
        self._set()

    def now(self) -> tuple[int, float]:
        """Return the number of rewards and the discount at present."""
        share = self.since / self.steps
        gamma = 1 - geometric(1 - self.gamma_first, 1 - self.gamma_last, share)
        return round(geometric(self.n_first, self.n_last, share)), gamma

    def _set(self) -> None:
        assert self._ctx.set_horizon is not None
        n_step, gamma = self.now()
        self._ctx.set_horizon(n_step, gamma)
        self._ctx.discount = gamma

    def on_update_end(self, ctx: Context, metrics: dict[str, Any]) -> None:
        """Move on by an update."""
        self.since += 1
        super().on_update_end(ctx, metrics)
        self._set()

    def apply(self, ctx: Context) -> None:
        """Begin anew."""
        before, self.since = self.now(), 0
        n_step, gamma = self.now()
        self.report(ctx, {**self.occasion(), "before": list(before), "n_step": n_step, "gamma": gamma}, applications=1)

    def on_train_end(self, ctx: Context) -> None:
        """Give the agent its own returns back."""
        super().on_train_end(ctx)
        if ctx.set_horizon is not None:
            ctx.set_horizon(None, None)
            ctx.discount = self._own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the same returns."""
        super().load_state_dict(state)
        self._set()
