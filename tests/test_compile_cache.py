"""Compiled code is kept on disk: a second process that starts the same run finds all of it there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [
    *("train", "dqn", "--env", "CartPole-v1", "--compile", "on", "--steps", "70", "--learning-starts", "64"),
    *("--train-every", "1", "--max-episode-steps", "50", "--eval-every", "0", "--eval-episodes", "1"),
]
"""A run with compiled updates, single steps and probes."""
NOTED = """#!/bin/sh
echo "$*" >> "$CXX_LOG"
exec g++ "$@"
"""
"""A compiler that notes with which arguments it was called; its path is part of what is looked for in the cache."""


def compiled(folder: Path, name: str) -> list[str]:
    """Train in a process of its own; return the calls of the compiler that made a library."""
    log, compiler = folder / f"{name}.log", folder / "noted-g++"
    compiler.write_text(NOTED)
    compiler.chmod(0o755)
    places = {"CXX": str(compiler), "CXX_LOG": str(log), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    env = {**os.environ, **places}
    command = [sys.executable, "-m", "plasticity", *RUN, "--out", str(folder), "--name", name]
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=500)
    return [call for call in log.read_text().splitlines() if ".so" in call or " -c " in call]


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.skipif(
    sys.platform == "win32" or not shutil.which("g++"), reason="the compiler is noted by a shell script"
)
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    assert compiled(tmp_path, "first")
    before = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert any(path.suffix == ".so" for path in before)
    assert compiled(tmp_path, "second") == []
    assert {path for path in (tmp_path / "cache").rglob("*") if path.is_file()} == before
