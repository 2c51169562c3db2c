"""Every command at its defaults, on runs of every agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from plasticity.cli import COMMANDS, main
from plasticity.storage.folder import Checkpoints
from plasticity.testing.runs import QUICK_RUNS, SHORT, command

CHECKED = {"train", "eval", "video", "probe", "diagnose", "fuse", "reset-to", "report", "compare", "runs"}
"""Commands that are run here on runs of every agent; `fuse` and `reset-to` have no defaults for the earlier state."""
ELSEWHERE = {
    "list": "no runs",
    "help": "no runs",
    "doctor": "test_doctor.py",
    "bench": "test_bench.py",
    "stream": "test_streams.py",
    "dashboard": "test_dashboard.py",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run of every agent, as the default of `--out` and the commands' first argument name it."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    for agent, options in QUICK_RUNS.items():
        command("train", agent, *options, *SHORT, "--out", folder, "--name", agent)
    command("train", "ppo", *QUICK_RUNS["ppo"], *SHORT, "--seed", "4", "--out", folder, "--name", "ppo_4")
    return folder


@pytest.mark.parametrize("agent", QUICK_RUNS)
@pytest.mark.some(3)
def test_a_run_of_every_agent_is_played_and_probed_at_the_defaults(agent: str, runs: Path) -> None:
    assert "10 episodes" in command("eval", runs / agent)
    assert "dormancy" in command("probe", runs / agent)
    latest = sorted((runs / agent / "checkpoints").iterdir())[-1]
    assert "10 episodes" in command("eval", latest)


@pytest.mark.parametrize("agent", ["ppo", *(pytest.param(a, marks=pytest.mark.slow) for a in ("sac", "td3", "dqn"))])
def test_a_run_of_every_agent_is_filmed_mixed_and_taken_back_at_the_defaults(
    agent: str, runs: Path, tmp_path: Path
) -> None:
    assert str(runs / agent / "video.mp4") in command("video", runs / agent)
    first = sorted((runs / agent / "checkpoints").iterdir())[0]
    layer = first_layer(runs / agent)
    for words in (("fuse",), ("reset-to", "--units", f"{layer}:0")):
        name, *more = words
        told = command(name, runs / agent, "--base", first, "--out", tmp_path / name, *more)
        assert str(tmp_path / name) in told
        assert "10 episodes" in command("eval", tmp_path / name)


def first_layer(run: Path) -> str:
    """Return network/layer of a layer of a saved agent."""
    networks = Checkpoints(run / "model").load_latest()[1]["agent"]["networks"]
    name, weights = next(iter(networks.items()))
    return f"{name}/{next(key for key, value in weights.items() if value.dim() == 2).removesuffix('.weight')}"


@pytest.mark.slow
@pytest.mark.parametrize("agent", QUICK_RUNS)
def test_a_run_of_every_agent_is_diagnosed_at_the_defaults(agent: str, runs: Path) -> None:
    assert "fresh" in command("diagnose", runs / agent)


def test_runs_of_every_agent_are_compared_and_reported_at_the_defaults(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    assert main(["report", "runs"]) == 0
    assert (runs.parent / "report" / "report.html").is_file()
    capsys.readouterr()
    assert main(["compare", "runs"]) == 0
    told = capsys.readouterr().out
    assert all(f"left out runs/{agent}: the only run" in told for agent in ("dqn", "sac", "td3"))
    assert "| ppo" in told
    assert main(["runs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(QUICK_RUNS) + 1


@pytest.mark.parametrize("name", ["list", "help"])
def test_lists_and_help_at_the_defaults(name: str) -> None:
    assert "redo" in command(name)


def test_every_command_is_among_them() -> None:
    assert COMMANDS.keys() == CHECKED | ELSEWHERE.keys()
