"""The live view of a run: a small panel in place in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live as Display
from rich.progress import BarColumn, Progress, TextColumn

from plasticity.callback import Callback, Context, Writer
from plasticity.course import Course, finite_mean
from plasticity.metrics import find_metric, shown_first
from plasticity.tags import ALL, EPISODIC_RETURN, EVAL_RETURN, MEASURED, SPEED, UNMEASURED, parse_tag

from .pace import Pace
from .panel import panel

SHORT_TITLES = {EPISODIC_RETURN: "return", EVAL_RETURN: "eval"}
"""Tag -> its short name."""
NUM_EVENTS = 3


class LiveView(Callback, Writer):
    """Show how training goes: a ``with`` block that is a callback, for the clock, and a writer, for the numbers.

    Of plasticity metrics, the mean over the networks is shown. Without a terminal, plain lines appear now and then.
    """

    def __init__(self, total_steps: int, title: str, *, plain_every: float = 10.0, quiet: bool = False) -> None:
        self.total_steps, self.title, self.plain_every, self.quiet = total_steps, title, plain_every, quiet
        self.console = Console(stderr=True)
        self.values: dict[str, float] = {}
        self.events: deque[str] = deque(maxlen=NUM_EVENTS)
        self._networks: dict[str, dict[str, float]] = {}
        self._courses: dict[str, Course] = {}
        self._step = self._first_step = 0
        self._started = time.perf_counter()
        self._pace = Pace(total_steps)
        self._last_shown = -math.inf
        self._display: Display | None = None

    def __enter__(self) -> LiveView:
        self._started = time.perf_counter()
        if not self.quiet and self.console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}")]
            self._progress = Progress(*columns, console=self.console)
            self._task = self._progress.add_task(self.title, total=self.total_steps, line="")
            self._display = Display(self._renderable(), console=self.console, auto_refresh=False)
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, SystemExit):  # the terminal was closed
            if self._display is not None:
                self._display.update(self._renderable(), refresh=True)
                self._display.stop()
            elif not self.quiet and self._step:
                self.console.print(f"{self.title}: {self.line()}", highlight=False, soft_wrap=True)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Remember new values by tag."""
        measured = set()
        for tag, value in values.items():
            parts = parse_tag(tag)
            if parts is not None and parts.layer == ALL:
                self._networks.setdefault(parts.metric, {})[parts.network] = value
                measured.add(parts.metric)
            elif tag in SHORT_TITLES:
                self.values[tag] = value
                self._course(tag).add(value)
            elif tag == SPEED:
                self.values[tag] = value
        for metric in measured:
            self._course(metric).add(self._mean(metric))

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Remember the latest events, but not what says how the numbers were measured."""
        if name in (MEASURED, UNMEASURED):
            return
        self.events.append(f"{name} at {step:,}")

    def on_train_start(self, ctx: Context) -> None:
        """Count from the step a resumed run starts at."""
        self._first_step = self._step = ctx.step

    def on_update_start(self, ctx: Context) -> None:
        """Take the pace anew when the first update comes: the remaining time is that of learning."""
        if not self._pace.learns:
            self._pace.begin_learning(ctx.step, time.perf_counter())

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Show the state, four times a second in a terminal, now and then elsewhere."""
        self._step = ctx.step
        if self.quiet:
            return
        try:
            self._show()
        except (OSError, SystemExit):  # the terminal was closed; rich exits where a pipe is
            self.quiet, self._display = True, None

    def _show(self) -> None:
        now = time.perf_counter()
        self._pace.at(self._step, now)
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
        parts += [f"{name} {self.values[key]:.1f}" for key, name in SHORT_TITLES.items() if key in self.values]
        parts += [f"{name} {text}" for name, text, _ in self._metrics() if text]
        return "  ".join([*parts, *list(self.events)[-1:]])

    def _progress_text(self) -> str:
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        speed = self.values.get(SPEED) or (self._step - self._first_step) / elapsed
        left = self._pace.text(self._step, time.perf_counter())
        return f"{self._step:,}/{self.total_steps:,}  {speed:.0f} steps/s  {left}".rstrip()

    def _renderable(self) -> Group:
        self._progress.update(self._task, completed=self._step, line=self._progress_text())
        rows = [(name, f"{self.values[key]:.1f}", self._courses[key].course()) for key, name in SHORT_TITLES.items()
                if key in self._courses]  # fmt: skip
        return Group(self._progress, panel([*rows, *self._metrics()], self.events))

    def _metrics(self) -> list[tuple[str, str, list[float]]]:
        """Return (short name, latest value as text, course) of the metrics that are shown."""
        return [
            (find_metric(name).short, find_metric(name).text(self._mean(name)), self._courses[name].course())
            for name in shown_first(self._networks)
        ]

    def _mean(self, metric: str) -> float:
        return finite_mean(list(self._networks.get(metric, {}).values()))

    def _course(self, key: str) -> Course:
        return self._courses.setdefault(key, Course())
