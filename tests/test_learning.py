"""Do the agents learn? Small budgets and fixed seeds, two agents in the quick tests; and the table of the full budgets.

The bars lie far above what an agent reaches that does not learn, and below what three seeds reached (in the comments).
"""

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from plasticity.agents import AGENTS
from plasticity.agents.evaluate import evaluate
from plasticity.agents.train import train
from plasticity.envs import make_env

LEARNING = Path(__file__).parents[1] / "benchmarks" / "learning"


def learned(agent_name: str, env_name: str, steps: int, num_envs: int = 1, seed: int = 0, **settings: Any) -> float:
    """Return the mean return of ten episodes after training."""
    kind, config = AGENTS[agent_name]
    env, judge = make_env(env_name, num_envs=num_envs, seed=seed), make_env(env_name, num_envs=10, seed=seed + 100)
    agent = kind(env.observation_space, env.action_space, config(**settings), num_envs=num_envs, seed=seed)
    train(env, agent, steps)
    return evaluate(agent, judge, 10).mean().item()


PENDULUM = {"hidden": (64, 64), "batch_size": 64, "learning_starts": 500, "gamma": 0.95}


@pytest.mark.slow  # test_sac learns known values and the rewarded action quickly
def test_sac_swings_the_pendulum_up() -> None:
    # seeds 0 to 2: -177, -138, -113; before learning -1249 at best
    assert learned("sac", "Pendulum-v1", 5_000, **PENDULUM, actor_lr=1e-3) > -300


@pytest.mark.slow  # test_td3 learns true values and best actions quickly
def test_td3_swings_the_pendulum_up() -> None:
    # seeds 0 to 2: -180, -126, -117; before learning -1249 at best
    assert learned("td3", "Pendulum-v1", 8_000, **PENDULUM) > -400


@pytest.mark.slow  # test_ppo learns true values and best actions quickly
def test_ppo_balances_the_pole() -> None:
    # seeds 0 to 2: 500, 500, 377; before learning 105 at best
    assert learned("ppo", "CartPole-v1", 50_176, num_envs=4, num_epochs=10, anneal_steps=0) > 250


@pytest.mark.slow  # test_dqn learns true values and best actions quickly
def test_dqn_balances_the_pole() -> None:
    # seeds 0 to 2: 128, 276, 153; before learning 11 at best
    settings = {"hidden": (64, 64), "lr": 1e-3, "batch_size": 128, "double": True, "exploration_steps": 10_000}
    assert learned("dqn", "CartPole-v1", 20_000, **settings, train_every=4, target_every=50) > 80


# --- the table ---


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of benchmarks/learning, which is no package."""
    monkeypatch.syspath_prepend(LEARNING)
    names = ("rows", "results", "run", "table")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in names}


def test_the_commands_of_all_rows_are_understood(learning: dict[str, ModuleType]) -> None:
    from plasticity.commands.parsing import parse

    for name, row in learning["rows"].ROWS.items():
        _, _, agent, *rest = row.command(seed=7)
        config = parse(agent, rest)
        assert (config.env, config.steps, config.seed, config.eval_episodes) == (row.env, row.steps, 7, 20), name
        assert config.probes == (), name


def test_the_table_in_the_docs_is_what_the_results_say(learning: dict[str, ModuleType]) -> None:
    table = learning["table"]
    text = table.DOC.read_text()
    assert table.written(text) == text, "run: python benchmarks/learning/table.py --write"


def test_the_numbers_of_a_row(learning: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, table, row = learning["results"], learning["table"], learning["rows"].ROWS["td3-pendulum"]
    for seed, mean in ((2, -150.0), (1, -120.0), (4, -200.0), (3, -1000.0), (9, -160.0)):
        record = {"returns": [mean - 10, mean + 10], "command": " ".join(row.command(seed))}
        results.add("td3-pendulum", seed, record, tmp_path)
    stale = {"returns": [0.0], "command": "plasticity train td3 with settings that are no longer the row's"}
    results.add("td3-pendulum", 5, stale, tmp_path)
    records = results.load("td3-pendulum", tmp_path)
    assert list(records) == [1, 2, 3, 4, 9]
    values = results.summary(records)
    assert values["median"] == -160
    assert values["iqm"] == pytest.approx(-170)  # of 200, 160, 150
    assert -1000 < values["low"] < -170 < values["high"] < -120
    monkeypatch.setattr(table, "load", lambda name: results.load(name, tmp_path))
    assert "-120 -150 -1000 -200 -160 | **-160** | -170 [" in table.table()
    assert table.table().count("not measured") == len(learning["rows"].ROWS) - 1


@pytest.mark.slow
def test_a_row_runs_once_per_seed_and_command(
    learning: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, run = learning["rows"], learning["run"]
    flags = "--hidden 8 --batch-size 4 --learning-starts 10 --max-episode-steps 5"
    row = rows.Row("td3", "Pendulum-v1", 20, (1, 2), flags, bar=-1e6, reference="none", source="nowhere")
    monkeypatch.setitem(rows.ROWS, "tiny", row)
    options = ["tiny", "--seeds", "1", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "runs")]
    assert run.main(options) == 0
    record = json.loads((tmp_path / "results" / "tiny.json").read_text())["seeds"]["1"]
    assert len(record["returns"]) == 20
    assert shlex.split(record["command"]) == row.command(1)
    assert np.isfinite(record["returns"]).all()
    assert {"python", "torch", "gymnasium"} <= record["versions"].keys()
    assert "n = 1\nthe bar is -1e+06: passed" in capsys.readouterr().out

    calls: list[list[str]] = []

    def crash(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "it broke")

    monkeypatch.setattr(subprocess, "run", crash)
    assert run.main(options) == 0
    assert calls == []
    assert run.main([*options, "--force"]) == 1
    assert "tiny seed 1 failed:\nit broke" in capsys.readouterr().err
    assert run.main(["tiny", *options[3:]]) == 1  # its own seeds: the second is missing
    assert [call[call.index("--seed") + 1] for call in calls] == ["1", "2"]
    assert list(json.loads((tmp_path / "results" / "tiny.json").read_text())["seeds"]) == ["1"]
