"""Where a run's numbers go: the run's files, with a TensorBoard layout that grows with the tags, and the live line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .layout import layout
from .live import Live
from .logger import RunLogger


class Sink:
    """Write scalars, score histograms and events of one run to its folder; tell ``live`` what is new."""

    def __init__(self, folder: Path | str, live: Live | None = None) -> None:
        self.logger, self.live = RunLogger(folder), live
        self._tags: set[str] = set()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars by tag."""
        self.logger.log(step, values)
        self._know(values)
        if self.live is not None:
            self.live.see(values)

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write the distribution of ``values``."""
        self.logger.histogram(step, tag, values)

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Mark something that was done."""
        self.logger.event(step, name, details)
        self._know([f"events/{name}"])
        if self.live is not None:
            self.live.mark(step, name)

    def close(self, *, succeeded: bool = True) -> None:
        """End the run's files."""
        self.logger.close(succeeded=succeeded)

    def _know(self, tags: Iterable[str]) -> None:
        """Write the layout again when a tag is new: TensorBoard shows the last one."""
        new = set(tags) - self._tags
        if new:
            self._tags |= new
            self.logger.layout(layout(self._tags))
