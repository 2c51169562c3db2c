"""``plasticity doctor`` names what is missing and what to do."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from plasticity.commands import doctor, tested
from plasticity.commands.tested import TESTED, versions_table
from plasticity.testing.runs import attempt, command

ROOT = Path(__file__).parents[1]


def test_doctor_checks_this_machine(tmp_path: Path) -> None:
    told = command("doctor", "--out", tmp_path / "runs")
    lines = {line.split()[1]: line for line in told.splitlines()}
    checks = {"python", "arithmetic", "compiler", "devices", "cuda", "threads", "rendering"}
    assert checks <= lines.keys()
    absent = [line for line in told.splitlines() if "not installed" in line]
    assert len(absent) <= 1, "one line for all packages that are not there"
    named = re.findall(r"[\w-]+", absent[0]) if absent else []
    assert all((one.package in lines) != (one.package in named) for one in TESTED)
    assert not any(line.startswith("wrong") for line in told.splitlines())
    assert "as tested" in lines["gymnasium"] or "tested is" in lines["gymnasium"]


def test_doctor_says_what_is_missing_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"nvidia-smi": "nvidia-smi"}
    monkeypatch.setattr(shutil, "which", there.get)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    missing = (tested.Tested("no-such-package", "1.0", "", ""), tested.Tested("nor-this", "1.0", "", ""))
    monkeypatch.setattr(doctor, "TESTED", (*missing, tested.Tested("numpy", "0.1", "", "")))
    monkeypatch.setattr(doctor, "devices", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "FRAME", "print('stepped'); raise SystemExit('no display')")
    (tmp_path / "file").touch()
    code, told, _ = attempt("doctor", "--out", tmp_path / "file")
    assert code == 1
    assert re.search("note +compiler +no C\\+\\+ compiler", told)
    assert re.search(r"note +not installed +no-such-package, nor-this \(.*docs/integrations.md", told)
    assert re.search(r"note +numpy +[\d.]+; tested is 0.1", told)
    assert re.search("wrong +cuda +there is a driver of NVIDIA, but this PyTorch .*: install a build", told)
    assert "ZeroDivisionError: division by zero" in told
    assert f"{tmp_path / 'file'} cannot be written; pass another --out" in told
    assert doctor.rendering().text.startswith("dm_control runs but cannot draw") or not doctor._version("dm-control")


def test_a_compiler_that_cannot_is_named_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    assert doctor.compile_error("g++") == ""
    monkeypatch.setattr(doctor, "PROGRAM", "#include <no_such_header.h>")
    assert "no_such_header.h" in doctor.compile_error("g++")
    assert doctor.compiler().state == "note"


def test_the_table_of_tested_versions_is_what_continuous_integration_installs() -> None:
    assert versions_table() in (ROOT / "docs" / "integrations.md").read_text(), "plasticity.commands.tested: TESTED"
    pinned: dict[str, str] = {}
    for name in ("constraints.txt", "constraints-third-party.txt"):
        text = (ROOT / name).read_text()
        pinned |= dict(re.findall(r"^([\w.\-]+)==([\w.]+)", text, re.MULTILINE))
    assert {one.package: one.version for one in TESTED} == {one.package: pinned.get(one.package) for one in TESTED}
    pages = {one.page for one in TESTED if one.page}
    assert all((ROOT / "docs" / f"{page}.md").exists() for page in pages)
