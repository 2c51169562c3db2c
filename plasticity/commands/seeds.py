"""Several seeds of one training command: a process and a folder each, a live table, a retry after a crash."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from plasticity.metrics import find_metric, headlines, shown_first
from plasticity.storage.files import RunLock, file_name, require_free
from plasticity.storage.record import RECORD, read_record
from plasticity.tags import EPISODIC_RETURN, EVAL_RETURN, SPEED

from .fleet import Fleet
from .return_text import return_text
from .run import without_flags
from .seed import Seed


class Seeds(Fleet):
    """Train ``config.seeds`` seeds of ``arguments``, at most ``config.jobs`` at once."""

    def __init__(self, agent: str, config: Any, arguments: Sequence[str], expected: Mapping[str, Any]) -> None:
        methods = [name.replace("_", "-") for name in expected["interventions"]]
        name = config.name or "_".join([agent, file_name(config.env), *methods])
        self.agent, self.config, self.arguments, self.expected = agent, config, list(arguments), dict(expected)
        self.group = config.out / name
        numbers = range(config.seed, config.seed + config.seeds)
        runs = [Seed(number, self.group / f"seed_{number}") for number in numbers]
        super().__init__(name, runs, config.jobs, config.retries, config.quiet)

    def train(self) -> int:
        """Run every seed that is not finished; return 0 if all are, else 1 (130 after Ctrl-C, 143 after SIGTERM)."""
        if (self.group / RECORD).exists():
            raise ValueError(f"{self.group} is a run itself, and no folder for several; pass another --name")
        self.group.mkdir(parents=True, exist_ok=True)
        with RunLock(self.group):  # the same command a second time
            for seed in self.seeds:
                require_free(seed.folder)  # the process of a run lives on where its parent was killed
                self.claim(seed, {**self.expected, "agent_name": self.agent, "seed": seed.number})
            code = self.run()
        self._summary()
        return code

    def command(self, seed: Seed) -> list[str]:
        """Return the arguments that begin the run of a seed."""
        own = {"--seed": str(seed.number), "--out": str(self.group), "--name": seed.folder.name}
        shared = without_flags(self.arguments, {*own, "--seeds", "--jobs", "--retries"})
        return [self.agent, *shared, *(word for pair in own.items() for word in pair)]

    def environment(self, seed: Seed) -> str:
        """Return the environment, the same for all."""
        return self.config.env

    def steps(self, seed: Seed) -> int:
        """Return the environment steps, the same for all."""
        return self.config.steps

    def table(self) -> Table:
        """Return the state of all seeds, a row each."""
        table = Table(title=f"{self.name}: {self.config.steps:,} steps, {self.config.jobs} at once")
        measured = {seed.number: seed.metrics() for seed in self.seeds}
        shown = shown_first(name for metrics in measured.values() for name in metrics) or headlines()
        short = [find_metric(name).short for name in shown]
        for heading in ("seed", "state", "step", "left", "steps/s", "return", "eval", *short, "last event"):
            table.add_column(heading, justify="left" if heading in ("state", "last event") else "right")
        for seed in self.seeds:
            state = f"{seed.state} ({seed.attempts})" if seed.attempts > 1 else seed.state
            charts = [seed.values.get(tag) for tag in (SPEED, EPISODIC_RETURN, EVAL_RETURN)]
            metrics = [find_metric(name).text(measured[seed.number].get(name, math.nan)) for name in shown]
            numbers = ["" if v is None else f"{v:.0f}" if i == 0 else return_text(v) for i, v in enumerate(charts)]
            last = seed.error if seed.state == "failed" else seed.last_event
            table.add_row(
                str(seed.number), state, f"{seed.step:,}", seed.left().removesuffix(" left"), *numbers, *metrics, last
            )
        return table

    def _summary(self) -> None:
        """Print the end of each seed, and the next command."""
        for seed in self.seeds:
            if seed.state in ("finished", "skipped"):
                returns = read_record(seed.folder).get("eval_returns") or []
                end = f"return {return_text(sum(returns) / len(returns))}" if returns else "no evaluation"
                seed_state = "finished before" if seed.state == "skipped" else "finished"
                print(f"seed {seed.number}: {seed_state}, {end}  {seed.folder}")
            else:
                print(f"seed {seed.number}: {seed.state}  {seed.error}  see {seed.console}".replace("   ", "  "))
        finished = sum(seed.state in ("finished", "skipped") for seed in self.seeds)
        if finished == len(self.seeds):
            print(f"compare with: plasticity compare {self.config.out}")
        else:
            print(f"{finished} of {len(self.seeds)} finished; the same command goes on with the rest")
