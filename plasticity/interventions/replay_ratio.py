"""Adaptive replay ratio: few updates until the critic's activity has settled, more from then on.

Ma et al. 2024, *Revisiting Plasticity in Visual Reinforcement Learning: Data, Modules and Training Stages*, ICLR 2024,
arXiv 2310.07418, section 6; code: github.com/Guozheng-Ma/Adaptive-Replay-Ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import undisturbed, unwrap
from plasticity.monitor import Monitor
from plasticity.value_types import require

from .intervention import Intervention
from .trigger import beyond


def active_share(network: nn.Module, run: Callable[[], Any]) -> float:
    """Return FAU, the share of (sample, neuron) entries that fire in the passes that ``run()`` takes, in [0, 1]."""
    owner = object()
    with undisturbed(network, owner), torch.no_grad():
        monitor = Monitor(network, ["fau"], strict=True, owner=owner)
        with monitor:
            run()
        return float(monitor.read().values["fau"]["all"])


@dataclass
class AdaptiveReplayRatio(Intervention):
    """Update seldom until the critic's active share has settled, then often.

    The ratio, updates per environment step, is ``low`` at first. Every ``check_every`` updates FAU, the share of
    entries that fire, is measured on past transitions; once it differs from that of the check before by less than
    ``eta``, the ratio is ``high``, and stays so. While a critic still loses activity, more updates would make it lose
    more.

    ``paper``: 0.5, then 2, at a change below 1e-3; a check every 12 500 updates, which are the 50 episodes of the
    released code. That code, which was read and not run (it is made for hydra and dm_control), takes the mean of FAU
    over all updates of the last of them and of both critics; here it is one critic's on ``batches`` batches of past
    transitions. From draw to draw FAU differs by 1.2e-3 on one batch of 256, by 2e-4 on 64 (means over 59 pairs, two
    new layers of 256).
    """

    NAME: ClassVar[str] = "replay_ratio"
    KIND: ClassVar[str] = "data"
    NEEDS: ClassVar[tuple[str, ...]] = ("networks", "forward", "peek", "set_replay_ratio")
    STATE: ClassVar[tuple[str, ...]] = ("updates", "active", "settled")
    PRESETS: ClassVar = {"paper": {"low": 0.5, "high": 2.0, "eta": 1e-3}}

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None."""
    low: float | None = None
    """Updates per environment step at first."""
    high: float | None = None
    """Updates per environment step once activity has settled."""
    eta: float | None = None
    """Change of FAU between two checks below which it has settled."""
    network: str = "critic_1"
    """Network that is measured; the first one of the run where there is none of this name."""
    check_every: int = 12_500
    """Updates between two checks."""
    batch_size: int = 256
    """Past transitions of a batch of a check."""
    batches: int = 64
    """Batches of a check, of which FAU is the mean."""
    seed: int = 0
    """Seed of the choice of these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "low > 0": (self.low or 0.0) > 0,
            "high > 0": (self.high or 0.0) > 0,
            "eta >= 0": (self.eta or 0.0) >= 0,
            "check_every >= 1": self.check_every >= 1,
            "batch_size >= 1": self.batch_size >= 1,
            "batches >= 1": self.batches >= 1,
        }
        require("AdaptiveReplayRatio", rules, self)
        self.updates = 0
        self.active: float | None = None
        """FAU at the last check."""
        self.settled = False

    def on_train_start(self, ctx: Context) -> None:
        """Set the first ratio; ValueError for an agent whose ratio cannot be set."""
        for need in self.NEEDS:
            ctx.require(need, type(self).__name__)
        self.claim(ctx, "set_replay_ratio")
        self._ctx, self.updates, self.active, self.settled = ctx, 0, None, False
        self._measured = self.network if self.network in ctx.networks else next(iter(ctx.networks))
        self._set()

    def _set(self) -> None:
        assert self._ctx.set_replay_ratio is not None
        ratio = self.high if self.settled else self.low
        assert ratio is not None
        self._ctx.set_replay_ratio(ratio)

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Check now and then, until activity has settled."""
        self.updates += 1
        if self.updates % self.check_every or self.settled:
            return
        before, self.active = self.active, active_share(unwrap(ctx.networks[self._measured]), lambda: self._pass(ctx))
        self.settled = before is not None and abs(self.active - before) < (self.eta or 0.0)
        self._set()
        ratio = self.high if self.settled else self.low
        self.log(ctx, {"active": self.active, "ratio": ratio or 0.0, **self.costs()})
        if self.settled:
            self.report(ctx, {"network": self._measured, "active": self.active, "ratio": ratio}, applications=1)

    def idle(self) -> str:
        """Return why the ratio has never risen, where there was no second check."""
        second = 2 * self.check_every
        return beyond(second, "updates") if self.updates < second else ""

    def _pass(self, ctx: Context) -> None:
        assert ctx.peek is not None
        for _ in range(self.batches):
            batch = ctx.peek(self.batch_size, self.generator)
            ctx.forward[self._measured](ctx.networks[self._measured], batch)

    def on_train_end(self, ctx: Context) -> None:
        """Give the agent its own ratio back."""
        super().on_train_end(ctx)
        if ctx.set_replay_ratio is not None:
            ctx.set_replay_ratio(None)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, at the same ratio."""
        super().load_state_dict(state)
        self._set()
