"""Pipes and devices in a folder of runs, names with control characters, copies of runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runfolders import make_run

from plasticity.dashboard.tab.tail import Tail
from plasticity.reports.figures import Curve, Panel, draw_curves
from plasticity.reports.series import Band
from plasticity.storage.appendfile import AppendFile
from plasticity.storage.files import is_locked, open_text, printable
from plasticity.storage.record import RECORD, read_record
from plasticity.storage.rows import METRICS_FILE, last_step, read_metrics
from plasticity.storage.scores import SCORES_FILE, ScoresFile
from plasticity.testing.runs import attempt


@pytest.fixture
def in_time() -> Iterator[None]:
    """End a test that waits for a pipe."""

    def late(*_: object) -> None:
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["pipe", "device", "folder"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with something that is no plain file by the name of each file of a run."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("a system without pipes by name")
    for name in (RECORD, METRICS_FILE, SCORES_FILE, "run.lock"):
        if request.param == "pipe":
            os.mkfifo(tmp_path / name)
        elif request.param == "device":
            (tmp_path / name).symlink_to("/dev/zero")
        else:
            (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.usefixtures("in_time")
def test_no_reader_or_writer_waits_for_what_is_no_file(odd: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_record(odd)
    with pytest.raises(OSError, match=r"plain file|directory"):
        read_metrics(odd)
    with pytest.raises(OSError, match=r"plain file|directory"):
        ScoresFile(odd)
    with pytest.raises(OSError, match="plain file"):
        AppendFile(odd / METRICS_FILE)
    assert last_step(odd) == 0
    assert Tail(odd / METRICS_FILE).fresh() == (False, [])
    assert not is_locked(odd)


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", [RECORD, METRICS_FILE, SCORES_FILE, "run.lock"])
def test_commands_name_the_run_with_a_pipe_and_go_on(tmp_path: Path, name: str) -> None:
    for seed in (1, 2, 3):
        status = "running" if seed == 3 else "finished"
        make_run(tmp_path / f"seed_{seed}", [1.0, 2.0 + seed], seed=seed, status=status)
    (tmp_path / "seed_3" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "seed_3" / name)
    told = ""
    for words in (("runs", tmp_path), ("compare", tmp_path), ("report", tmp_path, "--out", tmp_path / "out")):
        code, output, errors = attempt(*words)
        assert code == 0, errors
        told += output + errors
    assert "seed_2" in told
    assert name in (SCORES_FILE, "run.lock") or f"seed_3/{name} is damaged" in told or f"has no {name}" in told


@pytest.mark.parametrize("letters", ["\n", "\x1b[2J", "\t", "\x9b31m", "\u202e", "\x00"])
def test_control_characters_reach_no_terminal(tmp_path: Path, letters: str) -> None:
    name = f"a{letters}b"
    for seed in (1, 2):
        made = make_run(tmp_path / f"seed_{seed}", [1.0, 2.0], seed=seed, env=name, tail="{")
        if letters != "\x00":
            made.rename(tmp_path / f"{seed}{name}")
    damaged = tmp_path / f"damaged{letters.replace(chr(0), '')}"
    damaged.mkdir()
    (damaged / RECORD).write_text("{")
    for words in (("runs", tmp_path), ("compare", tmp_path), ("report", tmp_path, "--out", tmp_path / "out")):
        code, output, errors = attempt(*words)
        assert code == 0, errors
        assert printable(name) in output + errors or words[0] == "report"
        assert all(line.isprintable() for line in (output + errors).splitlines()), (output, errors)
        assert f"a{letters}b" not in output + errors


def test_an_error_is_one_line_of_plain_letters(tmp_path: Path) -> None:
    code, _, errors = attempt("report", tmp_path / "a\x1b[31m\nb")
    assert code == 1
    assert errors.startswith("plasticity report: ")
    assert "\x1b" not in errors
    assert errors.count("\n") == 1


def test_names_in_any_alphabet_stay_as_they_are() -> None:
    assert printable("é 漢字 🙂 a_b-c $x^2$") == "é 漢字 🙂 a_b-c $x^2$"
    assert printable("a\udcff\n\x1b") == r"a\udcff\n\x1b"


def test_marks_of_byte_order_are_no_damage(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [1.0, 2.0])
    for name in (RECORD, METRICS_FILE):
        file = tmp_path / "run" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_record(tmp_path / "run")["status"] == "finished"
    assert [row["charts/eval_return"] for row in read_metrics(tmp_path / "run")] == [1.0, 2.0]
    with open_text(tmp_path / "run" / RECORD) as file:
        assert file.read().startswith("{")


@pytest.mark.parametrize("missing", ["x", "batch_size", "steps", "hidden"])
def test_a_copy_that_lacks_a_setting_is_no_second_run(tmp_path: Path, missing: str) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"seed_{seed}", [1.0, 2.0 + seed], seed=seed, x=1)
    make_run(tmp_path / "copy", [1.0, 3.0], seed=1, x=1)
    record = json.loads((tmp_path / "copy" / RECORD).read_text())
    record["config"].pop(missing, None)
    record["config"]["agent"].pop(missing, None)
    (tmp_path / "copy" / RECORD).write_text(json.dumps(record))
    code, output, errors = attempt("compare", tmp_path)
    assert code == 0, errors
    assert "so not an independent run" in output
    assert "| 2 | 1: 3, 2: 4 |" in output


def test_two_runs_of_one_seed_with_other_settings_both_count(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"a_{seed}", [1.0, 2.0 + seed], seed=seed)
        make_run(tmp_path / f"b_{seed}", [1.0, 2.0 + seed], seed=seed, batch_size=64)
    assert "so not an independent run" not in attempt("compare", tmp_path)[1]


def test_panels_keep_their_height_beside_a_long_legend() -> None:
    points = Band(np.arange(2), np.arange(2.0), None, None, 1)
    heights = []
    for count in (1, 40):
        curves = [Curve(f"{i} {'long name ' * 18}", i, points) for i in range(count)]
        figure = draw_curves([[Panel("title", "return", curves)]], "steps")
        figure.draw_without_rendering()
        low, high = figure.axes[0].get_window_extent().intervaly
        heights.append((high - low) / figure.dpi)
    assert heights[1] > 0.75 * heights[0]
