"""run.json is read in one place: written with its format, refused in one line if it is damaged or newer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runfolders import make_run

from plasticity.cli import main
from plasticity.dashboard.tab.folders import RunFolder
from plasticity.reports.runs import load_runs
from plasticity.storage.record import RECORD_FORMAT, package_version, read_record, write_record

RECORD = {"agent": "sac", "config": {"env": "Walk-v0", "seed": 1}, "status": "finished"}


def test_a_record_has_a_format_and_a_version(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == {"format": RECORD_FORMAT, "version": package_version(), **RECORD}


def test_a_record_of_the_first_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RECORD))
    assert read_record(tmp_path) == RECORD


DAMAGED: list[Any] = [
    ("", "damaged"),
    ("[1]", "no JSON object"),
    ("[" * 100_000, "damaged"),
    ('{"agent": "sac"}', "lacks the agent or its config"),
    ('{"agent": 3, "config": {}}', "lacks the agent or its config"),
    ('{"agent": "sac", "config": {}, "format": "two"}', "its format is 'two', no number"),
    ('{"agent": "sac", "config": {}, "format": true}', "its format is True"),
    ('{"agent": "sac", "config": {}, "format": 3, "version": "9.1"}', r"has format 3, written by version 9\.1.*newer"),
    (b"\xff\xfe", "damaged"),
]


@pytest.mark.parametrize(("text", "reason"), DAMAGED)
def test_a_damaged_or_newer_record_is_one_line_everywhere(
    text: str | bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"good{seed}", [1.0, 2.0], seed=seed)
    bad = make_run(tmp_path / "bad", [3.0, 4.0], seed=3)
    (bad / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=reason) as caught:
        read_record(bad)
    assert str(bad) in str(caught.value)
    for command in (["eval", str(bad)], ["train", "--resume", str(bad)], ["probe", str(bad)]):
        assert main(command) == 1
        *_, line = capsys.readouterr().err.splitlines()  # training says first what it waits for
        assert line.startswith(f"plasticity {command[0]}: ")
        assert str(bad) in line
    runs, notes = load_runs([tmp_path])  # the other runs are read all the same
    assert len(runs) == 3
    assert any(f"{bad}: settings unknown" in note for note in notes)
    assert RunFolder(bad).record() is None
    assert main(["compare", str(tmp_path / "good1"), str(tmp_path / "good2")]) == 0


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run: it has no run\.json"):
        read_record(tmp_path)


def test_rows_that_are_odd_are_left_out_one_by_one(tmp_path: Path) -> None:
    odd = ['{"step": null}', '{"step": "1"}', '{"loss": 1.0}', '{"step": true}', '{"step": NaN}', "null", "[" * 5000]
    odd += ['{"step": 1' + "0" * 400 + "}", '{"step": 5, "purge_step": "x"}']
    kept = ['{"step": 30, "charts/eval_return": 1' + "0" * 400 + "}", '{"step": 31, "a": true, "b": "x", "c": [1]}']
    run = make_run(tmp_path / "run", [1.0, 2.0], tail="".join(f"{line}\n" for line in odd + kept))
    (loaded,), notes = load_runs([run])
    assert f"{run}: left out {len(odd) - 1} damaged lines of metrics.jsonl" in notes
    assert any(f"{run}: left out 1 line of metrics.jsonl without a step" in note for note in notes)
    assert loaded.series["charts/eval_return"].finite().values.tolist() == [1.0, 2.0]
    assert "a" not in loaded.series
