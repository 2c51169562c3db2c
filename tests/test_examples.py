"""Every example runs as written, only shorter, with warnings as errors."""

import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRL = EXAMPLES.parent / "docs" / "torchrl.md"
ARGUMENTS = {
    "attach_to_any_model.py": ["20"],
    "hf_callback.py": ["20"],
    "intervention_in_a_supervised_loop.py": ["40"],
    "lightning_callback.py": ["40"],
    "sb3_callback.py": ["210"],
    "torchrl_hook.py": ["140"],
    "train_sac.py": ["120"],
    "two_interventions_on_sac.py": ["120"],
    "write_a_probe.py": [],
    "write_an_intervention.py": [],
}
NEEDS = {"hf_callback.py": "transformers", "lightning_callback.py": "lightning", "torchrl_hook.py": "torchrl"}
"""Example -> a package that the quick tests do not need: see .ci/third_party."""


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
        warnings.simplefilter("default")  # those of the packages; ours are in the output
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS[name]])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    told = capsys.readouterr()
    assert "dormancy" in told.out
    ours = told.err.splitlines() if name not in NEEDS else []
    assert all(line.startswith("plasticity: writing to runs/") for line in ours)


ADDED = {"sb3_callback.py": 3, "hf_callback.py": 3, "lightning_callback.py": 3}
"""Example -> the most lines that a script without plasticity gains, beside the argument of a call that it has."""


def added(text: str) -> list[str]:
    """Return the lines that import or make something of plasticity's, or call a method of what was made."""
    ours = {
        name.strip()
        for names in re.findall(r"^from plasticity\S* import (.*)$", text, re.M)
        for name in names.split(",")
    }
    made = set(re.findall(rf"^(\w+) = (?:{'|'.join(ours)})\(", text, re.M))
    calls = rf"^from plasticity|\b(?:{'|'.join(ours)})\(|^\s*(?:{'|'.join(made)})\.\w+\("
    return [line for line in text.splitlines() if re.search(calls, line)]


@pytest.mark.parametrize("name", ADDED)
def test_a_training_script_gains_few_lines(name: str) -> None:
    lines = added((EXAMPLES / name).read_text())
    assert 2 <= len(lines) <= ADDED[name], lines


def test_a_trainer_of_torchrl_gains_four_lines() -> None:
    (block,) = re.findall(r"^```py\n(.*?register.*?)^```$", TORCHRL.read_text(), re.M | re.S)
    assert len(added(block)) == len([line for line in block.splitlines() if line]) == 4


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 40
