"""``plasticity bench``: methods on the streams of a suite, beside agents that are fresh in every task."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from plasticity.envs import TaskPlan, find_family
from plasticity.storage.files import file_name
from plasticity.tags import EPISODIC_RETURN

from .arguments import UsageError, read_arguments
from .bench_cells import Cell, place_of
from .bench_page import write_page
from .bench_report import BenchReport
from .contents import nearest
from .fleet import Fleet
from .method_names import ORACLE, meant, method_arguments, split_methods
from .parsing import parse
from .seed import Seed
from .settings import settings
from .suites import SUITES, Suite
from .training import TrainingRun

SAID_HERE = (
    "agent", "config", "dry-run", "env", "first-task", "help", "jobs", "like", "name", "num-tasks", "out", "resume",
    "retries", "seed", "seeds", "steps", "task-seed", "task-steps",
)  # fmt: skip
"""Options of ``plasticity train`` that the bench gives to every run."""


@dataclass(frozen=True)
class BenchConfig:
    """Train every method on every stream of a suite, over seeds, and print the numbers of the protocol.

    A method is none; oracle, an agent that is fresh in every task; a name such as redo or l2-init, with options after
    a colon: l2-init:coef=0.001,norms=False; an option of the agent such as norm=layer or optimizer=trac; or several
    of these joined by plus signs. What is finished is skipped, so the same command goes on where it was stopped.
    Options of plasticity train for every run follow after two hyphens: ... --seeds 3 -- --lr 0.0001.
    """

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite: cgym, cgym-short, slippery, permute, cminatar, cdmc, supervised."""
    methods: str = "none,oracle"
    """Methods, separated by commas (an option after a comma belongs to the method before it that has such a one)."""
    envs: tuple[str, ...] = ()
    """Streams of the suite to train on; default: all."""
    agent: str | None = None
    """Agent in place of that of the suite, without the settings of the suite."""
    seeds: int = 5
    """Seeds, from --seed on; three at least for intervals that mean something."""
    seed: int = 1
    """First seed."""
    jobs: int = 1
    """Processes at once."""
    retries: int = 1
    """Times that a run is started again after a crash."""
    task_steps: int | None = None
    """Environment steps of a task; None: those of the stream."""
    num_tasks: int | None = None
    """Tasks; None: those of the stream."""
    out: Path = Path("runs/bench")
    """Folder of the runs and of the tables."""
    quiet: bool = False
    """Show nothing while training."""
    page: Path | None = None
    """Train nothing: write the page of the suite, of all runs that there are, with its pictures to this folder."""


def main(arguments: Sequence[str]) -> int:
    """Train what is not finished; print and write the tables of what is."""
    own, more = list(arguments), []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    config = read_arguments(BenchConfig, "bench", own)
    if config.page is not None:
        return write_page(config.suite, find_suite(config.suite), config.out / config.suite, config.page)
    bench = Bench(config, find_suite(config.suite), more)
    bench.require_trainable()
    code = bench.run()
    for seed in bench.seeds:
        if seed.state == "failed":
            print(f"{seed.folder}: failed, {seed.error}; see {seed.console}", file=sys.stderr)
    BenchReport(bench.suite, bench.folder, bench.plans, bench.finished()).write()
    return code


def find_suite(name: str) -> Suite:
    """Return a suite; ValueError, with the nearest name, if there is none."""
    if name not in SUITES:
        raise ValueError(f"no suite {name!r}; {nearest(name, SUITES)}there are {', '.join(SUITES)}")
    return SUITES[name]


class Bench(Fleet):
    """All runs of a suite; two commands on one folder share the work."""

    ELSE = "--out"

    def __init__(self, config: BenchConfig, suite: Suite, more: Sequence[str] = ()) -> None:
        self.config, self.suite, self.more = config, suite, list(more)
        self.given = TaskPlan(steps=config.task_steps, num=config.num_tasks)
        self.agent = config.agent or suite.agent
        self.envs, self.methods = config.envs or suite.envs, split_methods(config.methods)
        self.folder = config.out / config.suite
        if config.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {config.seeds}")
        if unknown := set(self.envs) - set(suite.envs):
            raise ValueError(f"{config.suite} has no {', '.join(unknown)}; it has {', '.join(suite.envs)}")
        self.plans = {env: self.given.filled(find_family(env).tasks) for env in self.envs}
        """Stream -> length and number of its tasks."""
        self.cells = {self._folder(cell): cell for cell in self._all_cells()}
        runs = [Seed(cell.seed, folder) for folder, cell in self.cells.items()]
        super().__init__(config.suite, runs, config.jobs, config.retries, config.quiet)
        parsed: dict[tuple[str, str], Any] = {}
        for run in runs:  # a method that does not exist fails here, before anything is trained
            cell = self.cells[run.folder]
            key = cell.env, cell.method
            parsed[key] = parsed.get(key) or self._settings(cell)
            own = {"seed": self._run_seed(cell), "task_seed": cell.seed, "first_task": cell.task or 0}
            self.claim(run, {**parsed[key], "agent_name": self.agent, **own})

    def _settings(self, cell: Cell) -> dict[str, Any]:
        """Return the settings of a cell; UsageError for options that nothing has."""
        try:
            return settings(parse(self.agent, self._arguments(cell)))
        except UsageError as error:
            raise UsageError(f"{error}{meant(cell.method, self.methods)}") from None

    def require_trainable(self) -> None:
        """Make the environment and the agent of every stream that is to be trained; raise what making them raises."""
        waiting = {cell.env: cell for s in self.seeds for cell in [self.cells[s.folder]] if s.state == "waiting"}
        for cell in waiting.values():
            TrainingRun(self.agent, parse(self.agent, self._arguments(cell))).env.close()

    def _all_cells(self) -> Iterator[Cell]:
        for seed in range(self.config.seed, self.config.seed + self.config.seeds):  # all methods of one seed first
            for env in self.envs:
                for method in self.methods:
                    tasks = range(self.plans[env].num or 0) if method == ORACLE else [None]
                    yield from (Cell(env, method, seed, task) for task in tasks)

    def finished(self) -> dict[Path, Cell]:
        """Return the runs that are finished."""
        return {s.folder: self.cells[s.folder] for s in self.seeds if s.state in ("finished", "skipped")}

    def _folder(self, cell: Cell) -> Path:
        place = self.folder / file_name(cell.env) / place_of(cell.method)
        return place / f"seed_{cell.seed}" if cell.task is None else place / f"seed_{cell.seed}_task_{cell.task}"

    def _run_seed(self, cell: Cell) -> int:
        return cell.seed if cell.task is None else 1000 * cell.seed + cell.task

    def _arguments(self, cell: Cell) -> list[str]:
        """Return the options of the run of a cell, without its place."""
        alone = [] if cell.task is None else ["--first-task", str(cell.task)]
        steps, num = self.plans[cell.env].steps or 0, (self.plans[cell.env].num or 0) if cell.task is None else 1
        common = ["--env", cell.env, "--steps", str(num * steps), "--task-steps", str(steps)]
        common += ["--num-tasks", str(num), *alone, "--task-seed", str(cell.seed), "--eval-every", "0"]
        common += ["--eval-episodes", "1", "--seed", str(self._run_seed(cell)), "--log"]
        own = "" if self.config.agent else self.suite.arguments
        given = [*self.more, *method_arguments(cell.method)]
        flags = [word.partition("=")[0] for word in given if word.startswith("--")]
        if taken := [flag for flag in flags if flag.removeprefix("--").replace("_", "-") in SAID_HERE]:
            raise ValueError(f"{', '.join(taken)}: the bench says this for every run; see plasticity bench --help")
        return [*common, *own.split(), *given]

    def command(self, seed: Seed) -> list[str]:
        """Return the arguments that begin a run."""
        place = ["--out", str(seed.folder.parent), "--name", seed.folder.name, "--quiet"]
        return [self.agent, *self._arguments(self.cells[seed.folder]), *place]

    def environment(self, seed: Seed) -> str:
        """Return the stream of a run."""
        return self.cells[seed.folder].env

    def steps(self, seed: Seed) -> int:
        """Return the environment steps of a run: of all tasks, or of one."""
        cell = self.cells[seed.folder]
        plan = self.plans[cell.env]
        return (plan.steps or 0) * ((plan.num or 0) if cell.task is None else 1)

    def state_line(self) -> str:
        """Return how many runs are in each state."""
        states = [seed.state for seed in self.seeds]
        return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))

    def table(self) -> Table:
        """Return a row for every method on every stream: runs done, steps of those under way, latest return."""
        table = Table(title=f"{self.name}: {len(self.seeds)} runs, {self.config.jobs} at once")
        for heading in ("stream", "method", "done", "steps", "return", ""):
            table.add_column(heading, justify="left" if heading in ("stream", "method", "") else "right")
        groups: dict[tuple[str, str], list[Seed]] = {}
        for seed in self.seeds:
            cell = self.cells[seed.folder]
            groups.setdefault((cell.env, cell.method), []).append(seed)
        for (env, method), seeds in groups.items():
            done = sum(seed.state in ("finished", "skipped") for seed in seeds)
            begun = [(seed.step, seed.left() if seed.state == "running" else seed.state) for seed in seeds
                     if seed.state in ("running", "elsewhere", "stopped") and seed.step]  # fmt: skip
            steps = ", ".join(f"{step:,} {more}".rstrip() for step, more in begun)
            returns = [value for seed in seeds if (value := seed.values.get(EPISODIC_RETURN)) is not None]
            latest = f"{np.mean(returns):.1f}" if returns else ""
            failed = "; ".join(dict.fromkeys(seed.error for seed in seeds if seed.state == "failed"))
            table.add_row(env, method, f"{done} of {len(seeds)}", steps, latest, failed)
        return table
