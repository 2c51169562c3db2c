"""TensorBoard: scalars, histograms, texts, counts of events, settings, and a layout that grows with the tags."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from plasticity.dashboard import protos
from plasticity.dashboard.eventfile import EventFile
from plasticity.dashboard.layout import layout
from plasticity.storage.rows import METRICS_FILE, metric_tags, read_metrics
from plasticity.tags import RETURN_TITLES

from .files import FileWriter
from .records import count_nonfinite, dotted, told

_FILE = "TensorBoard event file"


class TensorBoardWriter(FileWriter):
    """Write an event file of TensorBoard; every event is handed to the system when it is logged.

    A resumed run takes the tags and the counts of events so far from ``metrics.jsonl`` in the same folder.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self._file = EventFile(self.folder)
        self._tags: set[str] = set()
        self._event_counts: Counter[str] = Counter()
        self._last_step = 0
        self._has_session = self._resumed = False

    def resume(self, step: int) -> None:
        """Make TensorBoard drop the events of earlier files from ``step`` on; take over tags and counts."""
        self._file.purge(step)
        self._last_step, self._resumed = step, True
        if (self.folder / METRICS_FILE).exists():
            rows = [row for row in read_metrics(self.folder) if row["step"] < step]
            # TensorBoard shows the last layout: that of a resumed run must have all tags from its start on.
            self._tags = set(metric_tags(rows))
            self._event_counts.update(row["event"] for row in rows if "event" in row)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and the tags to compare runs by, for the HParams tab; a resumed run has them already."""
        self._has_session = True
        if not self._resumed:
            flat = dotted(settings)
            self._write(0, [protos.experiment(flat, RETURN_TITLES)])
            self._write(0, [protos.session_start(flat)])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one summary of scalars; non-finite values too."""
        self._write(step, [protos.scalar(tag, number) for tag, number in self._numbers(values).items()])
        self._know(map(str, values))

    def histogram(self, step: int, tag: str, values: Any) -> None:
        """Write the distribution of the finite ``values``; the others are counted in ``<tag>/nonfinite``."""
        numbers = self._array(tag, values)
        if numbers is None:
            return
        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            self._write(step, [protos.histogram(tag, finite)])
        if nonfinite := count_nonfinite(tag, numbers):
            self._write(step, [protos.scalar(name, number) for name, number in nonfinite.items()])

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text for the Text tab."""
        self._write(step, [protos.text_summary(tag, markdown)])

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Write the scalar ``events/<name>``, which counts the events of this name, and their details as a text.

        A count, because TensorBoard draws a sample of the points and would lose single marks.
        """
        self._event_counts[name] += 1
        count = protos.scalar(f"events/{name}", self._event_counts[name])
        self._write(step, [count, protos.text_summary(f"events/{name}/details", told(details))])
        self._know([f"events/{name}"])

    def sync(self) -> None:
        """Wait until all events are on the disk itself."""
        self._attempt(_FILE, self._file.sync)

    def _end(self, succeeded: bool) -> None:
        """Write how the run ended, and close the file."""
        if self._has_session:
            self._write(self._last_step, [protos.session_end(succeeded)])
        self._attempt(_FILE, self._file.close)

    def _know(self, tags: Iterable[str]) -> None:
        """Write the layout again when a tag is new: TensorBoard shows the last one."""
        new = set(tags) - self._tags
        if new:
            self._tags |= new
            self._write(self._last_step, [protos.layout_summary(layout(self._tags))])

    def _write(self, step: int, values: list[Summary.Value]) -> None:
        self._last_step = max(self._last_step, int(step))
        event = Event(wall_time=time.time(), step=int(step), summary=Summary(value=values))
        self._attempt(_FILE, lambda: self._file.append(event))
