"""Methods on whole networks that a trigger applies: reset, shrink and perturb, plasticity injection."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from plasticity.callback import Context
from plasticity.isolation import call_of, unwrap
from plasticity.structure.wirings import Wiring

from .first_inputs import FirstInputs, is_storable
from .intervention import Intervention
from .trigger import Trigger

T = TypeVar("T")
_COUNTED = ("updates", "gradient_steps", "rollouts")
_SCHEDULE = ("every", "at", "when", "stalled", "stop")


@dataclass
class Scheduled(Intervention):
    """An intervention on whole networks: it has a clock and a trigger, and :meth:`apply` does what is to be done.

    In a loop that fires events it is applied between two updates, never inside one, where a gradient may be on its way
    from the old weights to the optimizer; in any other loop, right after the step of the optimizer. What falls due
    several times within one update is applied once.
    """

    every: int | None = None
    """Apply at the multiples of this many ticks of the clock."""
    at: tuple[int, ...] | None = None
    """Apply at these ticks of the clock."""
    when: str | None = None
    """Apply when a logged value crosses a bound, such as "plasticity/critic_1/grama/all > 0.3", or has levelled off, as
    in "plateau(plasticity/critic_1/effective_rank/all, 10, 0.02)" or "small_change(<tag>, <eta>)"."""
    stalled: str | None = None
    """Apply when a logged value stands still, such as "plasticity/critic_1/effective_rank/all < 0.01 over 20000"."""
    clock: Literal["env_steps", "updates", "gradient_steps", "rollouts", "tasks"] | None = None
    """The unit of every, at, start, stop and cooldown. rollouts: times that updates began after environment steps, so
    that every=1 applies before the first update on new data. tasks: tasks that are over, so that every=1 applies at the
    start of each task but the first. None: the preset's, or gradient steps (of the optimizer of the first network
    chosen) if you set every, at, when or stalled."""
    margin: float = 0.0
    """Distance that the value of when must go back over its bound before it can apply again."""
    cooldown: int = 0
    """Ticks after an application in which when and stalled do not apply again."""
    start: int = 0
    """First tick at which to apply."""
    stop: int | None = None
    """Last tick at which to apply; None for no end."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to act on; empty for all."""
    seed: int = 0
    """Seed of the method's own random numbers."""

    def __post_init__(self) -> None:
        self.when = None if self.when is None else str(self.when)  # of a condition: settings are plain values
        given = {name: getattr(self, name) for name in _SCHEDULE}
        own = any(given[name] is not None for name in _SCHEDULE[:-1])
        self.clock = "gradient_steps" if own and self.clock is None else self.clock
        super().__post_init__()
        if own:  # a schedule of one's own replaces the preset's as a whole
            for name in (name for name, value in given.items() if value is None):
                setattr(self, name, None)
        # Seeded with the plain number, the generator would repeat torch.manual_seed(number): the first redraw of a
        # network built after that would be the very weights it began with.
        self.generator.manual_seed(zlib.crc32(f"{self.NAME}/{self.seed}".encode()))
        self.at = self.at or ()
        self.trigger = self._new_trigger()
        self.ticks = dict.fromkeys(_COUNTED, 0)
        self._pending = self._updating = self._collected = False
        self._networks: dict[str, nn.Module] = {}
        self._inputs: dict[str, FirstInputs] = {}

    def on_train_start(self, ctx: Context) -> None:
        """Find the networks and start the clock; ValueError for a network that no optimizer trains."""
        self._ctx, self._networks = ctx, {n: unwrap(net) for n, net in self.choose(ctx, self.networks).items()}
        ctx.require("optimizers", type(self).__name__)
        optimizers = [ctx.optimizer_of(name) for name in self._networks]
        self._pending = self._updating = self._collected = False
        self.ticks = dict.fromkeys(_COUNTED, 0)
        self.trigger = self._new_trigger()
        self.trigger.begin(self._now())
        self.prepare(ctx)
        self.hook(optimizers[0].register_step_post_hook(self.named(self._after_step)))
        for name, network in self._networks.items():
            self._inputs[name] = FirstInputs(network, ctx.calls.get(name, ()))
            self.hook(self._inputs[name])

    def prepare(self, ctx: Context) -> None:
        """Run when the networks are found, before any hook: those registered here run before an application."""

    def _new_trigger(self) -> Trigger:
        return Trigger(
            self.every, self.at or (), self.when, self.stalled, self.margin, self.cooldown, self.start, self.stop
        )

    def apply(self, ctx: Context) -> None:
        """Apply the method to its networks, once."""
        raise NotImplementedError

    def alter(self, ctx: Context, network: str, edit: Callable[[], T]) -> tuple[T, float]:
        """Edit a network as the base does, with the masks of other methods put back before the change is measured."""

        def masked() -> T:
            result = edit()
            ctx.edited()
            return result

        return super().alter(ctx, network, masked)

    def runner(self, ctx: Context, network: str) -> Callable[[], Any] | None:
        """Return what runs a network on the inputs of its first training pass; None before it."""
        if (inputs := self.inputs(network)) is None:
            return None
        args, kwargs = inputs
        return partial(call_of(self._networks[network], self._inputs[network].method), *args, **kwargs)

    def inputs(self, network: str) -> tuple[tuple, dict] | None:
        """Return the arguments of the network's first training pass, None before it."""
        return self._inputs[network].found

    def first_wiring(self, network: str) -> Wiring:
        """Return how the layers of a network feed each other, as its first training pass showed it."""
        return self._inputs[network].wiring(self._networks[network])

    def on_task_start(self, ctx: Context, task: Any) -> None:
        """Look at the clock of tasks."""
        if self.clock == "tasks":
            self._consider()

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Look at the clock of environment steps."""
        self._collected = True
        if self.clock == "env_steps":
            self._consider()

    def on_update_start(self, ctx: Context) -> None:
        """Count a rollout with its first update, then wait until the update is over."""
        if self._collected:
            self._collected = False
            self.ticks["rollouts"] += 1
            self._consider(self.clock == "rollouts")
        self._updating = True

    def on_update_end(self, ctx: Context, metrics: dict[str, Any]) -> None:
        """Count an update, and apply what fell due in it."""
        self._updating = False
        self.ticks["updates"] += 1
        self._consider(self.clock == "updates")

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self.ticks["gradient_steps"] += 1
        stands = not self._ctx.num_tasks if self.clock == "tasks" else self._now() == 0 and not self._updating
        if stands and self.ticks["gradient_steps"] >= 100:
            where = {
                "tasks": "train in an environment with tasks, or call start_task",
                "env_steps": "count Context.step",
                "rollouts": "fire on_step and on_update_start",
            }
            raise ValueError(
                f"{type(self).__name__} counts {self.clock}, and after 100 gradient steps there was none: "
                f"{where.get(str(self.clock), 'fire the events')}, or pass clock='gradient_steps'"
            )
        self._consider(self.clock not in ("updates", "rollouts"))

    def _now(self) -> int:
        if self.clock == "tasks":
            return max(self._ctx.num_tasks - 1, 0)
        return self._ctx.step if self.clock == "env_steps" else self.ticks[self.clock or "gradient_steps"]

    def _consider(self, look: bool = True) -> None:
        if look and self.trigger.due(self._now(), self._ctx.latest, self._ctx.logged):
            self._pending = True
        if self._pending and not self._updating:
            self._pending = False
            self.apply(self._ctx)
            self._ctx.edited()

    def occasion(self) -> dict[str, Any]:
        """Return when and why it is applied, for the event."""
        return {str(self.clock): self._now(), "because": self.trigger.reason}

    def idle(self) -> str:
        """Return why it was never applied, where its schedule says, or a tag that was never logged."""
        return self.trigger.missed(str(self.clock).replace("_", " "), latest=self._ctx.latest)

    def state_dict(self) -> dict[str, Any]:
        """Return counters, generator, clocks, the trigger's memory, and the inputs on which changes are measured."""
        # A checkpoint holds tensors and plain values only: a run with other inputs takes new ones when it is resumed.
        inputs = {name: first.found for name, first in self._inputs.items() if is_storable(first.found)}
        clocks = {"ticks": dict(self.ticks), "trigger": self.trigger.state_dict(), "collected": self._collected}
        return {
            **super().state_dict(),
            **clocks,
            "inputs": inputs,
            "methods": {name: self._inputs[name].method for name in inputs},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.ticks |= state["ticks"]
        self.trigger.load_state_dict(state["trigger"])
        self._collected = state.get("collected", False)
        for name, first in self._inputs.items():
            first.take(state["inputs"].get(name), state.get("methods", {}).get(name, "forward"))
