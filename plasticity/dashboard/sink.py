"""Where a run's numbers go: the run's files, with a TensorBoard layout that grows with the tags, and the live line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .layout import layout
from .live import Live
from .logger import RunLogger
from .runs import metric_tags, read_metrics


class Sink:
    """Write scalars, score histograms and events of one run to its folder; tell ``live`` what is new.

    ``purge_step``: of a resumed run, see :class:`~plasticity.dashboard.logger.RunLogger`.
    """

    def __init__(self, folder: Path | str, live: Live | None = None, purge_step: int | None = None) -> None:
        self.logger, self.live = RunLogger(folder, purge_step=purge_step), live
        # TensorBoard shows the last layout: that of a resumed run must have all tags from its start on.
        self._tags: set[str] = set() if purge_step is None else set(metric_tags(read_metrics(folder)))

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
