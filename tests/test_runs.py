"""``plasticity runs`` lists runs, damaged ones by name, and deletes or archives those that were chosen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from runfolders import make_run

from plasticity.storage.files import RunLock
from plasticity.testing.runs import QUICK_RUNS, attempt, command


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_runs_are_listed_filtered_and_damaged_ones_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0], seed=1, interventions={"redo": {}}, tag=["ours", "first"])
    make_run(tmp_path / "group" / "b", [1.0, 2.0], seed=2, status="failed", kind="td3")
    make_run(tmp_path / "group" / "c", [1.0], seed=3, status="running")
    (tmp_path / "group" / "c" / "metrics.jsonl").write_text("")
    make_run(tmp_path / "bad", [1.0])
    (tmp_path / "bad" / "run.json").write_text("{")
    code, told, errors = attempt("runs", tmp_path)
    lines = [line.split() for line in told.splitlines()]
    assert code == 0
    assert lines[1:] == [
        [str(tmp_path / "a"), "sac", "Walk-v0", "1", "finished", "10", "-", "redo", "ours", "first"],
        [str(tmp_path / "group" / "b"), "td3", "Walk-v0", "2", "failed", "20", "of", "20", "-", "-", "-"],
        [str(tmp_path / "group" / "c"), "sac", "Walk-v0", "3", "killed", "0", "of", "10", "-", "-", "-"],
    ]
    assert f"note: left out {tmp_path / 'bad' / 'run.json'} is damaged" in errors
    with RunLock(tmp_path / "group" / "c"):
        assert len(command("runs", tmp_path, "--status", "running").splitlines()) == 2
    for options, number in [
        (("--status", "fail*"), 1),
        (("--agent", "sac", "--env", "Other*"), 0),
        (("--tag", "our?"), 1),
        (("--tag", "other"), 0),
        (("--name", "group/*"), 2),
    ]:
        assert len(command("runs", tmp_path, *options).splitlines()) == 1 + number, options
    note = attempt("runs", tmp_path, "--status", "finsihed", "--agent", "sac")[2]
    assert f"note: no run below {tmp_path} matches --agent sac --status finsihed" in note
    (tmp_path / "empty").mkdir()
    assert attempt("runs", tmp_path / "empty")[2] == f"note: no run below {tmp_path / 'empty'}\n"
    assert attempt("runs", tmp_path / "nowhere")[0] == 1


def test_deleting_takes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    options = ("--steps", "60", "--eval-episodes", "1", "--quiet", "--log", "tensorboard", "csv", "--tag", "old")
    for name in ("whole", "noted"):
        command("train", "sac", *QUICK_RUNS["sac"], *options, "--out", tmp_path / "runs", "--name", name)
    make_run(tmp_path / "runs" / "other", [1.0])
    (tmp_path / "runs" / "noted" / "notes.txt").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "runs" / "whole" / "checkpoints" / "link").symlink_to(elsewhere)
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "foreign" / "run.json").write_text('{"mine": 1}')
    told = command("runs", tmp_path / "runs", "--tag", "old", "--delete", "--yes")
    assert f"{tmp_path / 'runs' / 'noted'}: deleted; kept notes.txt, which no run writes" in told
    assert files(tmp_path / "runs") == [
        "foreign/run.json", "noted/notes.txt", "other/metrics.jsonl", "other/run.json",
    ]  # fmt: skip
    assert not (tmp_path / "runs" / "whole").exists()
    assert files(elsewhere) == ["kept"]


def test_deleting_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a", [1.0])
    before = files(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, _, errors = attempt("runs", tmp_path, "--delete")
    assert code == 1
    assert "without a terminal to ask in, pass --yes" in errors
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer in ("", "n", "what"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert "nothing was deleted" in command("runs", tmp_path, "--delete")
    assert files(tmp_path) == before
    monkeypatch.setattr("builtins.input", lambda question: "y" if question.startswith("delete 1 runs, 0.0 MB") else "")
    command("runs", tmp_path, "--delete")
    assert not (tmp_path / "a").exists()


def test_running_runs_and_runs_around_others_are_left_alone(tmp_path: Path) -> None:
    make_run(tmp_path / "a", [1.0])
    make_run(tmp_path / "b", [1.0])
    with RunLock(tmp_path / "a"):
        for action in (("--delete", "--yes"), ("--archive", tmp_path / "away")):
            code, _, errors = attempt("runs", tmp_path, "--name", "a", *action)
            assert code == 1
            assert f"left alone: {tmp_path / 'a'} is in use by process" in errors
        assert attempt("runs", tmp_path, "--delete", "--yes")[0] == 1
    assert files(tmp_path) == ["a/metrics.jsonl", "a/run.json", "a/run.lock"]
    make_run(tmp_path / "a" / "inner", [1.0])
    for action in (("--delete", "--yes"), ("--archive", tmp_path / "away")):
        code, _, errors = attempt("runs", tmp_path, "--name", "a", *action)
        assert code == 1
        assert f"{tmp_path / 'a'} holds another run, {tmp_path / 'a' / 'inner'}" in errors


def test_archived_runs_keep_their_place(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "group" / "seed_1", [1.0], seed=1)
    make_run(tmp_path / "runs" / "group" / "seed_2", [1.0], seed=2, status="failed")
    before = files(tmp_path / "runs" / "group" / "seed_2")
    command("runs", tmp_path / "runs", "--status", "failed", "--archive", tmp_path / "away")
    assert files(tmp_path / "away" / "group" / "seed_2")[:2] == before
    assert not (tmp_path / "runs" / "group" / "seed_2").exists()
    assert "seed_2" in command("runs", tmp_path / "away")
    make_run(tmp_path / "runs" / "group" / "seed_2", [1.0], seed=2, status="failed")
    code, _, errors = attempt("runs", tmp_path / "runs", "--status", "failed", "--archive", tmp_path / "away")
    assert code == 1
    assert "exists already" in errors
    inside = tmp_path / "runs" / "group" / "seed_1" / "in"
    assert "lies within" in attempt("runs", tmp_path / "runs", "--archive", inside)[2]
    assert "not both" in attempt("runs", tmp_path / "runs", "--archive", inside, "--delete")[2]
