"""Several training runs as processes: some at once, a live table, a retry after a crash, signals passed on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live as LiveDisplay
from rich.table import Table

from plasticity.dashboard.pace import Pace
from plasticity.storage.files import is_locked
from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import CHECKPOINTS, RECORD, read_record

from .differences import NOTED, differences
from .imports import import_flags
from .seed import Seed, set_aside
from .stopping import ENDING, own_group, pass_on

UNDER_WAY = ("waiting", "running", "elsewhere")
POLL, PLAIN_EVERY = 0.5, 30.0
"""Seconds between two looks at the processes; between two printed states where there is no terminal."""


class Fleet:
    """Train every run that is not finished, at most ``jobs`` at once; a subclass says which, and shows them."""

    ELSE = "--name"
    """Option that leads to other folders."""

    def __init__(self, name: str, runs: Sequence[Seed], jobs: int, retries: int, quiet: bool) -> None:
        if jobs < 1 or retries < 0:
            raise ValueError(f"--jobs must be at least 1 and --retries at least 0, got {jobs}, {retries}")
        self.name, self.seeds, self.jobs, self.retries, self.quiet = name, list(runs), jobs, retries, quiet
        self.console = Console(stderr=True)

    def command(self, seed: Seed) -> list[str]:
        """Return the arguments of ``plasticity train`` that begin a run."""
        raise NotImplementedError

    def environment(self, seed: Seed) -> str:
        """Return the environment of a run."""
        raise NotImplementedError

    def steps(self, seed: Seed) -> int:
        """Return the environment steps of a run."""
        raise NotImplementedError

    def table(self) -> Table:
        """Return the state of all runs."""
        raise NotImplementedError

    def state_line(self) -> str:
        """Return the state of all runs as a line, for output that is no terminal."""
        return "  ".join(f"seed {seed.number} {seed.state} {seed.step:,} {seed.left()}".rstrip() for seed in self.seeds)

    def run(self) -> int:
        """Train; return 0 if all are finished then, else 1 (130 after Ctrl-C, 143 after SIGTERM)."""
        with _signals() as received, self._display() as show:
            try:
                while any(seed.state in UNDER_WAY for seed in self.seeds):
                    if received:
                        self._stop(received[0])
                        break
                    self._advance()
                    show()
                    time.sleep(POLL)
                show()
            except BaseException:  # nobody would wait for what goes on
                self._stop(signal.SIGTERM)
                raise
        if received:
            return 128 + received[0]
        return 0 if all(seed.state in ("finished", "skipped") for seed in self.seeds) else 1

    def claim(self, seed: Seed, expected: Mapping[str, Any]) -> None:
        """Skip a finished run of the same settings; ValueError for one of other settings."""
        seed.expected = expected
        if not (seed.folder / RECORD).is_file():
            return
        record = read_record(seed.folder)
        saved = {**record["config"], "agent_name": record["agent"]}
        if different := differences(saved, expected, {"out", "name", "quiet", "log", "tag", *NOTED}):
            raise ValueError(
                f"{seed.folder} was trained with other settings: {'; '.join(different)}; pass another {self.ELSE}"
            )
        if record["status"] == "finished":
            seed.state = "skipped"
            seed.look()

    def _advance(self) -> None:
        """Look at the running processes, and start those that have a free place."""
        for seed in self.seeds:
            if seed.process is not None:
                seed.look()
                if (code := seed.process.poll()) is not None:
                    self._ended(seed, code)
            elif seed.state == "elsewhere":
                seed.look()
                seed.state = "elsewhere" if is_locked(seed.folder) else "waiting"
        running = sum(seed.state == "running" for seed in self.seeds)
        for seed in self.seeds:
            if seed.state == "waiting" and running < self.jobs:
                self._start(seed)
                running += seed.state == "running"

    def _start(self, seed: Seed) -> None:
        """Begin a run or go on with it, unless another command trains it, or has finished it meanwhile."""
        try:
            if is_locked(seed.folder):
                seed.state = "elsewhere"
                return
            self.claim(seed, seed.expected)
            if seed.state == "waiting":
                self._begin(seed)
        except (ValueError, OSError, RuntimeError) as error:
            seed.state, seed.error = "failed", str(error)

    def _begin(self, seed: Seed) -> None:
        if Checkpoints(seed.folder / CHECKPOINTS).latest() is not None:
            command = ["--resume", str(seed.folder), "--env", self.environment(seed)]  # typed by whoever started this
        else:
            set_aside(seed.folder)
            command = self.command(seed)
        seed.folder.parent.mkdir(parents=True, exist_ok=True)
        seed.log = seed.console.open("ab")
        seed.said = seed.console.stat().st_size
        seed.process = subprocess.Popen(
            [sys.executable, "-m", "plasticity", *import_flags(), "train", *command],
            stdin=subprocess.DEVNULL,
            stdout=seed.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **own_group(),
        )
        seed.attempts += 1
        seed.state, seed.offset, seed.step, seed.pace = "running", 0, 0, Pace(self.steps(seed))

    def _ended(self, seed: Seed, code: int) -> None:
        assert seed.log is not None
        seed.log.close()
        seed.process = None
        if code == 0 and _is_finished(seed.folder):  # a simulator may end the process with 0, too
            seed.state = "finished"
            return
        if is_locked(seed.folder):  # the other command was faster
            seed.state, seed.attempts = "elsewhere", seed.attempts - 1
            return
        seed.error = f"{_end(code)}: {seed.last_line() or 'no output'}"
        seed.state = "failed" if seed.attempts > self.retries else "waiting"

    def _stop(self, number: int) -> None:
        """Pass a signal on to every process and wait until they have saved."""
        running = [seed for seed in self.seeds if seed.process is not None]
        for seed in running:
            assert seed.process is not None
            pass_on(seed.process, number)
        for seed in running:
            assert seed.process is not None
            assert seed.log is not None
            seed.process.wait()
            seed.log.close()
        for seed in self.seeds:
            if seed.state in UNDER_WAY:
                seed.state = "stopped"

    @contextmanager
    def _display(self) -> Iterator[Any]:
        """Give a function that shows the state: a live table in a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield lambda: None
        elif self.console.is_terminal:
            with LiveDisplay(self.table(), console=self.console, auto_refresh=False) as display:
                yield lambda: display.update(self.table(), refresh=True)
        else:
            last, states = -math.inf, ""

            def lines() -> None:
                nonlocal last, states
                now = " ".join(seed.state for seed in self.seeds)
                if now != states or time.monotonic() - last > PLAIN_EVERY:
                    last, states = time.monotonic(), now
                    self.console.print(f"{self.name}: {self.state_line()}", highlight=False, soft_wrap=True)

            yield lines


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that end a run well in a list in place of dying from them."""
    received: list[int] = []
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in ENDING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_finished(folder: Path) -> bool:
    """Return whether a run says of itself that it is finished."""
    try:
        return read_record(folder)["status"] == "finished"
    except (OSError, ValueError):
        return False


def _end(code: int) -> str:
    """Return how a process ended, in words."""
    if code == 0:
        return "ended before the run was finished, exit code 0"
    if code > 0 or os.name == "nt":
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"killed by {name}{', maybe for want of memory' if name == 'SIGKILL' else ''}"
