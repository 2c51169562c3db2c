"""The numbers of runs as a file beside the page of a suite: it is drawn again, and grows, where the runs are no more.

A line is a run, or the mean returns of random actions in the tasks of a seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plasticity.storage.files import file_name, write_atomically

from .bench_cells import Cell
from .bench_numbers import CellNumbers

RandomReturns = dict[str, list[float]]
"""Key of a seed, as in ``random.json``, -> mean return of random actions in every task."""
FIELD_TYPES = {"env": str, "method": str, "seed": int, "steps": int}


def file_of(folder: Path, suite: str, env: str) -> Path:
    """Return the file of a stream of a suite."""
    return folder / f"{suite}-{file_name(env)}.jsonl"


def kept_streams(folder: Path, suite: str) -> list[str]:
    """Return the streams whose files a folder has, also those that the suite does not name."""
    files = sorted(folder.glob(f"{suite}-*.jsonl"))
    return [env for file in files if file_of(folder, suite, env := _first_stream(file)) == file]


def read_kept(file: Path, env: str) -> tuple[list[CellNumbers], RandomReturns]:
    """Return the runs and the random returns of a stream's file, none where there is no file.

    Raises ValueError for a damaged line, or one of another stream.
    """
    runs, random = list[CellNumbers](), RandomReturns()
    if not file.is_file():
        return runs, random
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
            if "random" in row:
                random[str(row["random"])] = [float(value) for value in row["returns"]]
            else:
                runs.append(_run(row, env))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}, line {number}: no numbers of a run ({error!r}); take the line out") from None
    return runs, random


def write_kept(file: Path, runs: Iterable[CellNumbers], random: RandomReturns) -> None:
    """Write the random returns and the runs of a stream, in their order."""
    rows: list[dict[str, Any]] = [{"random": key, "returns": random[key]} for key in sorted(random)]
    rows += map(_row, runs)
    text = "".join(json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n" for row in rows)
    write_atomically(file, text.encode())


def with_new(kept: Iterable[CellNumbers], new: Iterable[CellNumbers]) -> list[CellNumbers]:
    """Return the runs of both, sorted; of a run that both have, the new one."""
    return sorted({run.cell: run for run in (*kept, *new)}.values(), key=_place)


def _first_stream(file: Path) -> str:
    """Return the stream of the first run in a file; empty where there is none that can be read."""
    for line in file.read_bytes().splitlines():
        with suppress(ValueError, AttributeError):  # read_kept says what is wrong with a line
            if env := json.loads(line).get("env"):
                return str(env)
    return ""


def _place(run: CellNumbers) -> tuple[Any, ...]:
    cell = run.cell
    return cell.env, cell.method, cell.seed, -1 if cell.task is None else cell.task


def _row(run: CellNumbers) -> dict[str, Any]:
    cell = {name: value for name, value in vars(run.cell).items() if value is not None}
    metrics = {name: _numbers(values) for name, values in run.metrics.items()}
    more = {"speed": run.speed, "limits": run.limits, "metrics": metrics, "code": run.code, "options": run.options}
    filled = {name: value for name, value in more.items() if value}
    return {**cell, "steps": run.steps, **filled, "returns": _numbers(run.curves)}


def _run(row: Mapping[str, Any], env: str) -> CellNumbers:
    for name, kind in FIELD_TYPES.items():
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} is {row[name]!r}")
    if row["env"] != env:
        raise ValueError(f"the file is of {env}, the line of {row['env']}")
    cell = Cell(row["env"], row["method"], row["seed"], row.get("task"))
    metrics = {name: _array(values) for name, values in row.get("metrics", {}).items()}
    curves = _array(row["returns"])
    if curves.ndim != 2:
        raise ValueError(f"returns have {curves.ndim} dimensions, not tasks and bins")
    more = {name: row[name] for name in ("speed", "limits", "code", "options") if name in row}
    return CellNumbers(cell, row["steps"], curves, metrics=metrics, **more)


def _numbers(values: NDArray[Any]) -> Any:
    """Return nested lists; null for what is not finite."""
    if values.ndim > 1:
        return [_numbers(part) for part in values]
    return [float(value) if np.isfinite(value) else None for value in values]


def _array(values: Any) -> NDArray[Any]:
    return np.array(values, dtype=np.float64)  # null is NaN
