"""``plasticity doctor`` names what is missing and what to do; ``plasticity runs`` lists runs, damaged ones by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runfolders import make_run

from plasticity.commands import doctor
from plasticity.testing.runs import attempt, command


def test_doctor_checks_this_machine(tmp_path: Path) -> None:
    told = command("doctor", "--out", tmp_path / "runs")
    names = [line.split()[1] for line in told.splitlines()]
    assert {"python", "torch", "compiler", "devices", "threads", *doctor.OPTIONAL_PACKAGES} <= set(names)
    assert not any(line.startswith("wrong") for line in told.splitlines())


def test_doctor_says_what_is_missing_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(doctor.OPTIONAL_PACKAGES, "no-such-package", "nothing: pip install it")
    monkeypatch.setattr(doctor, "devices", lambda: 1 / 0)
    (tmp_path / "file").touch()
    code, told, _ = attempt("doctor", "--out", tmp_path / "file")
    assert code == 1
    assert "note   compiler      no C++ compiler" in told
    assert "note   no-such-package  not installed, needed for nothing: pip install it" in told
    assert "ZeroDivisionError: division by zero" in told
    assert f"{tmp_path / 'file'} cannot be written; pass another --out" in told


def test_runs_are_listed_filtered_and_damaged_ones_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], seed=1, interventions={"redo": {}})
    make_run(tmp_path / "group" / "b", [1.0], seed=2, status="failed", kind="td3")
    make_run(tmp_path / "bad", [1.0])
    (tmp_path / "bad" / "run.json").write_text("{")
    code, told, errors = attempt("runs", tmp_path)
    lines = [line.split() for line in told.splitlines()]
    assert code == 0
    assert lines[1:] == [
        [str(tmp_path / "a"), "sac", "Walk-v0", "1", "finished", "of", "10", "-", "redo"],
        [str(tmp_path / "group" / "b"), "td3", "Walk-v0", "2", "failed", "of", "10", "-", "-"],
    ]
    assert f"note: left out {tmp_path / 'bad' / 'run.json'} is damaged" in errors
    assert len(command("runs", tmp_path, "--status", "fail*").splitlines()) == 2
    assert len(command("runs", tmp_path, "--agent", "sac", "--env", "Other*").splitlines()) == 1
    assert attempt("runs", tmp_path / "nowhere")[0] == 1
