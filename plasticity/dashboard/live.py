"""The live line of a run: progress, speed, return and plasticity, in place in a terminal, as plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from plasticity.callback import Callback, Context

SHOWN = {"dormancy": "dormant", "grama": "GraMa", "effective_rank": "rank"}
"""Metric -> its short name; the mean over the networks of the run is shown."""


class Live(Callback):
    """Show how training goes, as ``with`` block and callback; without a terminal, plain lines now and then."""

    def __init__(self, total_steps: int, title: str, *, plain_every: float = 10.0, quiet: bool = False) -> None:
        self.total_steps, self.title, self.plain_every, self.quiet = total_steps, title, plain_every, quiet
        self.console = Console(stderr=True)
        self.values: dict[str, float] = {}
        self.last_event = ""
        self._networks: dict[str, dict[str, float]] = {}
        self._step = 0
        self._last_line = -math.inf
        self._progress: Progress | None = None

    def __enter__(self) -> Live:
        self._started = time.perf_counter()
        if not self.quiet and self.console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(bar_width=16), TextColumn("{task.fields[line]}")]
            self._progress = Progress(*columns, TimeRemainingColumn(), console=self.console, refresh_per_second=4)
            self._task = self._progress.add_task(self.title, total=self.total_steps, line="")
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._step, line=self.line())
            self._progress.stop()
        elif not self.quiet and self._step:
            self.console.print(f"{self.title}: {self.line()}", highlight=False, soft_wrap=True)

    def see(self, values: Mapping[str, float]) -> None:
        """Remember new values by tag."""
        for tag, value in values.items():
            parts = tag.split("/")
            if tag.startswith("charts/"):
                self.values[parts[1]] = value
            elif tag.startswith("plasticity/") and parts[-1] == "all" and parts[2] in SHOWN:
                self._networks.setdefault(parts[2], {})[parts[1]] = value

    def mark(self, step: int, event: str) -> None:
        """Remember the latest event."""
        self.last_event = f"{event} at {step:,}"

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Move on; a plain line only now and then."""
        self._step = ctx.step
        if self.quiet:
            return
        if self._progress is not None:
            if ctx.step % 50 < len(transition.reward):
                self._progress.update(self._task, completed=ctx.step, line=self.line())
        elif time.perf_counter() - self._last_line > self.plain_every:
            self._last_line = time.perf_counter()
            self.console.print(f"{self.title}: {self.line()}", highlight=False, soft_wrap=True)

    def line(self) -> str:
        """Return the state in one line."""
        speed = self.values.get("SPS") or self._step / max(time.perf_counter() - self._started, 1e-9)
        parts = [f"{self._step:,}/{self.total_steps:,}", f"{speed:.0f} steps/s"]
        if "episodic_return" in self.values:
            parts.append(f"return {self.values['episodic_return']:.1f}")
        if "eval_return" in self.values:
            parts.append(f"eval {self.values['eval_return']:.1f}")
        for metric, short in SHOWN.items():
            numbers = [v for v in self._networks.get(metric, {}).values() if not math.isnan(v)]
            if numbers:
                mean = sum(numbers) / len(numbers)
                parts.append(f"{short} {mean:.1f}" if metric == "effective_rank" else f"{short} {mean:.1%}")
        if self.last_event:
            parts.append(self.last_event)
        return "  ".join(parts)
