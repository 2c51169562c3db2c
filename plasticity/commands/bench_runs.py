"""The runs of ``plasticity bench``: every method on every stream of a suite, over seeds, and an agent for each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from plasticity.envs import TaskPlan, find_family
from plasticity.storage.files import file_name
from plasticity.tags import EPISODIC_RETURN

from .arguments import UsageError
from .bench import BenchConfig
from .bench_cells import Cell, place_of
from .bench_options import SAID_HERE
from .fleet import Fleet
from .method_names import NONE, ORACLE, meant, method_arguments, split_methods
from .parsing import parse
from .seed import Seed
from .settings import settings
from .suites import Suite
from .training import TrainingRun


class Bench(Fleet):
    """All runs of a suite; two commands on one folder share the work."""

    ELSE = "--out"

    def __init__(self, config: BenchConfig, suite: Suite, more: Sequence[str] = ()) -> None:
        self.config, self.suite, self.more = config, suite, list(more)
        self.given = TaskPlan(steps=config.task_steps, num=config.num_tasks)
        self.agent = config.agent or suite.agent
        self.envs, self.methods = config.envs or suite.envs, split_methods(config.methods)
        self.folder = config.out / config.suite
        if config.seeds < 1 or config.seed < 0:
            raise ValueError(f"--seeds is at least 1 and --seed at least 0, got {config.seeds} and {config.seed}")
        if unknown := set(self.envs) - set(suite.envs):
            raise ValueError(f"{config.suite} has no {', '.join(unknown)}; it has {', '.join(suite.envs)}")
        self.plans = {env: self.given.filled(find_family(env).tasks) for env in self.envs}
        """Stream -> length and number of its tasks."""
        self.cells = {self._folder(cell): cell for cell in self._all_cells()}
        runs = [Seed(cell.seed, folder) for folder, cell in self.cells.items()]
        super().__init__(config.suite, runs, config.jobs, config.retries, config.quiet)
        for env in self.plans:  # what is wrong for every method
            settings(parse(self.agent, self._arguments(Cell(env, NONE, config.seed, None))))
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
            raise UsageError(f"method {cell.method!r}: {error}{meant(cell.method, self.methods)}") from None

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
