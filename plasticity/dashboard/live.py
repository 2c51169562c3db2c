"""The live view of a run: a small panel in place in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live as Display
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from plasticity.callback import Callback, Context

from .panel import History, mean, panel

SHOWN = {"dormancy": "dormant", "grama": "GraMa", "effective_rank": "rank"}
"""Metric -> its short name; the mean over the networks of the run is shown."""
RETURNS = {"episodic_return": "return", "eval_return": "eval"}
NUM_EVENTS = 3


class Live(Callback):
    """Show how training goes, as ``with`` block and callback; without a terminal, plain lines now and then."""

    def __init__(self, total_steps: int, title: str, *, plain_every: float = 10.0, quiet: bool = False) -> None:
        self.total_steps, self.title, self.plain_every, self.quiet = total_steps, title, plain_every, quiet
        self.console = Console(stderr=True)
        self.values: dict[str, float] = {}
        self.events: deque[str] = deque(maxlen=NUM_EVENTS)
        self._networks: dict[str, dict[str, float]] = {}
        self._courses: dict[str, History] = {}
        self._step = self._first_step = 0
        self._started = time.perf_counter()
        self._last_shown = -math.inf
        self._display: Display | None = None

    def __enter__(self) -> Live:
        self._started = time.perf_counter()
        if not self.quiet and self.console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}")]
            self._progress = Progress(*columns, TimeRemainingColumn(), console=self.console)
            self._task = self._progress.add_task(self.title, total=self.total_steps, line="")
            self._display = Display(self._renderable(), console=self.console, auto_refresh=False)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.update(self._renderable(), refresh=True)
            self._display.stop()
        elif not self.quiet and self._step:
            self.console.print(f"{self.title}: {self.line()}", highlight=False, soft_wrap=True)

    def see(self, values: Mapping[str, float]) -> None:
        """Remember new values by tag."""
        measured = set()
        for tag, value in values.items():
            parts = tag.split("/")
            if tag.startswith("charts/"):
                self.values[parts[1]] = value
                if parts[1] in RETURNS:
                    self._course(parts[1]).add(value)
            elif tag.startswith("plasticity/") and parts[-1] == "all" and parts[2] in SHOWN:
                self._networks.setdefault(parts[2], {})[parts[1]] = value
                measured.add(parts[2])
        for metric in measured:
            self._course(metric).add(self._mean(metric))

    def mark(self, step: int, event: str) -> None:
        """Remember the latest event."""
        self.events.append(f"{event} at {step:,}")

    def on_train_start(self, ctx: Context) -> None:
        """Count from the step a resumed run starts at."""
        self._first_step = self._step = ctx.step

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Show the state, four times a second in a terminal, now and then elsewhere."""
        self._step = ctx.step
        if self.quiet:
            return
        now = time.perf_counter()
        if self._display is not None:
            if now - self._last_shown > 0.25:
                self._last_shown = now
                self._display.update(self._renderable(), refresh=True)
        elif now - self._last_shown > self.plain_every:
            self._last_shown = now
            self.console.print(f"{self.title}: {self.line()}", highlight=False, soft_wrap=True)

    def line(self) -> str:
        """Return the state in one line."""
        parts = [self._progress_text()]
        parts += [f"{name} {self.values[key]:.1f}" for key, name in RETURNS.items() if key in self.values]
        parts += [f"{SHOWN[metric]} {text}" for metric in SHOWN if (text := self._text(metric))]
        return "  ".join([*parts, *list(self.events)[-1:]])

    def _progress_text(self) -> str:
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        speed = self.values.get("SPS") or (self._step - self._first_step) / elapsed
        return f"{self._step:,}/{self.total_steps:,}  {speed:.0f} steps/s"

    def _renderable(self) -> Group:
        self._progress.update(self._task, completed=self._step, line=self._progress_text())
        rows = [(name, f"{self.values[key]:.1f}", self._courses[key].course()) for key, name in RETURNS.items()
                if key in self._courses]  # fmt: skip
        rows += [(name, self._text(metric), self._courses[metric].course()) for metric, name in SHOWN.items()
                 if metric in self._courses]  # fmt: skip
        return Group(self._progress, panel(rows, self.events))

    def _text(self, metric: str) -> str:
        """Return the latest value of a plasticity metric as text; empty where there is none."""
        value = self._mean(metric)
        return "" if math.isnan(value) else f"{value:.1f}" if metric == "effective_rank" else f"{value:.1%}"

    def _mean(self, metric: str) -> float:
        return mean(list(self._networks.get(metric, {}).values()))

    def _course(self, key: str) -> History:
        return self._courses.setdefault(key, History())
