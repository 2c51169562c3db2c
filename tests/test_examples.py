"""Every example runs as written, only shorter, with warnings as errors."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ARGUMENTS = {
    "attach_to_any_model.py": ["20"],
    "intervention_in_a_supervised_loop.py": ["40"],
    "train_sac.py": ["120"],
    "two_interventions_on_sac.py": ["120"],
    "write_a_probe.py": [],
    "write_an_intervention.py": [],
}


def run(name, folder):
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *ARGUMENTS[name]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(name, tmp_path):
    result = run(name, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "dormancy" in result.stdout
    assert not result.stderr


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 40
