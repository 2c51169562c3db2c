"""The time that a method takes: that of its events and hooks, each moment counted once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

EVENTS = ("on_task_start", "on_step", "on_update_start", "on_update_end", "on_step_end")
"""Events of a training loop that may take a method's time again and again."""


class Stopwatch:
    """Wall-clock seconds within ``with`` blocks; a block inside another adds nothing."""

    def __init__(self) -> None:
        self._total, self._depth, self._since = 0.0, 0, 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far, those of a block that is not left yet included."""
        return self._total + (perf_counter() - self._since if self._depth else 0.0)

    def __enter__(self) -> None:
        if not self._depth:
            self._since = perf_counter()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._total += perf_counter() - self._since


def time_events(method: type) -> None:
    """Let the events that a class of methods defines run within the ``stopwatch`` of its objects."""
    for name in EVENTS:
        if name in vars(method):
            setattr(method, name, _timed(vars(method)[name]))


def _timed(event: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(event)
    def call(self: Any, *args: Any) -> None:
        with self.stopwatch:
            event(self, *args)

    return call
