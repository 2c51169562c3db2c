"""Several seeds of one command: skipped when finished, retried after a crash, stopped together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from plasticity.cli import main
from plasticity.commands.seed import Seed
from plasticity.storage.record import read_record

TINY = [
    *("train", "sac", "--env", "sanity/action-continuous", "--steps", "60", "--learning-starts", "40"),
    *("--hidden", "8", "--batch-size", "8", "--probes", "grama", "--probe-every", "5"),
    *("--eval-every", "0", "--eval-episodes", "1", "--log-every", "10"),
]


def rows(folder: Path) -> list[dict]:
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("time", "charts/SPS", "plasticity/overhead")} for row in read]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds")
    assert main([*TINY, "--seed", "4", "--seeds", "2", "--jobs", "2", "--out", str(out), "--name", "both"]) == 0
    return out / "both"


def test_each_seed_has_a_folder_and_the_numbers_of_a_run_of_its_own(group: Path) -> None:
    assert sorted(p.name for p in group.iterdir() if p.is_dir()) == ["seed_4", "seed_5"]
    assert [read_record(group / f"seed_{n}")["config"]["seed"] for n in (4, 5)] == [4, 5]
    assert main([*TINY, "--seed", "5", "--out", str(group.parent), "--name", "alone", "--quiet"]) == 0
    assert rows(group / "seed_5") == rows(group.parent / "alone")
    own = ["--seed", "4", "--out", str(group), "--name", "seed_4"]
    assert read_record(group / "seed_4")["command"] == ["plasticity", *TINY, *own]  # to be pasted
    assert rows(group / "seed_4") != rows(group / "seed_5")


def test_a_second_call_skips_what_is_finished_and_adds_what_is_new(
    group: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (group / "seed_4" / "metrics.jsonl").stat().st_mtime_ns
    more = ["--seed", "4", "--seeds", "3", "--out", str(group.parent), "--name", "both"]
    assert main([*TINY, *more]) == 0
    assert (group / "seed_4" / "metrics.jsonl").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "seed 4: finished before" in printed
    assert "seed 6: finished," in printed


def test_other_settings_in_the_same_folder_are_refused(group: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--seed", "4", "--seeds", "2", "--gamma", "0.9", "--out", str(group.parent), "--name", "both"]
    assert main([*TINY, *more]) == 1
    error = capsys.readouterr().err
    assert "gamma" in error
    assert "--name" in error


@pytest.mark.slow
def test_a_crash_is_retried_reported_and_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # a batch that does not fit into the memory fails only in the process, at its first update
    broken = [
        "--buffer-size",
        "50",
        "--learning-starts",
        "49",
        "--gamma",
        "1",
        "--critic-lr",
        "1e30",
        "--actor-lr",
        "1e30",
    ]
    assert main([*TINY, *broken, "--seeds", "2", "--jobs", "2", "--out", str(tmp_path), "--name", "crash"]) == 1
    captured = capsys.readouterr()
    assert "seed 1: failed" in captured.out
    assert "not finite" in captured.out
    assert "0 of 2 finished" in captured.out
    kept = sorted(p.name for p in (tmp_path / "crash").iterdir() if p.is_dir())
    assert kept == ["seed_1", "seed_1.unfinished_1", "seed_2", "seed_2.unfinished_1"]
    assert (tmp_path / "crash" / "seed_1.log").read_text().count("not finite") == 2


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("exit 3", "exit code 3: out of luck"),
        ("exit 0", "ended before the run was finished, exit code 0: out of luck"),  # as some simulators do
        ("kill -9 $$", "killed by SIGKILL, maybe for want of memory: out of luck"),
    ],
)
def test_a_process_that_fails_is_started_once_more(
    end: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(f"echo out of luck\n{end}", tmp_path, monkeypatch)
    assert main([*TINY, "--seeds", "2", "--jobs", "2", "--out", str(tmp_path), "--name", "crash"]) == 1
    out = capsys.readouterr().out
    assert f"seed 1: failed  {words}" in out
    assert "0 of 2 finished" in out
    assert (tmp_path / "crash" / "seed_2.log").read_text().split() == ["out", "of", "luck"] * 2


def stand_in(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell script run in place of the interpreter that trains a seed."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_an_attempt_that_says_nothing_is_not_told_by_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    again = tmp_path / "again"
    stand_in(f"[ -e {again} ] && kill -9 $$\ntouch {again}\necho out of luck\nexit 3", tmp_path, monkeypatch)
    assert main([*TINY, "--seeds", "2", "--jobs", "1", "--out", str(tmp_path), "--name", "two"]) == 1
    assert "seed 1: failed  killed by SIGKILL, maybe for want of memory: no output" in capsys.readouterr().out


def test_a_seed_that_cannot_begin_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("exit 3", tmp_path, monkeypatch)
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "seed_2").write_text("a file")
    assert main([*TINY, "--seeds", "3", "--jobs", "2", "--out", str(tmp_path), "--name", "group"]) == 1
    out = capsys.readouterr().out
    assert "seed 1: failed  exit code 3" in out
    assert "seed 2: failed" in out
    assert "seed_2" in out.split("seed 2: failed")[1].splitlines()[0]
    assert "seed 3: failed  exit code 3" in out


def test_an_error_of_the_command_itself_stops_its_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = tmp_path / "began"
    stand_in(f"echo $$ > {began}\nexec sleep 100", tmp_path, monkeypatch)

    def look(seed: Seed) -> None:
        if began.exists() and began.read_text().strip():
            raise KeyError("a fault of ours")

    monkeypatch.setattr(Seed, "look", look)
    with pytest.raises(KeyError, match="a fault of ours"):
        main([*TINY, "--seeds", "2", "--jobs", "1", "--out", str(tmp_path), "--name", "group"])
    with pytest.raises(ProcessLookupError):
        os.kill(int(began.read_text()), 0)


def test_jobs_and_retries_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--seeds", "2", "--jobs", "0", "--out", str(tmp_path)]) == 1
    assert "--jobs must be at least 1" in capsys.readouterr().err
    assert main([*TINY, "--seeds", "0", "--out", str(tmp_path)]) == 1
    assert "seeds must be at least 1" in capsys.readouterr().err


def test_sigterm_stops_all_seeds(tmp_path: Path) -> None:
    long = ["--steps", "10_000_000", "--seeds", "2", "--jobs", "1", "--out", str(tmp_path), "--name", "stop"]
    command = [sys.executable, "-m", "plasticity", *TINY, *long]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ})
    metrics = tmp_path / "stop" / "seed_1" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"seed 1: stopped" in out
    assert b"seed 2: stopped" in out
    assert read_record(metrics.parent)["status"] in ("interrupted", "stopped")
    assert not (tmp_path / "stop" / "seed_2").exists()


def test_look_takes_whole_lines_only(tmp_path: Path) -> None:
    seed = Seed(1, tmp_path)
    file = tmp_path / "metrics.jsonl"
    seed.look()  # no file yet
    file.write_text(
        '{"step": 3, "charts/SPS": 10.0, "plasticity/a/grama/all": 0.5}\n{"step": 9, "event": "redo"}\n{"ste'
    )
    seed.look()
    assert (seed.step, seed.values["charts/SPS"], seed.last_event) == (9, 10.0, "redo at 9")
    with file.open("a") as more:
        more.write('p": 12, "plasticity/b/grama/all": 0.25}\nnot json\n')
    seed.look()
    assert seed.step == 12
    assert seed.metrics() == {"grama": 0.375}
