"""Several seeds of one training command: a process and a folder each, a live table, a retry after a crash."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live as LiveDisplay
from rich.table import Table

from plasticity.metrics import find_metric, headlines, shown_first
from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import RECORD, read_record
from plasticity.tags import EPISODIC_RETURN, EVAL_RETURN, SPEED

from .differences import NOTED, differences
from .imports import import_flags
from .run import CHECKPOINTS
from .seed import Seed, set_aside

POLL, PLAIN_EVERY = 0.5, 30.0
"""Seconds between two looks at the processes; between two printed states where there is no terminal."""


class Seeds:
    """Train ``config.seeds`` seeds of ``arguments``, at most ``config.jobs`` at once."""

    def __init__(self, agent: str, config: Any, arguments: Sequence[str], expected: Mapping[str, Any]) -> None:
        if config.jobs < 1 or config.retries < 0:
            raise ValueError(f"--jobs must be at least 1 and --retries at least 0, got {config.jobs}, {config.retries}")
        methods = [name.replace("_", "-") for name in expected["interventions"]]
        self.name = config.name or "_".join([agent, config.env.replace("/", "-"), *methods])
        self.agent, self.config, self.arguments, self.expected = agent, config, list(arguments), dict(expected)
        self.group = config.out / self.name
        numbers = range(config.seed, config.seed + config.seeds)
        self.seeds = [Seed(number, self.group / f"seed_{number}") for number in numbers]
        self.console = Console(stderr=True)

    def train(self) -> int:
        """Run every seed that is not finished; return 0 if all are, else 1 (130 after Ctrl-C, 143 after SIGTERM)."""
        for seed in self.seeds:
            self._claim(seed)
        self.group.mkdir(parents=True, exist_ok=True)
        with _signals() as received, self._display() as show:
            while any(seed.state in ("waiting", "running") for seed in self.seeds):
                if received:
                    self._stop(received[0])
                    break
                self._advance()
                show()
                time.sleep(POLL)
            show()
        self._summary()
        if received:
            return 128 + received[0]
        return 0 if all(seed.state in ("finished", "skipped") for seed in self.seeds) else 1

    def _claim(self, seed: Seed) -> None:
        """Skip a finished run of the same settings; refuse one of other settings."""
        if not (seed.folder / RECORD).is_file():
            return
        record = read_record(seed.folder)
        now = {**self.expected, "agent_name": self.agent, "seed": seed.number}
        saved = {**record["config"], "agent_name": record["agent"]}
        if different := differences(saved, now, {"out", "name", "quiet", "log", *NOTED}):
            raise ValueError(
                f"{seed.folder} was trained with other settings: {'; '.join(different)}; pass another --name"
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
        running = sum(seed.state == "running" for seed in self.seeds)
        for seed in self.seeds:
            if seed.state == "waiting" and running < self.config.jobs:
                self._start(seed)
                running += 1

    def _start(self, seed: Seed) -> None:
        seed.attempts += 1
        seed.state, seed.offset, seed.step = "running", 0, 0
        if Checkpoints(seed.folder / CHECKPOINTS).latest() is not None:
            command = ["--resume", str(seed.folder), "--env", self.config.env]  # typed by whoever started this
        else:
            set_aside(seed.folder)
            own = ["--seeds", "1", "--seed", str(seed.number), "--out", str(self.group), "--name", seed.folder.name]
            command = [self.agent, *self.arguments, *own]
        seed.log = seed.console.open("ab")
        seed.process = subprocess.Popen(
            [sys.executable, "-m", "plasticity", *import_flags(), "train", *command],
            stdin=subprocess.DEVNULL,
            stdout=seed.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )

    def _ended(self, seed: Seed, code: int) -> None:
        assert seed.log is not None
        seed.log.close()
        seed.process = None
        if code == 0:
            seed.state = "finished"
            return
        lines = seed.console.read_text(errors="replace").strip().splitlines()
        seed.error = f"exit code {code}: {lines[-1] if lines else 'no output'}"
        seed.state = "failed" if seed.attempts > self.config.retries else "waiting"

    def _stop(self, number: int) -> None:
        """Pass a signal on to every process and wait until they have saved."""
        running = [seed for seed in self.seeds if seed.process is not None]
        for seed in running:
            assert seed.process is not None
            seed.process.send_signal(number)
        for seed in running:
            assert seed.process is not None
            seed.process.wait()
        for seed in self.seeds:
            if seed.state in ("waiting", "running"):
                seed.state = "stopped"

    @contextmanager
    def _display(self) -> Iterator[Any]:
        """Give a function that shows the state: a live table in a terminal, a line now and then elsewhere."""
        if self.config.quiet:
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
                    parts = [f"seed {seed.number} {seed.state} {seed.step:,}" for seed in self.seeds]
                    self.console.print(f"{self.name}: " + "  ".join(parts), highlight=False, soft_wrap=True)

            yield lines

    def table(self) -> Table:
        """Return the state of all seeds, a row each."""
        table = Table(title=f"{self.name}: {self.config.steps:,} steps, {self.config.jobs} at once")
        measured = {seed.number: seed.metrics() for seed in self.seeds}
        shown = shown_first(name for metrics in measured.values() for name in metrics) or headlines()
        short = [find_metric(name).short for name in shown]
        for heading in ("seed", "state", "step", "steps/s", "return", "eval", *short, "last event"):
            table.add_column(heading, justify="left" if heading in ("state", "last event") else "right")
        for seed in self.seeds:
            state = f"{seed.state} ({seed.attempts})" if seed.attempts > 1 else seed.state
            charts = [seed.values.get(tag) for tag in (SPEED, EPISODIC_RETURN, EVAL_RETURN)]
            metrics = [find_metric(name).text(measured[seed.number].get(name, math.nan)) for name in shown]
            numbers = ["" if v is None else f"{v:.0f}" if i == 0 else f"{v:.1f}" for i, v in enumerate(charts)]
            last = seed.error if seed.state == "failed" else seed.last_event
            table.add_row(str(seed.number), state, f"{seed.step:,}", *numbers, *metrics, last)
        return table

    def _summary(self) -> None:
        """Print the end of each seed, and the next command."""
        for seed in self.seeds:
            if seed.state in ("finished", "skipped"):
                returns = read_record(seed.folder).get("eval_returns") or []
                end = f"return {sum(returns) / len(returns):.1f}" if returns else "no evaluation"
                seed_state = "finished before" if seed.state == "skipped" else "finished"
                print(f"seed {seed.number}: {seed_state}, {end}  {seed.folder}")
            else:
                print(f"seed {seed.number}: {seed.state}  {seed.error}  see {seed.console}".replace("   ", "  "))
        finished = sum(seed.state in ("finished", "skipped") for seed in self.seeds)
        if finished == len(self.seeds):
            print(f"compare with: plasticity compare {self.config.out}")
        else:
            print(f"{finished} of {len(self.seeds)} finished; the same command goes on with the rest")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list in place of dying from them."""
    received: list[int] = []
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
