"""Where a run's numbers go: the run's files, with a TensorBoard layout that grows with the tags, and the live line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from plasticity.callback import Context

from .layout import layout
from .live import Live
from .logger import RunLogger


class Sink:
    """Write scalars, score histograms and events of one run to its folder; tell ``live`` what is new."""

    def __init__(self, folder: Path | str, live: Live | None = None, step: Callable[[], int] = lambda: 0) -> None:
        self.logger, self.live, self.step = RunLogger(folder), live, step
        self._tags: set[str] = set()

    def lend(self, ctx: Context) -> Context:
        """Connect a context, so that what callbacks log lands here, at the context's step."""
        self.step = lambda: ctx.step
        ctx.log, ctx.histogram, ctx.event = self.log, self.histogram, self.event
        return ctx

    def log(self, values: Mapping[str, float]) -> None:
        """Write scalars by tag."""
        self.logger.log(self.step(), values)
        self._know(values)
        if self.live is not None:
            self.live.see(values)

    def histogram(self, tag: str, values: Tensor) -> None:
        """Write the distribution of ``values``."""
        self.logger.histogram(self.step(), tag, values.detach().cpu().numpy())

    def event(self, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done."""
        self.logger.event(self.step(), name, details)
        self._know([f"events/{name}"])
        if self.live is not None:
            self.live.mark(name)

    def close(self, succeeded: bool = True) -> None:
        """End the run's files."""
        self.logger.close(succeeded=succeeded)

    def _know(self, tags: Any) -> None:
        """Write the layout again when a tag is new: TensorBoard shows the last one."""
        new = set(tags) - self._tags
        if new:
            self._tags |= new
            self.logger.layout(layout(self._tags))
