"""Conditions on a logged value, reading by reading: it has levelled off, or hardly changed.

The triggers of T2PO (arXiv 2605.02178, which stops the thinking of a language model by them) for
every method and metric: its uncertainty signal is any tag here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from plasticity.value_types import require, require_types

_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*")
_TAG = re.compile(r"[^\s()'\"]+")


@dataclass
class ReadingCondition:
    """A condition that looks at every reading of one tag; as text ``name(tag, numbers ..., words ...)``."""

    CALLED: ClassVar[str] = ""
    GRAMMAR: ClassVar[str] = ""

    signal: str
    """Tag of the value, such as ``plasticity/critic_1/effective_rank/all``."""

    def __post_init__(self) -> None:
        require_types(self)
        self.values: list[float] = []
        self.fired = 0
        self._seen: int | float | None = None

    def see(self, value: float, count: int | None = None) -> None:
        """Take in the value held now; ``count``: how often it was logged, to know a new reading. NaN is skipped.

        Without a count, a reading is new where its value is.
        """
        mark = value if count is None else count
        if mark != self._seen and math.isfinite(value):
            self.take(value)
        self._seen = mark

    def take(self, value: float) -> None:
        """Take in a new reading."""
        raise NotImplementedError

    def holds(self) -> bool:
        """Return whether the condition holds now."""
        raise NotImplementedError

    def act(self) -> None:
        """Begin anew: something was done about it."""
        self.fired += 1
        self.values = []

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        return {"values": list(self.values), "fired": self.fired, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.values, self.fired, self._seen = list(state["values"]), state["fired"], state["seen"]


@dataclass
class OnPlateau(ReadingCondition):
    """Hold when a value has levelled off, past its peak.

    The mean |change| over the last ``window`` changes is below ``eps`` times the largest magnitude among these
    readings. (T2PO's eps is absolute, of a signal in [0, 1].)
    """

    CALLED: ClassVar[str] = "plateau"
    GRAMMAR: ClassVar[str] = "plateau(<tag>, <window>, <eps>[, anywhere][, again])"

    window: int = 10
    """Changes between readings that are looked at."""
    eps: float = 0.02
    """Relative change below which it is level."""
    after_peak: bool = True
    """Hold only below the largest reading so far; as text, ``anywhere`` is False."""
    once: bool = True
    """Hold once in a run; as text, ``again`` is False. The window begins anew after each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("OnPlateau", {"window >= 1": self.window >= 1, "eps > 0": self.eps > 0}, self)
        self.peak = -math.inf

    def take(self, value: float) -> None:
        """Take in a new reading."""
        self.peak = max(self.peak, value)
        self.values = [*self.values, value][-self.window - 1 :]

    def holds(self) -> bool:
        """Return whether the value is level now."""
        if len(self.values) <= self.window or (self.once and self.fired):
            return False
        if self.after_peak and not self.values[-1] < self.peak:
            return False
        changes = [abs(new - old) for old, new in zip(self.values, self.values[1:], strict=False)]
        return sum(changes) / self.window < self.eps * max(map(abs, self.values)) or not any(changes)

    def __str__(self) -> str:
        words = [word for word, given in (("anywhere", not self.after_peak), ("again", not self.once)) if given]
        return f"plateau({', '.join([self.signal, str(self.window), f'{self.eps:g}', *words])})"

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far."""
        return {**super().state_dict(), "peak": self.peak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.peak = state["peak"]


@dataclass
class OnSmallChange(ReadingCondition):
    """Hold when a reading differs from the one before by less than ``eta``, at most ``max_tries`` times."""

    CALLED: ClassVar[str] = "small_change"
    GRAMMAR: ClassVar[str] = "small_change(<tag>, <eta>[, <max tries>])"

    eta: float = 1e-3
    """Absolute change below which it is small."""
    max_tries: int = 1
    """Times that it holds in a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("OnSmallChange", {"eta > 0": self.eta > 0, "max_tries >= 1": self.max_tries >= 1}, self)

    def take(self, value: float) -> None:
        """Take in a new reading."""
        self.values = [*self.values, value][-2:]

    def holds(self) -> bool:
        """Return whether the last change was small."""
        known = len(self.values) == 2 and self.fired < self.max_tries
        return known and abs(self.values[1] - self.values[0]) < self.eta

    def act(self) -> None:
        """Wait for the next reading."""
        last = self.values[-1:]
        super().act()
        self.values = last

    def __str__(self) -> str:
        return f"small_change({self.signal}, {self.eta:g}, {self.max_tries})"


CONDITIONS: dict[str, type[ReadingCondition]] = {kind.CALLED: kind for kind in (OnPlateau, OnSmallChange)}
"""Name in text -> the condition."""
GRAMMAR = " or ".join(kind.GRAMMAR for kind in CONDITIONS.values())
"""How conditions are written."""


def parse_condition(text: str) -> ReadingCondition | None:
    """Return the condition that ``text`` calls by name, None where it is no call; ValueError shows the grammar."""
    match = _CALL.fullmatch(text)
    if match is None:
        return None
    kind = CONDITIONS.get(match[1])
    parts = [part.strip() for part in match[2].split(",")]
    kind = kind if _TAG.fullmatch(parts[0]) else None
    try:
        if kind is OnPlateau and len(parts) >= 3 and set(parts[3:]) <= {"anywhere", "again"}:
            words = {"after_peak": "anywhere" not in parts[3:], "once": "again" not in parts[3:]}
            return OnPlateau(parts[0], int(parts[1]), float(parts[2]), **words)
        if kind is OnSmallChange and len(parts) in (2, 3):
            return OnSmallChange(parts[0], float(parts[1]), *map(int, parts[2:]))
    except ValueError as error:
        if "needs" in str(error):
            raise
    raise ValueError(
        f"a condition is {GRAMMAR}, such as plateau(plasticity/critic_1/effective_rank/all, 10, 0.02); got {text!r}"
    )
