"""The tables and pictures of a benchmark, from the numbers of its finished runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.envs import TaskPlan, find_family
from plasticity.reports.tables import comma_separated, markdown
from plasticity.reports.tasks import Protocol, disorder
from plasticity.storage.files import file_name, write_atomically
from plasticity.tags import EPISODIC_RETURN

from .bench_kept import RandomReturns
from .bench_numbers import CellNumbers, averaged, gather, rounded
from .bench_picture import draw
from .method_names import ORACLE, published_name
from .random_actions import random_returns
from .suites import Suite


class BenchReport:
    """Tables and pictures of finished runs; ``plans``: stream -> length and number of its tasks."""

    def __init__(self, suite: Suite, folder: Path, plans: Mapping[str, TaskPlan], runs: Sequence[CellNumbers]) -> None:
        self.suite, self.folder, self.plans, self.runs = suite, folder, plans, runs
        self.known: dict[str, RandomReturns] = {}
        """Stream -> mean returns of random actions, as far as they are known."""

    def write(self) -> None:
        """Print and write the tables of all streams with finished runs, and pictures."""
        text = "\n".join(one for env in self.plans for one in self._of(env) if one)
        if not text:
            print("nothing is finished; the same command goes on")
            return
        print(text, end="")
        write_atomically(self.folder / "bench.md", text.encode())
        compare = f"plasticity compare {self.folder} --metric {EPISODIC_RETURN} --at auc"
        print(f"\n{self.folder / 'bench.md'}; see also: plasticity report {self.folder}; {compare}", file=sys.stderr)

    def _of(self, env: str) -> Iterable[str]:
        """Yield the parts of the page on one stream."""
        protocol, place = self.protocol(env), self._place(env)
        if protocol is None:
            return
        tables = {"area": protocol.areas(), "tasks": protocol.per_task(), "gaps": protocol.gaps_by_task()}
        tables["metrics"] = protocol.metrics_by_task()
        for kind, table in tables.items():
            if table is not None:
                yield markdown(table)
                write_atomically(place / f"{kind}.csv", comma_separated(table).encode())
        yield self.order(env, protocol)
        if picture := draw(protocol, self.plans[env].steps or 0, place / "curves.svg"):
            yield f"![{env}: mean return over tasks]({picture.relative_to(self.folder)})\n"

    def _place(self, env: str) -> Path:
        return self.folder / file_name(env)

    def order(self, env: str, protocol: Protocol) -> str:
        """Return whether the methods that the paper has come in its order; empty for fewer than two of them."""
        areas = {published_name(name): float(c.mean()) for name, c in protocol.everyone().items()
                 if name in protocol.published}  # fmt: skip
        there = [name for name in self.suite.order if name in areas]
        if len(there) < 2:
            return ""
        wrong = ", ".join(f"{b} ({areas[b]:.1f}) is above {a} ({areas[a]:.1f})" for a, b in disorder(areas, there))
        return (
            f"Published order {' > '.join(there)}: {f'not kept: {wrong}' if wrong else 'kept'} ({self.suite.source}).\n"
        )

    def protocol(self, env: str) -> Protocol | None:
        """Return the numbers of the finished runs of a stream; None if there are none."""
        plan = self.plans[env]
        found = gather(self.runs, env)
        whole = found.oracle(plan.num or 0)
        if not found.curves and not whole:
            return None
        stacked = {method: np.stack([by_seed[s] for s in sorted(by_seed)]) for method, by_seed in found.curves.items()}
        oracle = np.stack(list(whole.values())) if whole else None
        published = {n: v for n in (*stacked, ORACLE) if (v := self._published(env, n, stacked)) is not None}
        speed = {method: float(np.mean(values)) for method, values in found.speeds.items()}
        random = None if oracle is None else np.stack([self.random(env, seed) for seed in whole])
        metrics = {method: averaged(measured) for method, measured in found.metrics.items()}
        seeds = {ORACLE: list(whole), **{method: sorted(by_seed) for method, by_seed in found.curves.items()}}
        return Protocol(env, stacked, oracle, random, speed, published, metrics, seeds)

    def _published(self, env: str, method: str, there: Iterable[str]) -> float | None:
        """Return the area that was published of a method; None for other tasks, agents or options than those there."""
        name = published_name(method)
        area, tuned = self.suite.published.get(env, {}).get(name), self.suite.tuned.get(name)
        if area is None or (method != tuned and (":" in method or {tuned} & {*there})):
            return None
        other = any(run.options for run in self.runs if run.cell.env == env)
        return None if other or self.plans[env] != find_family(env).tasks else area

    def random(self, env: str, seed: int) -> NDArray[Any]:
        """Return the mean return of random actions in every task of a seed, (tasks,); kept in a file beside the runs.

        Episodes are as long as those of the runs.
        """
        num = self.plans[env].num or 0
        limits = next(run.limits for run in self.runs if (run.cell.env, run.cell.seed) == (env, seed))
        key = " ".join([str(seed), str(num), *(f"{name}={value}" for name, value in limits.items())])
        file, known = self._place(env) / "random.json", self.known.setdefault(env, {})
        if len(known.get(key, ())) != num and file.is_file():
            with suppress(ValueError, TypeError):  # a damaged one is written anew
                known |= json.loads(file.read_bytes())
        if len(known.get(key, ())) != num:
            known[key] = rounded(np.array(random_returns(env, seed, num, **limits))).tolist()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(known).encode())
        return np.array(known[key])
