"""``plasticity bench``: methods on the streams of a suite, beside agents that are fresh in every task."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .arguments import read_arguments
from .contents import nearest
from .suites import SUITES, Suite


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
    """Train nothing: write the page of the suite to this folder, with pictures and a file of the runs' numbers, from
    which the page grows, also where the runs are no more."""


def main(arguments: Sequence[str]) -> int:
    """Train what is not finished; print and write the tables of what is."""
    own, more = list(arguments), []
    if "--" in own:
        own, more = own[: own.index("--")], own[own.index("--") + 1 :]
    config = read_arguments(BenchConfig, "bench", own, imports="torch")
    suite = find_suite(config.suite)
    from .bench_numbers import all_numbers
    from .bench_page import write_page
    from .bench_report import BenchReport
    from .bench_runs import Bench

    if config.page is not None:
        return write_page(config.suite, suite, config.out / config.suite, config.page)
    bench = Bench(config, suite, more)
    bench.require_trainable()
    code = bench.run()
    for seed in bench.seeds:
        if seed.state == "failed":
            print(f"{seed.folder}: failed, {seed.error}; see {seed.console}", file=sys.stderr)
    BenchReport(suite, bench.folder, bench.plans, all_numbers(bench.finished(), suite)).write()
    return code


def find_suite(name: str) -> Suite:
    """Return a suite; ValueError, with the nearest name, if there is none."""
    if name not in SUITES:
        raise ValueError(f"no suite {name!r}; {nearest(name, SUITES)}there are {', '.join(SUITES)}")
    return SUITES[name]
