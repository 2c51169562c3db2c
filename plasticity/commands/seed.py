"""One seed of several: its folder, its process, and the latest values in its files."""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from plasticity.dashboard.pace import Pace
from plasticity.storage.files import open_plain, require_free
from plasticity.storage.rows import METRICS_FILE, as_float, decode_row
from plasticity.tags import ALL, parse_tag


@dataclass
class Seed:
    """One seed: its folder, its process, and the latest values in its files."""

    number: int
    folder: Path
    state: str = "waiting"
    """waiting, running, elsewhere (trained by a process of another command), finished, skipped, failed or stopped."""
    attempts: int = 0
    error: str = ""
    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    last_event: str = ""
    process: subprocess.Popen[bytes] | None = None
    log: BinaryIO | None = None
    said: int = 0
    """Bytes of the console file before the present attempt."""
    offset: int = 0
    pace: Pace | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the run is to have."""

    @property
    def console(self) -> Path:
        """Return the file for the output of the process; it stands beside the folder, which the run makes itself."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def last_line(self) -> str:
        """Return the last line that the present attempt printed; empty without one."""
        lines = self.console.read_bytes()[self.said :].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def look(self) -> None:
        """Read the rows that were written since the last call."""
        try:
            with open_plain(self.folder / METRICS_FILE) as file:
                file.seek(self.offset)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self.offset += len(whole)
        for line in whole.splitlines():
            if (row := decode_row(line)) is None:
                continue
            self.step = max(self.step, int(row["step"]))
            self._take_time(row)
            if "event" in row:
                self.last_event = f"{row['event']} at {row['step']:,}"
            else:
                self.values |= {tag: v for tag, value in row.items() if (v := as_float(value)) is not None}

    def _take_time(self, row: Mapping[str, Any]) -> None:
        """Take in when a row was written; the first loss or measurement tells that the run learns."""
        if self.pace is None or (now := as_float(row.get("time"))) is None or not math.isfinite(now):
            return
        if "purge_step" in row:
            self.pace.pause()
        if any(tag.startswith(("losses/", "plasticity/")) for tag in row):
            self.pace.begin_learning(int(row["step"]), now)
        self.pace.at(int(row["step"]), now)

    def left(self) -> str:
        """Return the remaining time in words, of a seed that is being trained."""
        return self.pace.text(self.step, time.time()) if self.pace is not None and self.state == "running" else ""

    def metrics(self) -> dict[str, float]:
        """Return metric -> its latest value, averaged over the networks."""
        found: dict[str, list[float]] = {}
        for name, value in self.values.items():
            if (tag := parse_tag(name)) is not None and tag.layer == ALL:
                found.setdefault(tag.metric, []).append(value)
        return {metric: sum(values) / len(values) for metric, values in found.items()}


def set_aside(folder: Path) -> None:
    """Rename the folder of an unfinished run, so that nothing is lost and nothing is mixed.

    Raises RuntimeError where a process trains in it.
    """
    require_free(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.unfinished_{number}")).exists():
        number += 1
    folder.rename(aside)
