"""``plasticity bench``: methods on the streams of a suite, beside agents that are fresh in every task."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.table import Table

from plasticity.storage.files import file_name, write_atomically
from plasticity.tags import EPISODIC_RETURN, SPEED

from .arguments import read_arguments
from .contents import nearest
from .fleet import Fleet
from .method_names import ORACLE, method_arguments, published_name, split_methods
from .parsing import parse
from .random_actions import random_returns
from .seed import Seed
from .settings import settings
from .suites import SUITES, Suite


@dataclass(frozen=True)
class BenchConfig:
    """Train every method on every stream of a suite, over seeds, and print the numbers of the protocol.

    A method is none; oracle, an agent that is fresh in every task; a name such as redo or l2-init, with options after
    a colon: l2-init:strength=0.001,norms=False; an option of the agent such as norm=layer or optimizer=trac; or several
    of these joined by plus signs. What is finished is skipped, so the same command goes on where it was stopped.
    Options of plasticity train for every run follow after two hyphens: ... --seeds 3 -- --lr 0.0001.
    """

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite: cgym, cgym-short, slippery, cminatar, cdmc."""
    methods: str = "none,oracle"
    """Methods, separated by commas (those within the options of a method are its own)."""
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
    """Environment steps of a task; None: those of the suite."""
    num_tasks: int | None = None
    """Tasks; None: those of the suite."""
    out: Path = Path("runs/bench")
    """Folder of the runs and of the tables."""
    quiet: bool = False
    """Show nothing while training."""


def main(arguments: Sequence[str]) -> int:
    """Train what is not finished; print and write the tables of what is."""
    own, more = list(arguments), []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    config = read_arguments(BenchConfig, "bench", own)
    bench = Bench(config, find_suite(config.suite), more)
    code = bench.run()
    bench.report()
    return code


def find_suite(name: str) -> Suite:
    """Return a suite; ValueError, with the nearest name, if there is none."""
    if name not in SUITES:
        raise ValueError(f"no suite {name!r}; {nearest(name, SUITES)}there are {', '.join(SUITES)}")
    return SUITES[name]


@dataclass(frozen=True)
class Cell:
    """A run of the benchmark."""

    env: str
    method: str
    seed: int
    task: int | None
    """Of an oracle's run: the only task; None: all of them."""


class Bench(Fleet):
    """All runs of a suite."""

    def __init__(self, config: BenchConfig, suite: Suite, more: Sequence[str] = ()) -> None:
        self.config, self.suite, self.more = config, suite, list(more)
        self.task_steps, self.num_tasks = config.task_steps or suite.task_steps, config.num_tasks or suite.num_tasks
        self.agent = config.agent or suite.agent
        self.envs, self.methods = config.envs or suite.envs, split_methods(config.methods)
        self.folder = config.out / config.suite
        if unknown := set(self.envs) - set(suite.envs):
            raise ValueError(f"{config.suite} has no {', '.join(unknown)}; it has {', '.join(suite.envs)}")
        self.cells = {self._folder(cell): cell for cell in self._all_cells()}
        runs = [Seed(cell.seed, folder) for folder, cell in self.cells.items()]
        super().__init__(config.suite, runs, config.jobs, config.retries, config.quiet)
        parsed: dict[tuple[str, str, int | None], Any] = {}
        for run in runs:  # a method that does not exist fails here, before anything is trained
            cell = self.cells[run.folder]
            key = cell.env, cell.method, cell.task
            parsed[key] = parsed.get(key) or settings(parse(self.agent, self._arguments(cell)))
            own = {"seed": self._run_seed(cell), "task_seed": cell.seed}
            self.claim(run, {**parsed[key], "agent_name": self.agent, **own})

    def _all_cells(self) -> Iterator[Cell]:
        for seed in range(self.config.seed, self.config.seed + self.config.seeds):  # all methods of one seed first
            for env in self.envs:
                for method in self.methods:
                    tasks = range(self.num_tasks) if method == ORACLE else [None]
                    yield from (Cell(env, method, seed, task) for task in tasks)

    def _folder(self, cell: Cell) -> Path:
        place = self.folder / file_name(cell.env) / re.sub(r"[^\w.=+-]+", "_", cell.method)
        return place / f"seed_{cell.seed}" if cell.task is None else place / f"seed_{cell.seed}_task_{cell.task}"

    def _run_seed(self, cell: Cell) -> int:
        return cell.seed if cell.task is None else 1000 * cell.seed + cell.task

    def _arguments(self, cell: Cell) -> list[str]:
        """Return the options of the run of a cell, without its place."""
        alone = [] if cell.task is None else ["--first-task", str(cell.task)]
        num = self.num_tasks if cell.task is None else 1
        common = ["--env", cell.env, "--steps", str(num * self.task_steps), "--task-steps", str(self.task_steps)]
        common += ["--num-tasks", str(num), *alone, "--task-seed", str(cell.seed), "--eval-every", "0"]
        common += ["--eval-episodes", "1", "--seed", str(self._run_seed(cell)), "--log"]
        own = "" if self.config.agent else self.suite.arguments
        return [*common, *own.split(), *method_arguments(cell.method), *self.more]

    def command(self, seed: Seed) -> list[str]:
        """Return the arguments that begin a run."""
        place = ["--out", str(seed.folder.parent), "--name", seed.folder.name, "--quiet"]
        return [self.agent, *self._arguments(self.cells[seed.folder]), *place]

    def environment(self, seed: Seed) -> str:
        """Return the stream of a run."""
        return self.cells[seed.folder].env

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
            running = ", ".join(f"{seed.step:,}" for seed in seeds if seed.state == "running")
            returns = [value for seed in seeds if (value := seed.values.get(EPISODIC_RETURN)) is not None]
            latest = f"{np.mean(returns):.1f}" if returns else ""
            failed = "; ".join(dict.fromkeys(seed.error for seed in seeds if seed.state == "failed"))
            table.add_row(env, method, f"{done} of {len(seeds)}", running, latest, failed)
        return table

    def report(self) -> None:
        """Print the tables of all streams of which runs are finished; write them, and a picture of each."""
        from plasticity.reports.tables import comma_separated, markdown

        texts: list[str] = []
        for env in self.envs:
            protocol = self.protocol(env)
            if protocol is None:
                continue
            place = self.folder / env.replace("/", "-")
            for kind, table in (("area", protocol.areas()), ("tasks", protocol.per_task())):
                texts.append(markdown(table))
                write_atomically(place / f"{kind}.csv", comma_separated(table).encode())
            picture = draw(protocol, self.task_steps, place / "curves.svg")
            if order := self._order(env, protocol):
                texts.append(order)
            texts.append(f"![{env}: mean return over tasks]({picture.relative_to(self.folder)})\n" if picture else "")
        text = "\n".join(one for one in texts if one)
        if not text:
            print("nothing is finished; the same command goes on")
            return
        print(text, end="")
        write_atomically(self.folder / "bench.md", text.encode())
        print(f"\n{self.folder / 'bench.md'}; see also: plasticity report {self.folder}", file=sys.stderr)

    def _order(self, env: str, protocol: Any) -> str:
        """Return whether the methods that the paper has come in its order; empty for fewer than two of them."""
        from plasticity.reports.tasks import in_order

        keys = {published_name(name): name for name in protocol.everyone()}
        there = [name for name in self.suite.order if name in keys]
        if len(there) < 2 or env not in self.suite.published:
            return ""
        areas = {name: float(protocol.everyone()[keys[name]].mean()) for name in there}
        verdict = "kept" if in_order(areas, there) else "not kept"
        return f"Published order {' > '.join(there)}: {verdict} ({self.suite.source}).\n"

    def protocol(self, env: str) -> Any:
        """Return the numbers of the finished runs of a stream; None if there are none."""
        from plasticity.reports.tasks import Protocol, task_curves

        curves: dict[str, dict[int, Any]] = {}
        fresh: dict[int, dict[int, NDArray[Any]]] = {}
        speeds: dict[str, list[float]] = {}
        measured: dict[str, list[dict[str, float]]] = {}
        for seed in self.seeds:
            cell = self.cells[seed.folder]
            if cell.env != env or seed.state not in ("finished", "skipped"):
                continue
            series = read_series(seed.folder)
            if EPISODIC_RETURN not in series:
                continue
            num = self.num_tasks if cell.task is None else 1
            found = task_curves(series[EPISODIC_RETURN], num, self.task_steps)
            if cell.task is None:
                curves.setdefault(cell.method, {})[cell.seed] = found
                measured.setdefault(cell.method, []).append(seed.metrics())
                speeds.setdefault(cell.method, []).append(float(np.nanmean(series[SPEED].values)))
            else:
                fresh.setdefault(cell.seed, {})[cell.task] = found[0]
        whole = {seed: np.stack([tasks[k] for k in sorted(tasks)]) for seed, tasks in fresh.items() if self._all(tasks)}
        if not curves and not whole:
            return None
        stacked = {method: np.stack([by_seed[s] for s in sorted(by_seed)]) for method, by_seed in curves.items()}
        oracle = np.stack([whole[seed] for seed in sorted(whole)]) if whole else None
        published = {name: value for name in stacked if (value := self._published(env, name)) is not None}
        if (value := self._published(env, ORACLE)) is not None:
            published[ORACLE] = value
        speed = {method: float(np.mean(values)) for method, values in speeds.items()}
        random = self.random(env) if oracle is not None else None
        metrics = {method: averaged(found) for method, found in measured.items()}
        return Protocol(env, stacked, oracle, random, speed, published, metrics)

    def _all(self, tasks: Mapping[int, Any]) -> bool:
        return len(tasks) == self.num_tasks

    def _published(self, env: str, method: str) -> float | None:
        return self.suite.published.get(env, {}).get(published_name(method))

    def random(self, env: str) -> NDArray[Any]:
        """Return the mean return of random actions in every task, (tasks,); kept in a file beside the runs."""
        file = self.folder / env.replace("/", "-") / "random.json"
        key = f"{self.config.seed} {self.num_tasks}"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if key not in kept:
            kept[key] = random_returns(env, self.config.seed, self.num_tasks)
            write_atomically(file, json.dumps(kept).encode())
        return np.array(kept[key])


def averaged(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every metric over the seeds that have it."""
    names = dict.fromkeys(name for one in found for name in one)
    return {name: float(np.mean([one[name] for one in found if name in one])) for name in names}


def read_series(folder: Path) -> dict[str, Any]:
    """Return the series of a run by tag."""
    from plasticity.reports.series import columns
    from plasticity.storage.rows import read_metrics

    return columns(read_metrics(folder))


def draw(protocol: Any, task_steps: int, file: Path) -> Path | None:
    """Draw the mean return over all tasks of every method; None without matplotlib."""
    try:
        from plasticity.reports.figures import Curve, Panel, draw_curves, encoded
    except ImportError:
        return None
    from plasticity.reports.series import Series, band

    curves = []
    for number, (name, values) in enumerate(protocol.everyone().items()):
        _, tasks, bins = values.shape
        steps = (np.arange(tasks * bins) + 1) * task_steps / bins
        found, _ = band([Series(steps, one.reshape(-1)) for one in values])
        if found is not None:
            curves.append(Curve(name, number, found))
    figure = draw_curves([[Panel(protocol.env, "training return", curves)]], "environment steps")
    write_atomically(file, encoded(figure, "svg"))
    return file
