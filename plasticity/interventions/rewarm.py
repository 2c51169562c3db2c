"""Re-warming of the learning rate: from nearly 0 back to what it was, after every event.

Lyle et al. 2024, *Normalization and effective learning rates in reinforcement learning*, arXiv 2407.01800;
Ibrahim et al. 2024, *Simple and Scalable Strategies to Continually Pre-train Large Language Models*, arXiv 2403.08763.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.value_types import require

from .scheduled import Scheduled

_WHOLE: WeakKeyDictionary[Optimizer, list[float]] = WeakKeyDictionary()
"""Optimizer -> the rates of its groups during a step in which they are lowered, by one method or several."""


@dataclass
class Rewarm(Scheduled):
    """Let the learning rate rise from nearly 0 to what it was, repeatedly.

    At every event: for the next ``steps`` steps of each optimizer the k-th takes k / steps of its rate. The rate itself
    is put back after every step, so schedules of agents and schedulers go on below it. Shares of several multiply.

    Defaults: 1000 steps, every 200 000 environment steps; ours, as no paper has one, nor code. ``every=1,
    clock="tasks"`` does it at the start of each task but the first.
    """

    NAME: ClassVar[str] = "rewarm"
    KIND: ClassVar[str] = "optimizer"
    PRESETS: ClassVar = {"default": {"every": 200_000, "clock": "env_steps"}}

    preset: Literal["default"] = "default"
    """Defaults of the options that are None."""
    steps: int = 1000
    """Steps of an optimizer until its rate is whole again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("Rewarm", {"steps >= 1": self.steps >= 1}, self)
        self.since: dict[str, int] = {}
        """Optimizer -> its steps since the last event, while it is warming up."""
        self._optimizers: dict[str, Optimizer] = {}
        self._warming: dict[str, list[Any]] = {}

    def prepare(self, ctx: Context) -> None:
        """Find the optimizers of the networks."""
        used = {id(ctx.optimizer_of(name)) for name in self._networks}
        self._optimizers = {name: one for name, one in ctx.optimizers.items() if id(one) in used}
        self.since, self._warming = {}, {}

    def apply(self, ctx: Context) -> None:
        """Begin to warm up all optimizers."""
        for name in self._optimizers:
            self._begin(name, 0)
        self.report(ctx, {**self.occasion(), "optimizers": list(self._optimizers)}, applications=1)

    def _begin(self, name: str, since: int) -> None:
        """Warm up an optimizer; its hooks are there only while it does, as a hook before a step makes it slower."""
        self.since[name] = since
        if name not in self._warming:
            # Not the hook after a step: in a loop without events this runs in one, whose optimizer goes through them.
            before = self._optimizers[name].register_step_pre_hook(self.named(partial(self._lower, name)))
            self._warming[name] = [before]
            self.hook(before)

    def _lower(self, name: str, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if len(self._warming[name]) == 1:
            after = optimizer.register_step_post_hook(self.named(partial(self._raise, name)))
            self._warming[name].append(after)
            self.hook(after)
        _WHOLE.setdefault(optimizer, [group["lr"] for group in optimizer.param_groups])
        self.since[name] += 1  # not after the step, behind which an event may begin anew
        share = min(1.0, self.since[name] / self.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * share

    def _raise(self, name: str, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for group, rate in zip(optimizer.param_groups, _WHOLE.pop(optimizer, ()), strict=False):
            group["lr"] = rate  # once, by whichever comes first

    def on_update_end(self, ctx: Context, metrics: dict[str, Any]) -> None:
        """Apply what fell due, and take the hooks off optimizers whose rate is whole again."""
        super().on_update_end(ctx, metrics)
        for name in [name for name, since in self.since.items() if since >= self.steps]:
            del self.since[name]
            for handle in self._warming.pop(name):
                handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return how far each optimizer has warmed up, too."""
        return {**super().state_dict(), "since": dict(self.since)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        for name, since in state["since"].items():
            self._begin(name, since)
