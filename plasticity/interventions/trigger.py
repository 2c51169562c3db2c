"""When a method applies: on a schedule, when a logged value crosses a bound, or when it has stopped moving."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from plasticity.tags import relatives
from plasticity.value_types import require, require_types

from .conditions import GRAMMAR, parse_condition

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
            f'"plasticity/critic_1/grama/all > 0.3", or a condition, {GRAMMAR}; got {text!r}'
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


def beyond(first: int, unit: str) -> str:
    """Return why a method has not acted whose first time, in ticks of ``unit``, lies beyond the end."""
    return f"its first time would have been after {first} {unit}, beyond the end of training; let it act earlier"


@dataclass
class Trigger:
    """Say when to act: ask :meth:`due` over and over, with a clock that never goes back; any condition will do."""

    every: int | None = None
    """Act at the multiples of this many ticks."""
    at: tuple[int, ...] = ()
    """Act at these ticks."""
    when: str | None = None
    """Act when a logged value crosses a bound, once until it has gone back: ``"<tag> > <number>"``; or when a condition
    on its readings holds: ``"plateau(<tag>, <window>, <eps>)"``, ``"small_change(<tag>, <eta>)"``
    (``conditions.py``)."""
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
        self.when = None if self.when is None else str(self.when)
        require_types(self)
        self._condition = None if self.when is None else parse_condition(self.when)
        self._when = None if self.when is None or self._condition else parse_when(self.when)
        self._stalled = None if self.stalled is None else parse_stalled(self.stalled)
        checks = {
            "every >= 1": self.every is None or self.every >= 1,
            "at >= 1": all(tick >= 1 for tick in self.at),
            "margin >= 0": self.margin >= 0,
            "cooldown >= 0": self.cooldown >= 0,
            "0 <= start <= stop": 0 <= self.start <= (math.inf if self.stop is None else self.stop),
        }
        require("a trigger", checks, self)
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

    def due(
        self, clock: int, latest: Mapping[str, float] | None = None, logged: Mapping[str, int] | None = None
    ) -> bool:
        """Return whether to act now, at ``clock``, given the last value logged under each tag; acts once per occasion.

        ``logged``: how often each was logged, by which conditions know a new reading; without it, by a new value.

        A tick that was jumped over counts when it is passed. A tag that is not there yet is waited for, but not when
        others of its kind have been measured: then ValueError names the nearest tag.
        """
        latest = latest or {}
        scheduled = self._scheduled(self._clock, clock)
        crossed = self._crossed(clock, latest) or self._conditioned(clock, latest, logged or {})
        measured = [crossed, self._stands_still(clock, latest)]
        self._clock = clock
        cooling = self._acted is not None and clock - self._acted < self.cooldown
        ready = self.start <= clock <= (math.inf if self.stop is None else self.stop) and not cooling
        reasons = [scheduled, *(measured if ready else [])]
        found = [reason for reason in reasons if reason]
        if found:
            self.reason, self._acted = "; ".join(found), clock
            self._armed = self._armed and not (ready and measured[0])
            if self._condition is not None and ready and measured[0]:
                self._condition.act()
            self._history = [] if ready and measured[1] else self._history
        return bool(found)

    def missed(self, unit: str, ahead: int = 0, latest: Mapping[str, float] | None = None) -> str:
        """Return why a schedule never came to act; empty where it did, or where values that were logged decide.

        ``unit``: of ticks. ``ahead``: ticks by which :meth:`due` was asked before they came. ``latest``: the last value
        logged under each tag; without it, tags that were never logged are not told.
        """
        now = self._clock - ahead
        first = min([*self.at, *([self.every] if self.every else [])], default=None)
        acted = self._acted is not None and self._acted <= now
        if not acted and latest is not None and (unknown := [tag for tag in self._tags if tag not in latest]):
            nearest = difflib.get_close_matches(unknown[0], latest, 3, 0)
            there = f"the nearest tags are {', '.join(nearest)}" if nearest else "nor under any other tag"
            return f"nothing was logged under {unknown[0]!r}; {there}"
        if acted or self.when or self.stalled or first is None or first <= now:
            return ""
        return beyond(first, unit)

    @property
    def _tags(self) -> list[str]:
        """The tags of the logged values that decide."""
        of_condition = [] if self._condition is None else [self._condition.signal]
        return [*of_condition, *(parsed[0] for parsed in (self._when, self._stalled) if parsed is not None)]

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

    def _conditioned(self, clock: int, latest: Mapping[str, float], logged: Mapping[str, int]) -> str:
        if self._condition is None or (value := self._value(self._condition.signal, clock, latest)) is None:
            return ""
        self._condition.see(value, logged.get(self._condition.signal))
        return str(self._condition) if self._condition.holds() else ""

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
        names, siblings = relatives(tag, latest)
        kin = {t: latest[t] for t in names}
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
        state = {"clock": self._clock, "acted": self._acted, "armed": self._armed, "history": history}
        return state if self._condition is None else {**state, "condition": self._condition.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._clock, self._acted, self._armed = state["clock"], state["acted"], state["armed"]
        self._history = [(clock, value) for clock, value in state["history"]]
        if self._condition is not None and "condition" in state:
            self._condition.load_state_dict(state["condition"])
