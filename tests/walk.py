"""Walk all pairs, or all agents and methods, in one process that may be stopped: ``python tests/walk.py pairs``.

Every case is a line of JSON in the file of ``--progress``; a case that is there, and did not fail, is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import elsewhere
import pytest
import torch
import torch._dynamo
from test_agents_and_methods import CASES, REFUSED, check_on_agent
from test_pairs import PAIRS, check_or_refused, in_some_order, reasons

from plasticity.agents import compiled

Case = tuple[str, ...]


def check_case(compile: str, case: Case) -> None:
    """Check a method on an agent."""
    check_on_agent(case[0], case[1], compile)


WALKS: dict[str, tuple[list[Case], Callable[[Case], None], Callable[[Case], list[str]]]] = {
    "pairs": (PAIRS, lambda pair: check_or_refused(in_some_order(pair)), reasons),
    **{
        f"agents-{name}": (CASES, partial(check_case, mode), lambda case: [REFUSED[case]] if case in REFUSED else [])
        for name, mode in (("eager", "off"), ("traced", "on"), ("compiled", "on"))
    },
}
"""Name of a walk -> its cases, the check of one, and why one is refused. Traced: as compiled, without inductor."""


def result_of(case: Case, check: Callable[[Case], None], refused: list[str]) -> tuple[str, str]:
    """Return ``trained``, ``refused``, ``no host``, ``left out``, ``missing`` (a package) or ``failed``, and why."""
    try:
        check(case)
    except pytest.skip.Exception as skipped:
        known = {"pip install": "missing", "no agent takes": "no host"}
        return next((name for part, name in known.items() if part in str(skipped)), "left out"), str(skipped)
    except (Exception, pytest.fail.Exception) as error:
        return "failed", f"{type(error).__name__}: {error}"
    return ("refused", refused[0]) if refused else ("trained", "")


@contextmanager
def strict() -> Iterator[None]:
    """Raise warnings, as in the tests, but those of packages on what they call themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Rank. fewer than 2 samples a feature")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        yield


def walk(name: str, progress: Path, minutes: float, part: tuple[int, int]) -> None:
    """Run the cases that are left, in an order that is drawn, until the time is up; print what was found.

    ``part``: (k, n), the k-th of n processes that share the cases and the file.
    """
    cases, check, refusals = WALKS[name]
    known = [json.loads(line) for line in progress.read_text().splitlines()] if progress.exists() else []
    done = {tuple(row["case"]): row for row in known}
    drawn = random.Random(0).sample(cases, len(cases))[part[0] - 1 :: part[1]]
    left = [case for case in drawn if case not in done or done[case]["result"] in ("failed", "missing")]
    end = time.monotonic() + 60 * minutes
    with progress.open("a", buffering=1) as file, strict():
        for case in left:
            if time.monotonic() > end:
                break
            begun = time.process_time()
            result, why = result_of(case, check, refusals(case))
            row = {"case": case, "result": result, "why": why, "seconds": round(time.process_time() - begun, 3)}
            file.write(json.dumps(row) + "\n")
            done[case] = row
    tell([done[case] for case in cases if case in done], len(cases))


def tell(rows: list[dict], total: int) -> None:
    """Print how many cases have which result, the time of a trained one, and each failure."""
    counts = Counter(row["result"] for row in rows)
    seconds = [row["seconds"] for row in rows if row["result"] == "trained"]
    print(f"{len(rows)} of {total}: {', '.join(f'{number} {result}' for result, number in counts.items())}")
    print(
        f"{sum(seconds) / max(1, len(seconds)):.2f} CPU seconds a trained case, {sum(seconds) / 60:.1f} minutes in all"
    )
    for (result, why), number in Counter((r["result"], r["why"]) for r in rows if r["why"]).most_common():
        print(f"{number:5} {result}: {why}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("walk", choices=WALKS)
    parser.add_argument("--progress", type=Path, required=True, help="file of the results so far")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), metavar=("K", "N"), help="of N processes")
    given = parser.parse_args()
    if not 1 <= given.part[0] <= given.part[1]:
        parser.error(f"--part needs K in 1 to N; got {given.part[0]} {given.part[1]}")
    torch.set_num_threads(1)
    torch._dynamo.config.disable = True  # Kron compiles a function for every shape that it meets
    if given.walk == "agents-traced":
        compiled.compile_graph = elsewhere.leave_as_traced
    walk(given.walk, given.progress, given.minutes, tuple(given.part))
