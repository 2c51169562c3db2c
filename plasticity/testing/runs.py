"""Short runs of the command line in a folder of their own, and their comparison, bit for bit."""

from __future__ import annotations

import io
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plasticity.cli import main
from plasticity.storage.folder import Checkpoints
from plasticity.storage.rows import read_metrics
from plasticity.tags import is_timed

SHORT = (
    *("--steps", "240", "--seed", "3", "--num-envs", "2", "--checkpoint.every", "120", "--checkpoint.keep", "9"),
    *("--probe-every", "15", "--eval-every", "90", "--eval-episodes", "2", "--log-every", "7"),
    *("--max-episode-steps", "45", "--quiet"),
)
"""Options of a run that takes about a second, with checkpoints half-way and at its end."""
_REPLAY = ("--hidden", "8", "8", "--batch-size", "8", "--learning-starts", "40", "--buffer-size", "100")
QUICK_RUNS = {
    "sac": ("--env", "Pendulum-v1", *_REPLAY),
    "td3": ("--env", "Pendulum-v1", *_REPLAY),
    "dqn": ("--env", "CartPole-v1", *_REPLAY, "--train-every", "2"),
    "ppo": ("--env", "Pendulum-v1", "--hidden", "8", "8", "--num-steps", "32", "--num-minibatches", "4"),
    "supervised": ("--env", "bitflip", "--hidden", "8", "8", "--batch-size", "8"),
}
"""Agent -> its options in a short run."""


def command(*arguments: str | Path) -> str:
    """Run a command in this process and return its standard output; raise AssertionError with its error."""
    code, output, errors = attempt(*arguments)
    assert code == 0, f"plasticity {' '.join(map(str, arguments))} failed: {errors.strip()}"
    return output


def attempt(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command in this process and return its exit code, standard output and standard error."""
    output, errors = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(errors):
        warnings.simplefilter("ignore", RuntimeWarning)  # on runs this short, methods warn
        code = main([str(argument) for argument in arguments])
    return code, output.getvalue(), errors.getvalue()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run, without the values that depend on time."""
    kept = [{k: v for k, v in row.items() if k != "time" and not is_timed(k)} for row in read_metrics(folder)]
    return [row for row in kept if row.keys() != {"step"}]


def last_state(folder: Path) -> dict[str, Any]:
    """Return the state in the newest checkpoint of a run."""
    return Checkpoints(folder / "checkpoints").load_latest()[1]


def stopped(whole: Path, to: Path) -> Path:
    """Copy a finished run as it would be after a kill behind its first checkpoint, and return the copy."""
    shutil.copytree(whole, to)
    first, *later = Checkpoints(to / "checkpoints").all()
    assert later, f"{whole} wrote one checkpoint only, {first.name}"
    for folder in [*later, to / "model"]:
        shutil.rmtree(folder)
    return to


def require_same(a: Any, b: Any, where: str) -> None:
    """Raise AssertionError naming the place unless two nested states are equal, bit for bit; NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), f"{where}: the keys {sorted(map(str, a))} are not {sorted(map(str, b))}"
        for key in a:
            require_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        assert len(a) == len(b), f"{where}: {len(a)} entries are not {len(b)}"
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            require_same(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        equal = a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        assert equal, f"{where}: the tensors differ"
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), f"{where}: the arrays differ"
    else:
        equal = a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
        assert equal, f"{where}: {a!r} is not {b!r}"


def check_run(agent: str, options: Sequence[str], folder: Path) -> Path:
    """Train with these options, stop and resume to the same bits, evaluate and probe; return the run's folder."""
    whole = folder / "whole"
    command("train", agent, *options, *SHORT, "--out", folder, "--name", whole.name)
    updates = last_state(whole)["callbacks"]["losses"]["count"]
    assert updates > 0, f"{agent} made no update in {SHORT[1]} steps; pass options with which it learns"
    resumed = stopped(whole, folder / "resumed")
    command("train", "--resume", resumed)
    require_same(last_state(resumed), last_state(whole), "state of the resumed run")
    require_same(rows(resumed), rows(whole), "rows of the resumed run")
    last = Checkpoints(whole / "checkpoints").all()[-1]
    for words in (("eval",), ("probe", "--samples", "64")):
        played = [command(*words, place) for place in (whole, last)]
        told = [text.partition("\n")[2] for text in played]  # the first line names the folder
        assert told[0] == told[1], f"plasticity {words[0]}: the model gives {told[0]}, its checkpoint {told[1]}"
    return whole


@contextmanager
def registered(registry: dict[str, Any], name: str, entry: Any) -> Iterator[None]:
    """Within, hold ``entry`` under ``name`` in a registry."""
    missing = object()
    before = registry.get(name, missing)
    registry[name] = entry
    try:
        yield
    finally:
        if before is missing:
            del registry[name]
        else:
            registry[name] = before
