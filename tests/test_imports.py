"""``plasticity --import MODULE``: what it registers is trained with, listed, recorded, and asked for again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plasticity.agents import AGENTS
from plasticity.agents.optimizers import OPTIMIZERS
from plasticity.cli import main
from plasticity.commands import imports
from plasticity.envs import ENVS
from plasticity.interventions import INTERVENTIONS
from plasticity.probes import PROBES
from plasticity.storage.record import read_record
from plasticity.writers import WRITERS

MODULE = '''
import gymnasium
from dataclasses import dataclass
from typing import ClassVar

from torch.optim import Adam

from plasticity import PROBES, Probe
from plasticity.agents import AGENTS
from plasticity.agents.optimizers import OPTIMIZERS
from plasticity.envs import ENVS, Family
from plasticity.interventions import INTERVENTIONS, Intervention


class Magnitude(Probe):
    """Mean magnitude of the activations."""

    def reset(self):
        self.rows = []

    def on_forward(self, activations):
        self.rows.append(activations.abs().mean())

    def compute(self):
        return sum(self.rows) / len(self.rows)


@dataclass
class Nothing(Intervention):
    """Do nothing."""

    NAME: ClassVar[str] = "nothing"
    KIND: ClassVar[str] = "idle"
    rate: float = 0.5
    """Nothings per step."""


PROBES["magnitude"] = Magnitude
INTERVENTIONS["nothing"] = Nothing
AGENTS["my_sac"] = AGENTS["sac"]
OPTIMIZERS["mine"] = Adam
ENVS["mine"] = Family("mine/", ids=lambda: ["mine/swing"], make=lambda name, seed, limit: gymnasium.make("Pendulum-v1"))
'''
RUN = [
    *("train", "my_sac", "--env", "mine/swing", "--probes", "magnitude", "--nothing", "--nothing.rate", "0.25"),
    *("--optimizer", "mine", "--steps", "60", "--learning-starts", "40", "--hidden", "8", "--batch-size", "8"),
    *(
        "--probe-every",
        "5",
        "--eval-every",
        "0",
        "--eval-episodes",
        "1",
        "--max-episode-steps",
        "20",
        "--compile",
        "off",
    ),
]
REGISTRIES = (AGENTS, OPTIMIZERS, ENVS, INTERVENTIONS, PROBES, WRITERS)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module, and after it the registries and imports as they were."""
    (tmp_path / "my_things.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = [dict(registry) for registry in REGISTRIES]
    yield tmp_path
    forget(before)


def forget(before: list[dict]) -> None:
    """Undo an import, as if in a new process."""
    imports.IMPORTED.clear()
    sys.modules.pop("my_things", None)
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(entries)  # type: ignore[attr-defined]


def test_a_run_with_things_of_ones_own(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [dict(registry) for registry in REGISTRIES]
    assert main(["--import", "my_things", *RUN, "--name", "one", "--checkpoint.every", "50"]) == 0
    folder = fresh / "runs" / "one"
    record = read_record(folder)
    assert record["imports"] == ["my_things"]
    assert record["config"]["interventions"]["nothing"]["rate"] == 0.25
    assert "plasticity/actor/magnitude/all" in (folder / "metrics.jsonl").read_text()
    for command in (["eval", str(folder)], ["probe", str(folder)], ["train", "--resume", str(folder)]):
        forget(before)
        capsys.readouterr()
        assert main(command) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{folder} was trained with --import my_things; if you trust that, put it in front: plasticity " in error
        assert "my_things" not in sys.modules  # a run folder never makes anything be imported
        extra = ["--steps", "80"] if command[0] == "train" else ["--episodes", "1"] if command[0] == "eval" else []
        assert main(["--import=my_things", *command, *extra]) == 0


@pytest.mark.slow  # two more processes; the flags that they get are tested below
def test_every_seed_imports_it_too(fresh: Path) -> None:
    more = ["--seeds", "2", "--jobs", "2", "--name", "many", "--quiet"]
    command = [sys.executable, "-m", "plasticity", "--import", "my_things", *RUN, *more]
    result = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    for seed in (1, 2):
        assert read_record(fresh / "runs" / "many" / f"seed_{seed}")["imports"] == ["my_things"]


def test_the_process_of_each_seed_is_told(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of each process begins with the flags; the processes end at once, untrained."""
    started: list[list[str]] = []

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(command)
        return Popen(["false"], **options)

    Popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    more = ["--seeds", "2", "--jobs", "2", "--retries", "0", "--name", "many", "--quiet"]
    assert main(["--import", "my_things", *RUN, *more]) == 1
    trained = [command for command in started if "train" in command]
    assert [command[1:6] for command in trained] == [["-m", "plasticity", "--import", "my_things", "train"]] * 2


def test_lists_and_help_show_it(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--import", "my_things", "list"]) == 0
    text = capsys.readouterr().out
    for line in ("mine ", "magnitude ", "nothing ", "my_sac "):
        assert f"  {line}" in text
    assert "idle\n" in text
    assert main(["--import", "my_things", "help", "nothing"]) == 0
    assert "Nothings per step. Default: 0.5." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("absent", None, "--import absent: there is no such module; neither {cwd} nor the installed packages have it"),
        ("absent.inner", None, "--import absent.inner: ModuleNotFoundError: No module named 'absent'"),
        ("needs", "import not_there", "--import needs: ModuleNotFoundError: No module named 'not_there' ("),
        ("wrong", "x = 1\ny = x / 0", "--import wrong: ZeroDivisionError: division by zero ({cwd}/wrong.py, line 2)"),
        ("broken", "def f(:", "--import broken: SyntaxError: "),
        ("./absent", None, "--import ./absent: a module is needed, such as my_package.my_module, not a path"),
        (
            "lines",
            "raise OSError(chr(10) + 'two')",
            "--import lines: OSError: two ({cwd}/lines.py, line 1)",
        ),
        ("leaves", "raise SystemExit(0)", "--import leaves: SystemExit: 0 ("),
    ],
)
def test_a_module_that_fails_is_one_line(
    name: str, source: str | None, message: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if source is not None:
        (fresh / f"{name}.py").write_text(source)
    assert main(["--import", name, "list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("plasticity: " + message.format(cwd=fresh))
    assert imports.IMPORTED == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--import"], "--import needs the name of a module"),
        (["train", "--import", "my_things", *RUN[1:]], "before the command: plasticity --import my_things train"),
        (["list", "--import=my_things"], "before the command: plasticity --import my_things list"),
    ],
)
def test_it_comes_before_the_command(
    arguments: list[str], message: str, fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_record_without_imports_needs_none(tmp_path: Path) -> None:
    imports.require_imports({}, tmp_path)
