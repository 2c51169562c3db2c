"""Every command at its defaults, on runs of every agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from plasticity.cli import COMMANDS, main
from plasticity.testing.runs import QUICK_RUNS, SHORT, command

CHECKED = {"train", "eval", "probe", "report", "compare", "list", "help"}
"""Commands that are run here; the dashboard's defaults are in `test_dashboard.py`."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run of every agent, as the default of `--out` and the commands' first argument name it."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    for agent, options in QUICK_RUNS.items():
        command("train", agent, *options, *SHORT, "--out", folder, "--name", agent)
    command("train", "ppo", *QUICK_RUNS["ppo"], *SHORT, "--seed", "4", "--out", folder, "--name", "ppo_4")
    return folder


@pytest.mark.parametrize("agent", QUICK_RUNS)
def test_a_run_of_every_agent_is_played_and_probed_at_the_defaults(agent: str, runs: Path) -> None:
    assert "10 episodes" in command("eval", runs / agent)
    assert "dormancy" in command("probe", runs / agent)
    latest = sorted((runs / agent / "checkpoints").iterdir())[-1]
    assert "10 episodes" in command("eval", latest)


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


@pytest.mark.parametrize("name", ["list", "help"])
def test_lists_and_help_at_the_defaults(name: str) -> None:
    assert "redo" in command(name)


def test_every_command_is_among_them() -> None:
    assert CHECKED | {"dashboard"} <= COMMANDS.keys()
