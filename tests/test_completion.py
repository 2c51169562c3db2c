"""``plasticity --install-completion``: the shells themselves say what they would offer."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from plasticity.cli import COMMANDS
from plasticity.commands.completion import SCRIPTS, bash, words, zsh
from plasticity.commands.contents import SWITCHED, registry
from plasticity.commands.parsing import fixed_flags
from plasticity.testing.runs import QUICK_RUNS, attempt, command

LINES = {
    "tr": ["train"],
    "train sa": ["sac"],
    "list inter": ["interventions"],
    "train sac --compile a": ["auto"],
    "train sac --env x --redo.thr": ["--redo.threshold"],
    "train sac --probes ran": ["rank", "ranks"],
    "eval runs/first --epi": ["--episodes"],
    "runs --arch": ["--archive"],
    "train ppo --num-epochs 3 --no-clip": ["--no-clip-values"],
}
"""Line -> what its last word may become."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def installed(shell: str) -> Path:
    return Path(command("--install-completion", shell).removeprefix("wrote ").partition(";")[0])


def test_bash_completes() -> None:
    script = [f"source {shlex.quote(str(installed('bash')))}"]
    for line in LINES:
        before = " ".join(line.split()[:-1])
        script += [f"COMP_WORDS=(plasticity {line}) COMP_CWORD={len(line.split())}; _plasticity; "
                   f'echo "{before}|${{COMPREPLY[@]}}"']  # fmt: skip
    result = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, text=True, check=True, timeout=60)
    assert result.stderr == ""
    offered = [sorted({*line.partition("|")[2].split()}) for line in result.stdout.splitlines()]
    assert offered == list(LINES.values())


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_offers_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "words").write_text(zsh(words()).partition("_plasticity() {")[0])
    for line, expected in LINES.items():
        *before, last = line.split()
        call = f"source {shlex.quote(str(tmp_path / 'words'))}; _plasticity_words {' '.join(before)}"
        told = subprocess.run(["zsh", "-fc", call], capture_output=True, text=True, check=True, timeout=60).stdout
        assert sorted({word for word in told.split() if word.startswith(last)}) == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes() -> None:
    script = f"source {shlex.quote(str(installed('fish')))}; "
    for line, expected in LINES.items():
        call = ["fish", "--no-config", "-c", f"{script} complete -C {shlex.quote(f'plasticity {line}')}"]
        told = subprocess.run(call, capture_output=True, text=True, check=True, timeout=60).stdout
        assert {*expected} <= {row.partition("\t")[0] for row in told.splitlines()}, line


def test_scripts_know_every_command_flag_and_method() -> None:
    found = words()
    assert found.commands.keys() == COMMANDS.keys()
    for agent in QUICK_RUNS:
        flags = {flag for row in found.flags[f"train {agent}"] for flag in row.flags}
        methods = {f"--{name.replace('_', '-')}" for kind in SWITCHED for name in registry(kind)}
        assert {*fixed_flags(agent), *methods, "--resume", "--redo.every"} <= flags
    assert all(found.flags[name] for name in COMMANDS if name not in ("train", "list", "help"))
    assert not {"`", "$("} & {*bash(found).partition("_plasticity() {")[0]}  # nothing in a name is run


def test_the_shell_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in SCRIPTS:
        monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
        assert Path(command("--install-completion").removeprefix("wrote ").partition(";")[0]).is_file()
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    code, _, errors = attempt("--install-completion")
    assert code == 1
    assert "no completion for the shell 'tcsh'; pass one: --install-completion {bash,zsh,fish}" in errors
    assert "did you mean zsh?" in attempt("--install-completion", "zs")[2]
