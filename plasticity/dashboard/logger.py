"""Write one run: TensorBoard events for the eyes, ``metrics.jsonl`` for programs, the same rows in both."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from plasticity.dashboard import protos
from plasticity.dashboard.appendfile import AppendFile
from plasticity.dashboard.eventfile import EventFile
from plasticity.dashboard.neurons import SCORES, NeuronFile, split
from plasticity.dashboard.runs import METRICS, RESERVED, encode_row, read_metrics

_logger = logging.getLogger(__name__)
_ROWS, _EVENTS, _VALUES = METRICS, "TensorBoard event file", "value"


class RunLogger:
    """Write metrics, histograms, texts and intervention marks of one run into ``folder``, which is made if missing.

    Only the constructor raises (OSError: the folder cannot be written). Later, what cannot be written is dropped and
    counted in ``dropped``, and the first drop of a kind is reported through ``logging``: training goes on.
    Every row is handed to the system when it is logged, so a killed run loses none. ``purge_step`` is for a resumed
    run: readers then forget the rows of that step and later ones that were written before.
    """

    def __init__(self, folder: Path | str, *, purge_step: int | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.dropped: Counter[str] = Counter()
        self._event_counts: Counter[str] = Counter()
        self._rows = self._open_rows(purge_step)
        try:
            self._events = EventFile(self.folder, purge_step)
            self._neurons = NeuronFile(self.folder, purge_step)
        except OSError:
            self._rows.close()
            raise
        self._last_step = purge_step or 0
        self._has_session = purge_step is not None  # what is resumed has written its settings
        self._closed = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row of scalars at environment step ``step``: one TensorBoard summary, one line of JSON.

        A non-finite value is itself in TensorBoard and ``null`` in JSON.
        """
        now, numbers = time.time(), self._numbers(values)
        self._write_row(step, now, numbers)
        self._write_event(step, now, [protos.scalar(tag, number) for tag, number in numbers.items()])

    def histogram(self, step: int, tag: str, values: Sequence[float] | NDArray[Any]) -> None:
        """Write the distribution of ``values``; non-finite ones are left out and counted in ``<tag>/nonfinite``.

        Under ``scores/<network>/<probe>/<layer>`` they are the scores of a layer's neurons, one each, and also go to
        ``scores.jsonl``.
        """
        try:
            everything = np.asarray(values, dtype=np.float64).ravel()
            finite = everything[np.isfinite(everything)]
            summary = [protos.histogram(tag, finite)] if finite.size else []
        except (TypeError, ValueError, RuntimeError) as error:
            self._drop(_VALUES, f"histogram {tag}: {error}")
            return
        if summary:
            self._write_event(step, time.time(), summary)
        if everything.size and split(tag) is not None:
            self._attempt(SCORES, lambda: self._neurons.append(step, tag, everything))
        if finite.size < everything.size:
            self.log(step, {f"{tag}/nonfinite": float(everything.size - finite.size)})

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Write a text for TensorBoard's Text tab."""
        self._write_event(step, time.time(), [protos.text(tag, markdown)])

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Mark an intervention: a row with ``details``, and the scalar ``events/<name>``, which counts them all.

        A count, because TensorBoard draws a sample of the points and would lose single marks.
        """
        now = time.time()
        self._event_counts[name] += 1
        self._write_row(step, now, details, event=name)
        self._write_event(step, now, [protos.scalar(f"events/{name}", self._event_counts[name])])

    def hparams(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write the settings of the run, and the tags to compare runs by, for the HParams tab; call it once, first."""
        self._has_session = True
        now = time.time()
        self._write_event(0, now, [protos.experiment(config, metrics)])
        self._write_event(0, now, [protos.session_start(config)])

    def layout(self, custom_scalars_layout: Layout) -> None:
        """Write the layout of the Custom Scalars tab; the last one written counts."""
        self._write_event(self._last_step, time.time(), [protos.layout(custom_scalars_layout)])

    def flush(self) -> None:
        """Wait until everything is on the disk itself, safe from a power cut: takes milliseconds, not for every row."""
        self._attempt(_ROWS, self._rows.sync)
        self._attempt(_EVENTS, self._events.sync)
        self._attempt(SCORES, self._neurons.sync)

    def close(self, *, succeeded: bool = True) -> None:
        """End the run and say how much was dropped, if anything; more than once is fine."""
        if self._closed:
            return
        if self._has_session:
            self._write_event(self._last_step, time.time(), [protos.session_end(succeeded)])
        self._closed = True
        self._attempt(_ROWS, self._rows.close)
        self._attempt(_EVENTS, self._events.close)
        self._attempt(SCORES, self._neurons.close)
        if self.dropped:
            counts = ", ".join(f"{count} x {kind}" for kind, count in self.dropped.items())
            _logger.warning("%s: could not be written: %s", self.folder, counts)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(succeeded=kind is None)

    def _open_rows(self, purge_step: int | None) -> AppendFile:
        """Open ``metrics.jsonl``, go on after what an earlier part of the run left, and count its events."""
        path = self.folder / METRICS
        rows = AppendFile(path)
        if not path.stat().st_size:
            return rows
        if not path.read_bytes().endswith(b"\n"):
            self._attempt(_ROWS, lambda: rows.append(b"\n"))
        if purge_step is not None:
            mark = {"step": purge_step, "time": time.time(), "purge_step": purge_step}
            self._attempt(_ROWS, lambda: rows.append(encode_row(mark)))
        self._event_counts.update(row["event"] for row in read_metrics(self.folder) if "event" in row)
        return rows

    def _numbers(self, values: Mapping[str, float]) -> dict[str, float]:
        numbers = {}
        for tag, value in values.items():
            try:
                numbers[str(tag)] = float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                self._drop(_VALUES, f"{tag}: {error}")
        return numbers

    def _write_row(self, step: int, now: float, values: Mapping[str, Any], **marks: Any) -> None:
        row = {"step": int(step), "time": now, **marks}
        row.update((key, value) for key, value in values.items() if key not in RESERVED)
        for key in values.keys() & set(RESERVED):
            self._drop(_VALUES, f"the name {key!r} is taken by every row of {METRICS}")
        self._attempt(_ROWS, lambda: self._rows.append(encode_row(row)))

    def _write_event(self, step: int, now: float, values: list[Summary.Value]) -> None:
        self._last_step = max(self._last_step, int(step))
        event = Event(wall_time=now, step=int(step), summary=Summary(value=values))
        self._attempt(_EVENTS, lambda: self._events.append(event))

    def _attempt(self, kind: str, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, ValueError, TypeError) as error:
            self._drop(kind, str(error))

    def _drop(self, kind: str, reason: str) -> None:
        self.dropped[kind] += 1
        if self.dropped[kind] == 1:
            _logger.warning("%s: %s not written (%s); training goes on, more are counted", self.folder, kind, reason)
