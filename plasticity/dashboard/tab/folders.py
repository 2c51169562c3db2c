"""The files of runs below the log directory, read as they grow: events, settings, scores of neurons."""

from __future__ import annotations

import base64
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from plasticity.storage.files import open_plain
from plasticity.storage.record import RECORD, read_record
from plasticity.storage.rows import METRICS_FILE, decode_row, find_runs, is_stepless
from plasticity.storage.scores import SCORES_FILE, decode_scores

from .tail import Tail

MAX_COLUMNS = 300
"""Measurements of a layer's neurons that are served, at equal distances, the last among them."""
SILENT = 120.0
"""Seconds without a row after which a run is no longer called live."""
ENDINGS = {
    "failed": "it failed; its last words are where it was started",
    "silent": f"it says that it runs, and has written nothing for {SILENT:.0f} seconds",
    "interrupted": "it was interrupted; plasticity train --resume goes on with it",
}
"""Status of a run that did not end well -> what is said of it."""
_HEAD = 1 << 19  # bytes of scores.jsonl that surely hold each layer's first row
_OPEN_RUNS = 4  # runs whose neurons stay in memory
_SEARCH_EVERY = 15.0  # seconds between two walks through the log directory
MAX_FAULTS = 100
LINKED = "a link leads out of the folder of the runs, or to itself: its settings and events are not read"
NO_EVENTS = f"it has a {METRICS_FILE}, and TensorBoard has found no numbers in it: log to tensorboard, too, or wait"
"""Reason of a folder that is not shown."""


class RunFolder:
    """The files of one run, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = Tail(folder / METRICS_FILE)
        self._events: list[dict[str, Any]] = []
        self._widths: dict[str, int] = {}
        self._head = 0
        self._record: tuple[float, dict[str, Any] | None] = (-1.0, None)
        self._damaged, self._stepless = 0, 0
        self.fault = ""
        """Reason why ``run.json`` cannot be read; empty where it can, or where there is none."""

    def record(self) -> dict[str, Any] | None:
        """Return the contents of ``run.json``, None where it is missing or cannot be read."""
        try:
            changed = (self.folder / RECORD).stat().st_mtime
            if changed != self._record[0]:
                self._record, self.fault = (changed, None), ""
                self._record = (changed, read_record(self.folder))
        except OSError:
            self._record, self.fault = (-1.0, None), ""
        except ValueError as error:  # damaged, or of a newer version: as good as none until it changes
            self.fault = str(error).replace(f"{self.folder}/", "")
        return self._record[1]

    def status(self, now: float) -> str:
        """Return ``live``, ``silent`` (it says that it runs, but writes nothing), or how it ended."""
        try:
            writes = now - (self.folder / METRICS_FILE).stat().st_mtime < SILENT
        except OSError:
            writes = False
        said = (self.record() or {}).get("status", "running" if writes else "")
        return ("live" if writes else "silent") if said == "running" else str(said)

    def stamp(self) -> tuple[int, int]:
        """Return numbers that change when the files do."""
        return _size(self.folder / METRICS_FILE), min(_size(self.folder / SCORES_FILE), _HEAD)

    def events(self) -> list[dict[str, Any]]:
        """Return all events so far as rows; those that a resumed run repeats only once."""
        again, lines = self._rows.fresh()
        if again:
            self._events, self._damaged, self._stepless = [], 0, 0
        for line in lines:
            self._count_faults(line)
            # Most rows hold numbers: to look for the word is ten times as fast as to parse them.
            if (b'"event"' in line or b'"purge_step"' in line) and (row := decode_row(line)) is not None:
                if "purge_step" in row:
                    self._events = [e for e in self._events if e["step"] < row["purge_step"]]
                elif "event" in row:
                    self._events.append(row)
        return self._events

    def faults(self, now: float) -> list[str]:
        """Return what is wrong with the run, a sentence each: its record, its rows, its end."""
        self.events()
        found = [self.fault] if self.record() is None and self.fault else []
        counts = {"that cannot be read": self._damaged, "without a step": self._stepless}
        found += [f"left out of {METRICS_FILE}: {n} line{'s' * (n > 1)} {why}" for why, n in counts.items() if n]
        if (status := self.status(now)) in ENDINGS:
            found.append(ENDINGS[status])
        return found

    def _count_faults(self, line: bytes) -> None:
        """Count a line that is no row; by its ends, for to parse all lines is ten times as slow."""
        if line.strip() and not (line.startswith(b"{") and line.endswith(b"}") and line.isascii()):
            self._damaged += decode_row(line) is None
        elif b'"step"' not in line and is_stepless(line):
            self._stepless += 1

    def widths(self) -> dict[str, int]:
        """Return ``network/layer`` -> number of neurons, for layers with scores."""
        size = min(_size(self.folder / SCORES_FILE), _HEAD)
        if size != self._head:
            with open_plain(self.folder / SCORES_FILE) as file:
                rows = [row for line in file.read(size).splitlines() if (row := decode_scores(line)) is not None]
            self._widths = {f"{r['network']}/{r['layer']}": r["neurons"] for r in rows if "neurons" in r}
            self._head = size
        return self._widths


class Neurons:
    """The scores of one run's neurons, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self._tail = Tail(folder / SCORES_FILE)
        self.layers: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        """(network, probe, layer) -> rows of ``scores.jsonl``."""

    def refresh(self) -> None:
        """Read the rows that were added since the last call."""
        again, lines = self._tail.fresh()
        if again:
            self.layers.clear()
        for row in filter(None, map(decode_scores, lines)):
            if "purge_step" in row:
                for key, rows in self.layers.items():
                    self.layers[key] = [r for r in rows if r["step"] < row["purge_step"]]
            elif "codes" in row:
                self.layers.setdefault((row["network"], row["probe"], row["layer"]), []).append(row)

    def map(self, network: str, layer: str, probe: str = "") -> dict[str, Any]:
        """Return the layer's neuron map: steps, neurons kept and their codes, one base64 string of (steps, kept).

        ``probe``: the first that scored the layer, where it is none of them. Rows of another width (a layer that was
        replaced) than the last are left out.
        """
        probes = sorted(key[1] for key in self.layers if key[::2] == (network, layer))
        if not probes:
            return {"network": network, "layer": layer, "probes": [], "steps": [], "neurons": 0, "kept": 0, "codes": ""}
        probe = probe if probe in probes else probes[0]
        rows = self.layers[network, probe, layer]
        rows = [row for row in rows if row["neurons"] == rows[-1]["neurons"]]
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), MAX_COLUMNS)).round().astype(int)]
        codes = [base64.b64decode(row["codes"]) for row in rows]
        return {
            "network": network,
            "layer": layer,
            "probe": probe,
            "probes": probes,
            "steps": [row["step"] for row in rows],
            "neurons": rows[-1]["neurons"],
            "kept": len(codes[-1]),
            "codes": base64.b64encode(b"".join(codes)).decode(),
        }


class Folders:
    """The run folders below ``logdir``; a name that leads out of it, also through a link, has none."""

    def __init__(self, logdir: str) -> None:
        self.root = Path(logdir).resolve() if logdir else None
        self._runs: dict[str, RunFolder] = {}
        self._neurons: OrderedDict[str, Neurons] = OrderedDict()
        self._searched, self._unlisted = -math.inf, list[str]()
        self.lock = threading.Lock()

    def get(self, run: str) -> RunFolder | None:
        """Return the folder of a run; None where there is none."""
        if run not in self._runs and (folder := self._inside(run)) is not None:
            self._runs[run] = RunFolder(folder)
        return self._runs.get(run)

    def faults(self, runs: Iterable[str], now: float) -> list[dict[str, str]]:
        """Return ``run`` and ``reason`` of all that is wrong with ``runs``, and of folders that are none of them.

        ``runs`` are those that TensorBoard lists; a folder with rows that is missing among them has no event file.
        """
        listed = set(runs)
        found = [(run, reason) for run in sorted(listed) if (own := self.get(run)) for reason in own.faults(now)]
        if self.root is not None and now - self._searched > _SEARCH_EVERY:
            self._searched, self._unlisted = now, [_name(self.root, run) for run in find_runs(self.root)]
        found += [(run, LINKED) for run in sorted(listed) if self.root is not None and self.get(run) is None]
        found += [(run, NO_EVENTS) for run in self._unlisted if run not in listed]
        return [{"run": run, "reason": reason} for run, reason in found[:MAX_FAULTS]]

    def neurons(self, run: str) -> Neurons | None:
        """Return the neurons of a run, up to date; None where there is no folder."""
        folder = self.get(run)
        if folder is None:
            return None
        found = self._neurons.pop(run, None) or Neurons(folder.folder)
        found.refresh()
        self._neurons[run] = found
        while len(self._neurons) > _OPEN_RUNS:
            self._neurons.popitem(last=False)
        return found

    def _inside(self, run: str) -> Path | None:
        if self.root is None or "\0" in run:
            return None
        try:
            folder = (self.root / run).resolve()
            files = [(folder / name).resolve() for name in (RECORD, METRICS_FILE, SCORES_FILE)]
        except (OSError, RuntimeError):  # a link to itself
            return None
        inside = all(path.is_relative_to(self.root) for path in (folder, *files))
        return folder if inside and folder.is_dir() else None


def _name(root: Path, folder: Path) -> str:
    """Return the name that TensorBoard gives to the run in a folder, as text that any page can show."""
    return folder.relative_to(root).as_posix().encode(errors="replace").decode()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
