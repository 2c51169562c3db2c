"""Every command at its defaults, on runs of every agent."""

from __future__ import annotations

from pathlib import Path

import pytest
from inside import seeds_inside

from plasticity.cli import COMMANDS, main
from plasticity.storage.folder import Checkpoints
from plasticity.testing.runs import QUICK_RUNS, SHORT, attempt, command, last_state, require_same, stopped

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
    """A folder with two short runs of every agent, where the default of `--out` and the commands' first argument is."""
    folder = tmp_path_factory.mktemp("work") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        seeds_inside(patch)
        for agent, options in QUICK_RUNS.items():
            few = ("--steps", "120", "--checkpoint.every", "60", "--seeds", "2", "--out", folder, "--name", agent)
            command("train", agent, *options, *SHORT, "--seed", "1", *few)
    return folder


@pytest.mark.parametrize("agent", QUICK_RUNS)
@pytest.mark.some(3)
def test_a_run_of_every_agent_is_played_probed_and_resumed_at_the_defaults(
    agent: str, runs: Path, tmp_path: Path
) -> None:
    run = runs / agent / "seed_1"
    assert "10 episodes" in command("eval", run)
    assert "dormancy" in command("probe", run)
    latest = sorted((run / "checkpoints").iterdir())[-1]
    assert "10 episodes" in command("eval", latest)
    half = stopped(run, tmp_path / "run")
    assert "dormancy" in command("probe", half)  # a run without a model: its newest checkpoint
    command("train", "--resume", half)
    require_same(last_state(half), last_state(run), "state of the resumed run")


DRAWN = {"ppo", "supervised"}
"""Agents of which films and mixtures are quick tests."""


@pytest.mark.parametrize("agent", [pytest.param(a, marks=() if a in DRAWN else pytest.mark.slow) for a in QUICK_RUNS])
def test_a_run_of_every_agent_is_filmed_mixed_and_taken_back_at_the_defaults(
    agent: str, runs: Path, tmp_path: Path
) -> None:
    run = runs / agent / "seed_1"
    if agent == "supervised":
        assert "bitflip cannot be drawn: it has no render() that returns an image" in attempt("video", run)[2]
    else:
        assert str(run / "video.mp4") in command("video", run)
    first = sorted((run / "checkpoints").iterdir())[0]
    layer = first_layer(run)
    for words in (("fuse",), ("reset-to", "--units", f"{layer}:0")):
        name, *more = words
        told = command(name, run, "--base", first, "--out", tmp_path / name, *more)
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
    assert "fresh" in command("diagnose", runs / agent / "seed_1")


def test_runs_of_every_agent_are_compared_and_reported_at_the_defaults(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs.parent)
    assert main(["report", "runs"]) == 0
    page = (runs.parent / "report" / "report.html").read_text(encoding="utf-8")
    assert all(f"runs/{agent}/seed_2" in page for agent in QUICK_RUNS)
    capsys.readouterr()
    assert main(["compare", "runs"]) == 0
    told = capsys.readouterr().out
    assert all(f"| {agent}" in told for agent in QUICK_RUNS)
    assert main(["runs"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2 * len(QUICK_RUNS)


@pytest.mark.parametrize("name", ["list", "help"])
def test_lists_and_help_at_the_defaults(name: str) -> None:
    assert "redo" in command(name)


def test_every_command_is_among_them() -> None:
    assert COMMANDS.keys() == CHECKED | ELSEWHERE.keys()
