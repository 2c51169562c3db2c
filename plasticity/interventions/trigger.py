"""When a method applies: on a schedule, when a logged value crosses a bound, or when it has stopped moving."""

from __future__ import annotations

import difflib
import math
import operator
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from plasticity.callback import Context
from plasticity.isolation import foreign_pass, map_tensors, unwrap
from plasticity.surgery import function_change

from .intervention import Intervention

T = TypeVar("T")

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_WHEN = re.compile(rf"\s*([^\s<>]+)\s*(>=|<=|>|<)\s*({_NUMBER})\s*")
_STALLED = re.compile(rf"\s*([^\s<>]+)\s*<\s*({_NUMBER})\s+over\s+(\d+)\s*")
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def parse_when(text: str) -> tuple[str, str, float]:
    """Return (tag, operator, bound) of ``"<tag> > <number>"``; also >=, < and <=. ValueError shows the grammar."""
    match = _WHEN.fullmatch(text)
    if match is None:
        raise ValueError(
            f'when is "<tag> <op> <number>" with <op> one of >, >=, <, <=, such as '
            f'"plasticity/critic_1/grama/all > 0.3"; got {text!r}'
        )
    return match[1], match[2], float(match[3])


def parse_stalled(text: str) -> tuple[str, float, int]:
    """Return (tag, relative change, window) of ``"<tag> < <number> over <steps>"``. ValueError shows the grammar."""
    match = _STALLED.fullmatch(text)
    if match is None or not int(match[3]):
        raise ValueError(
            f'stalled is "<tag> < <relative change> over <steps of the clock>", such as '
            f'"plasticity/critic_1/effective_rank/all < 0.01 over 20000"; got {text!r}'
        )
    return match[1], float(match[2]), int(match[3])


@dataclass
class Trigger:
    """Say when to act: ask :meth:`due` over and over, with a clock that never goes back; any condition will do."""

    every: int | None = None
    """Act at the multiples of this many ticks."""
    at: tuple[int, ...] = ()
    """Act at these ticks."""
    when: str | None = None
    """Act when a logged value crosses a bound, once until it has gone back: ``"<tag> > <number>"``."""
    stalled: str | None = None
    """Act when a logged value moved by less than a fraction of itself: ``"<tag> < <fraction> over <ticks>"``."""
    margin: float = 0.0
    """How far back over its bound the value of ``when`` must go before it can act again."""
    cooldown: int = 0
    """Ticks after any action in which ``when`` and ``stalled`` do not act."""
    start: int = 0
    """First tick at which to act."""
    stop: int | None = None
    """Last tick at which to act; None for no end."""

    def __post_init__(self) -> None:
        self._when = parse_when(self.when) if self.when else None
        self._stalled = parse_stalled(self.stalled) if self.stalled else None
        checks = {
            "every >= 1": self.every is None or self.every >= 1,
            "at >= 1": all(tick >= 1 for tick in self.at),
            "margin >= 0": self.margin >= 0,
            "cooldown >= 0": self.cooldown >= 0,
            "0 <= start <= stop": 0 <= self.start <= (math.inf if self.stop is None else self.stop),
        }
        if broken := [rule for rule, holds in checks.items() if not holds]:
            raise ValueError(f"a trigger needs {', '.join(broken)}; got {self}")
        self.reason = ""
        """Why it last acted."""
        self._clock = 0
        self._acted: int | None = None
        self._armed = True
        self._history: list[tuple[int, float]] = []
        self._kin: dict[str, float] = {}
        self._kin_clock = 0

    def begin(self, clock: int) -> None:
        """Start from a clock other than 0: what lies before is not made up for."""
        self._clock = clock

    def due(self, clock: int, latest: Mapping[str, float] | None = None) -> bool:
        """Return whether to act now, at ``clock``, given the last value logged under each tag; acts once per occasion.

        A tick that was jumped over counts when it is passed. A tag that is not there yet is waited for, but not when
        others of its kind have been measured: then ValueError names the nearest tag.
        """
        latest = latest or {}
        scheduled = self._scheduled(self._clock, clock)
        measured = [self._crossed(clock, latest), self._stands_still(clock, latest)]
        self._clock = clock
        cooling = self._acted is not None and clock - self._acted < self.cooldown
        ready = self.start <= clock <= (math.inf if self.stop is None else self.stop) and not cooling
        reasons = [scheduled, *(measured if ready else [])]
        found = [reason for reason in reasons if reason]
        if found:
            self.reason, self._acted = "; ".join(found), clock
            self._armed = self._armed and not (ready and measured[0])
            self._history = [] if ready and measured[1] else self._history
        return bool(found)

    def _scheduled(self, before: int, now: int) -> str:
        stop = math.inf if self.stop is None else self.stop
        ticks = [(tick, f"at {tick}") for tick in self.at]
        if self.every:
            ticks.append((now - now % self.every, f"every {self.every}"))
        return "; ".join(text for tick, text in ticks if before < tick <= now and self.start <= tick <= stop)

    def _crossed(self, clock: int, latest: Mapping[str, float]) -> str:
        if self._when is None or (value := self._value(self._when[0], clock, latest)) is None:
            return ""
        tag, op, bound = self._when
        back = bound - self.margin if op.startswith(">") else bound + self.margin
        # Not "not holds": a value that is NaN is on neither side.
        inverse = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}[op]
        self._armed |= _OPERATORS[inverse](value, back)
        return f"{tag} = {value:.4g} {op} {bound:g}" if self._armed and _OPERATORS[op](value, bound) else ""

    def _stands_still(self, clock: int, latest: Mapping[str, float]) -> str:
        if self._stalled is None or (value := self._value(self._stalled[0], clock, latest)) is None:
            return ""
        tag, fraction, window = self._stalled
        if math.isfinite(value) and (not self._history or self._history[-1][1] != value):
            self._history.append((clock, value))
        while len(self._history) > 1 and self._history[1][0] <= clock - window:
            del self._history[0]  # the first one left is the value held when the window began
        if not self._history or self._history[0][0] > clock - window:
            return ""
        values = [value for _, value in self._history]
        still = max(values) - min(values) <= fraction * max(map(abs, values))
        return f"{tag} moved by less than {fraction:g} over {window}" if still else ""

    def _value(self, tag: str, clock: int, latest: Mapping[str, float]) -> float | None:
        """Return the tag's value, None if it may still come; ValueError if its like is there and it is not."""
        if tag in latest:
            return latest[tag]
        family = tag.split("/")[0]
        kin = {t: v for t, v in latest.items() if _alike(t.split("/")[0], family) and t.count("/") >= 2}
        siblings = [t for t in kin if t.split("/")[:2] == tag.split("/")[:2]]
        if not self._kin and kin:
            self._kin, self._kin_clock = kin, clock
        # One network's values are logged together, and those of another at the latest before any is measured twice.
        first = siblings and all(t in self._kin for t in siblings) and clock > self._kin_clock
        if first or any(t in kin and kin[t] != v for t, v in self._kin.items()):
            nearest = difflib.get_close_matches(tag, kin, 3, 0)
            raise ValueError(f"nothing is logged under {tag!r}; the nearest tags are {', '.join(nearest)}")
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        history = [list(entry) for entry in self._history]
        return {"clock": self._clock, "acted": self._acted, "armed": self._armed, "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._clock, self._acted, self._armed = state["clock"], state["acted"], state["armed"]
        self._history = [(clock, value) for clock, value in state["history"]]


def _alike(a: str, b: str) -> bool:
    return a == b or difflib.SequenceMatcher(None, a, b).ratio() > 0.8


_SCHEDULE = ("every", "at", "when", "stalled", "stop")


@dataclass
class Triggered(Intervention):
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
    """Apply when a logged value crosses a bound, such as "plasticity/critic_1/grama/all > 0.3"."""
    stalled: str | None = None
    """Apply when a logged value stands still, such as "plasticity/critic_1/effective_rank/all < 0.01 over 20000"."""
    clock: Literal["env_steps", "updates", "gradient_steps"] | None = None
    """What is counted; None: the preset's, or gradient steps (of the optimizer of the first network chosen) if you set
    every, at, when or stalled."""
    margin: float = 0.0
    """How far back over its bound the value of when must go before it can apply again."""
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
        given = {name: getattr(self, name) for name in _SCHEDULE}
        own = any(given[name] is not None for name in _SCHEDULE[:-1])
        self.clock = "gradient_steps" if own and self.clock is None else self.clock
        super().__post_init__()
        if own:  # a schedule of one's own replaces the preset's as a whole
            for name, value in given.items():
                setattr(self, name, value)
        # Seeded with the plain number, the generator would repeat torch.manual_seed(number): the first redraw of a
        # network built after that would be the very weights it began with.
        self.generator.manual_seed(zlib.crc32(f"{self.NAME}/{self.seed}".encode()))
        self.at = tuple(self.at or ())
        self.trigger = Trigger(
            self.every, self.at, self.when, self.stalled, self.margin, self.cooldown, self.start, self.stop
        )
        self.ticks = {"updates": 0, "gradient_steps": 0}
        self._pending = self._updating = self._resumed = False
        self._inputs: dict[str, _FirstInputs] = {}
        self._saved_inputs: dict[str, Any] = {}

    def on_train_start(self, ctx: Context) -> None:
        """Find the networks and start the clock; ValueError for a network that no optimizer trains."""
        self._ctx, self._networks = ctx, {n: unwrap(net) for n, net in self.choose(ctx, self.networks).items()}
        ctx.require("optimizers", type(self).__name__)
        optimizers = [ctx.optimizer_of(name) for name in self._networks]
        if not self._resumed:
            self.trigger.begin(ctx.step if self.clock == "env_steps" else 0)
        self.hook(optimizers[0].register_step_post_hook(self.named(self._after_step)))
        for name, network in self._networks.items():
            self._inputs[name] = _FirstInputs(network, self._saved_inputs.get(name))
            self.hook(self._inputs[name])

    def apply(self, ctx: Context) -> None:
        """Do what the method does."""
        raise NotImplementedError

    def measured(self, network: str, change: Callable[[], T]) -> tuple[T, float]:
        """Return what ``change()`` returns, and by how much it changed the function of the network on its first inputs.

        NaN where the network has not been trained yet.
        """
        inputs = self.inputs(network)

        def edit() -> T:
            result = change()
            self._ctx.edited()
            return result

        return (edit(), math.nan) if inputs is None else function_change(self._networks[network], *inputs, edit)

    def inputs(self, network: str) -> tuple[tuple, dict] | None:
        """Return the arguments of the network's first training pass, None before it."""
        return self._inputs[network].found

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Look at the clock of environment steps."""
        if self.clock == "env_steps":
            self._consider()

    def on_update_start(self, ctx: Context) -> None:
        """Wait until the update is over."""
        self._updating = True

    def on_update_end(self, ctx: Context, metrics: dict[str, Any]) -> None:
        """Count an update, and apply what fell due in it."""
        self._updating = False
        self.ticks["updates"] += 1
        self._consider(self.clock == "updates")

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        self.ticks["gradient_steps"] += 1
        stands = self._now() == 0 and not self._updating
        if stands and self.ticks["gradient_steps"] >= 100:
            raise ValueError(
                f"{type(self).__name__} counts {self.clock}, and after 100 gradient steps there was none: "
                f"count them in Context.step, fire the events, or pass clock='gradient_steps'"
            )
        self._consider(self.clock != "updates")

    def _now(self) -> int:
        return self._ctx.step if self.clock == "env_steps" else self.ticks[self.clock or "gradient_steps"]

    def _consider(self, look: bool = True) -> None:
        if look and self.trigger.due(self._now(), self._ctx.latest):
            self._pending = True
        if self._pending and not self._updating:
            self._pending = False
            self.apply(self._ctx)
            self._ctx.edited()

    def occasion(self) -> dict[str, Any]:
        """Return when and why it is applied, for the event."""
        return {str(self.clock): self._now(), "because": self.trigger.reason}

    def state_dict(self) -> dict[str, Any]:
        """Return counters, generator, clocks, the trigger's memory, and the inputs on which changes are measured."""
        # What is no tensor or plain value is not for a checkpoint: a resumed run then takes new inputs.
        inputs = {name: first.found for name, first in self._inputs.items() if _is_plain(first.found)}
        clocks = {"ticks": dict(self.ticks), "trigger": self.trigger.state_dict()}
        return {**super().state_dict(), **clocks, "inputs": inputs or dict(self._saved_inputs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, before or after ``on_train_start``."""
        super().load_state_dict(state)
        self.ticks = dict(state["ticks"])
        self.trigger.load_state_dict(state["trigger"])
        self._saved_inputs = dict(state["inputs"])
        for name, first in self._inputs.items():
            first.take(self._saved_inputs.get(name))
        self._resumed = True


class _FirstInputs:
    """A hook that keeps a copy of what a network was called with on its first training pass, and takes itself off.

    ``found``: what was kept before a run was resumed.
    """

    def __init__(self, network: nn.Module, found: tuple[tuple, dict] | None = None) -> None:
        self.found: tuple[tuple, dict] | None = None
        self._device = next((p.device for p in network.parameters()), None)
        self._handle = network.register_forward_pre_hook(self, with_kwargs=True)
        self.take(found)

    def take(self, found: tuple[tuple, dict] | None) -> None:
        """Keep these inputs, which were loaded to the CPU, in place of the next ones."""
        if found is not None:
            self.found = map_tensors(found, lambda tensor: tensor.to(self._device))
            self.remove()

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if torch.is_grad_enabled() and not foreign_pass(self):
            self.found = map_tensors((args, kwargs), lambda tensor: tensor.detach().clone())
            self.remove()

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple:
        return (_give_inert, ())

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()


def _is_plain(value: Any) -> bool:
    """Return whether nested tuples, lists and dicts hold only tensors and plain values."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (torch.Tensor, bool, int, float, str))


def _inert(*args: Any) -> None:
    """Do nothing: what the hook becomes in a copy of the network."""


def _give_inert() -> Callable[..., None]:
    return _inert
