"""``train --log`` and ``watch(log=...)``: the writers that are named, those of others, and what a resumed run does."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import plasticity
from plasticity.callback import Context, Writer
from plasticity.cli import main
from plasticity.measuring import Measure
from plasticity.storage.record import read_record
from plasticity.storage.rows import read_metrics
from plasticity.writers import WRITERS, Writers
from plasticity.writers.csv import CsvWriter

SMALL = [
    *("train", "sac", "--env", "Pendulum-v1", "--steps", "240", "--max-episode-steps", "45", "--quiet"),
    *("--batch-size", "8", "--learning-starts", "40", "--buffer-size", "100", "--hidden", "8", "8"),
    *("--probe-every", "15", "--eval-every", "90", "--eval-episodes", "2", "--log-every", "7", "--compile", "off"),
    *("--checkpoint.every", "120", "--checkpoint.keep", "9", "--redo", "--redo.every", "20", "--redo.threshold", "0.4"),
]
TIMED = {"time", "charts/SPS", "plasticity/overhead", "interventions/redo/seconds"}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMED and v != ""} for row in csv.DictReader(file)]


def train(out: Path, name: str, *more: str) -> Path:
    assert main([*SMALL, "--out", str(out), "--name", name, *more]) == 0
    return out / name


def test_the_record_is_always_written_and_the_rest_by_name(tmp_path: Path) -> None:
    none, both = train(tmp_path, "none", "--log"), train(tmp_path, "both", "--log", "csv", "tensorboard")
    assert not [path for path in none.iterdir() if "tfevents" in path.name or path.suffix == ".csv"]
    assert [path for path in both.iterdir() if "tfevents" in path.name]
    assert read_record(both)["config"]["log"] == ["csv", "tensorboard"]
    rows = [[{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(run)] for run in (none, both)]
    assert rows[0] == rows[1]
    scalars = [row for row in rows[1] if "event" not in row and row.keys() != {"step"}]
    found = [{k: float(v) for k, v in row.items()} for row in table(both / "metrics.csv") if row.keys() != {"step"}]
    assert found == [{k: v for k, v in row.items() if v is not None} for row in scalars]
    assert len(table(both / "events.csv")) == sum("event" in row for row in rows[1]) > 0


def test_a_resumed_run_has_the_tables_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole", "--log", "csv")
    shutil.copytree(whole, tmp_path / "stopped")
    (last,) = (tmp_path / "stopped" / "checkpoints").glob("*-step-240")
    shutil.rmtree(last)
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    for name in ("metrics.csv", "events.csv"):
        assert table(tmp_path / "stopped" / name) == table(whole / name)


def test_a_resumed_run_may_log_to_other_writers(tmp_path: Path) -> None:
    run = train(tmp_path, "run", "--log", "csv")
    before = table(run / "metrics.csv")
    assert main(["train", "--resume", str(run), "--steps", "280", "--log", "tensorboard"]) == 0
    assert table(run / "metrics.csv") == before
    assert [path for path in run.iterdir() if "tfevents" in path.name]


def test_an_unknown_writer_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path), "--log", "tensorbord"]) == 1
    assert "no writer 'tensorbord'; did you mean tensorboard?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- a writer from outside ---------------------------------------------------------------------------------------------


class Lines(Writer):
    """A writer as an outsider writes it."""

    def __init__(self, folder: Path) -> None:
        self.file = (folder / "lines.txt").open("a")

    def log(self, step: int, values: Any) -> None:
        self.file.write(f"{step} {len(values)}\n")

    def close(self, succeeded: bool = True) -> None:
        self.file.write(f"succeeded {succeeded}\n")
        self.file.close()


class Broken(Writer):
    """A writer that fails at its third row."""

    def __init__(self, folder: Path) -> None:
        self.rows = 0

    def log(self, step: int, values: Any) -> None:
        self.rows += 1
        if self.rows == 3:
            raise ConnectionError("no server")


def test_a_writer_from_outside_is_chosen_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS, "lines", Lines)
    run = train(tmp_path, "run", "--log", "lines")
    lines = (run / "lines.txt").read_text().splitlines()
    scalars = [row for row in read_metrics(run) if "event" not in row]
    assert lines == [*(f"{row['step']} {len(row) - 2}" for row in scalars), "succeeded True"]


def test_a_writer_that_fails_does_not_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS, "broken", Broken)
    monkeypatch.setitem(WRITERS, "lines", Lines)
    with pytest.warns(RuntimeWarning, match=r"the writer broken failed .*\(ConnectionError: no server\)"):
        run = train(tmp_path, "run", "--log", "broken", "lines")
    assert read_record(run)["status"] == "finished"
    assert (run / "lines.txt").read_text().endswith("succeeded True\n")


# -- watch -------------------------------------------------------------------------------------------------------------


class Kept(Writer):
    """Keep scalars and histograms."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.histograms: list[str] = []
        self.closed = False

    def log(self, step: int, values: Any) -> None:
        self.rows.append((step, dict(values)))

    def histogram(self, step: int, tag: str, values: Any) -> None:
        self.histograms.append(tag)

    def close(self, succeeded: bool = True) -> None:
        self.closed = True


def loop(device: str, **options: Any) -> Iterator[plasticity.watching.Session]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    with plasticity.watch(model, optimizer, every=2, **options) as session:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(16, 4, device=device)).square().mean().backward()
            optimizer.step()
        yield session


def test_watch_writes_to_folders_and_writers_together(tmp_path: Path, device: str) -> None:
    kept, extra = Kept(), CsvWriter(tmp_path / "table")
    for _ in loop(device, log=[tmp_path / "run", kept, extra]):
        assert [step for step, _ in kept.rows] == [1, 3, 5]
    rows = [{k: v for k, v in row.items() if k not in ("step", "time")} for row in read_metrics(tmp_path / "run")]
    assert rows == [values for _, values in kept.rows]
    found = [{k: float(v) for k, v in row.items() if k != "step"} for row in table(tmp_path / "table" / "metrics.csv")]
    assert found == rows
    assert "scores/model/dormancy/0" in kept.histograms
    assert not kept.closed  # it was given, and may go on
    extra.close()


def test_watch_takes_one_writer(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = Kept()
    for _ in loop(device, log=kept):
        pass
    assert len(kept.rows) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("log", "error"), [(3, "takes a folder, a writer"), ([object()], "takes a folder, a writer")])
def test_watch_refuses_what_is_no_destination(log: Any, error: str) -> None:
    with pytest.raises(TypeError, match=error):
        next(loop("cpu", log=log))


def test_watch_goes_on_without_a_writer_that_fails(device: str, tmp_path: Path) -> None:
    kept = Kept()
    broken = Broken(tmp_path)
    broken.rows = 1
    with pytest.warns(RuntimeWarning, match="the writer Broken failed"):
        list(loop(device, log=[broken, kept]))
    assert len(kept.rows) == 3


def test_a_context_takes_several_as_one(device: str) -> None:
    one, other = Kept(), Kept()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    ctx = Context({"model": model}, {"optimizer": optimizer}, writer=Writers([one, other]))
    measure = Measure(every=1)
    measure.on_train_start(ctx)
    model(torch.randn(16, 4, device=device)).square().mean().backward()
    optimizer.step()
    measure.on_train_end(ctx)
    assert one.rows == other.rows
    assert len(one.rows) == 1
