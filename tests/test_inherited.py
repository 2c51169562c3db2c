"""``--config run.toml`` and ``--like RUN``: settings in front of the flags, by name, known or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plasticity.commands.inherited import with_sources
from plasticity.commands.parsing import parse
from plasticity.commands.settings import settings
from plasticity.interventions import INTERVENTIONS
from plasticity.meters import METERS
from plasticity.storage.record import read_record
from plasticity.testing.runs import QUICK_RUNS, attempt, command

SHORT = ("--steps", "60", "--eval-episodes", "1", "--quiet")
FILE = """
agent = "sac"
env = "Pendulum-v1"
steps = 60
hidden = [8, 8]
batch-size = 8
learning_starts = 40
buffer_size = 100
probes = []
log = ["csv"]
eval_episodes = 1
churn = true
tag = ["mine"]

[checkpoint]
every = 30

[redo]
every = 20
threshold = 0.5
"""


def config_of(agent: str, *words: str) -> dict[str, Any]:
    return settings(parse(agent, words))


def test_a_file_says_what_flags_say(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(FILE)
    flags = (
        *(
            "--env",
            "Pendulum-v1",
            "--steps",
            "60",
            "--hidden",
            "8",
            "8",
            "--batch-size",
            "8",
            "--learning-starts",
            "40",
        ),
        *("--buffer-size", "100", "--probes", "--log", "csv", "--eval-episodes", "1", "--churn", "--tag", "mine"),
        *("--checkpoint.every", "30", "--redo", "--redo.every", "20", "--redo.threshold", "0.5"),
    )
    assert config_of("sac", "--config", str(tmp_path / "run.toml")) == config_of("sac", *flags)


def test_a_run_is_started_from_a_file_and_goes_on_without_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(FILE)
    command("train", "--config", file, "--steps", "40", "--no-churn", "--quiet", "--out", tmp_path, "--name", "run")
    file.unlink()
    config = read_record(tmp_path / "run")["config"]
    assert (config["steps"], config["tag"], config["meters"]) == (40, ["mine"], {})
    assert config["interventions"]["redo"]["every"] == 20
    command("train", "--resume", tmp_path / "run", "--steps", "60")
    assert read_record(tmp_path / "run")["steps_done"] == 60


def test_precedence_is_flags_file_run_defaults(tmp_path: Path) -> None:
    command("train", "sac", *QUICK_RUNS["sac"], *SHORT, "--gamma", "0.9", "--redo", "--out", tmp_path, "--name", "run")
    file = tmp_path / "other.toml"
    file.write_text("gamma = 0.8\nbatch_size = 4\n[redo]\nevery = 7\n")
    like, by_file = ("--like", str(tmp_path / "run")), ("--config", str(file))
    for words, found in [
        (like, (0.9, 8, 1000, 1)),
        ((*by_file, *like), (0.8, 4, 7, 1)),
        ((*like, *by_file, "--gamma", "0.7", "--seed=5"), (0.7, 4, 7, 5)),
    ]:
        config = config_of("sac", *words)
        redo = config["interventions"]["redo"]["every"]
        assert (config["agent"]["gamma"], config["agent"]["batch_size"], redo, config["seed"]) == found
        assert (config["name"], config["out"], config["quiet"]) == (None, "runs", False)
    assert config_of("sac", *like, "--no-redo")["interventions"] == {}
    again = config_of("sac", *like)
    own = {"name", "out", "quiet"}
    saved = read_record(tmp_path / "run")["config"]
    assert {k: v for k, v in again.items() if k not in own} == {k: v for k, v in saved.items() if k not in own}


@pytest.mark.parametrize("agent", QUICK_RUNS)
@pytest.mark.some(2)
def test_a_run_like_another_has_all_its_settings(agent: str, tmp_path: Path) -> None:
    methods = [f"--{name.replace('_', '-')}" for name in [*INTERVENTIONS, *METERS] if name != "plasticity_injection"]
    words = (*QUICK_RUNS[agent], *methods, "--plasticity-injection", "--plasticity-injection.at", "70", "--seed", "3")
    config = config_of(agent, *words)
    record = {"agent": agent, "status": "finished", "config": config}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert json.loads(json.dumps(config_of(agent, "--like", str(tmp_path)))) == json.loads(json.dumps(config))
    longer = config_of(agent, "--like", str(tmp_path), "--steps", "7000")
    assert longer["agent"].get("anneal_steps", 7000) == 7000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gama = 0.9", "run.toml has a setting 'gama' that is not known; did you mean gamma?"),
        ("[redo]\nevry = 3", "run.toml has a setting 'redo.evry' that is not known; did you mean redo.every?"),
        ("[rido]\nevery = 3", "run.toml has a setting 'rido' that is not known; did you mean redo?"),
        ("[checkpoint]\nevary = 3", "'checkpoint.evary' that is not known; did you mean checkpoint.every?"),
        ("gamma = [", "run.toml is no TOML"),
        ("redo = 3", "redo is switched on by a table, [redo], or by redo = true"),
        ("[gamma]\nx = 1", "gamma is FLOAT, not {'x': 1}"),
        ("quiet = 1", "quiet belongs to the command"),
        ('name = "x"', "name belongs to the command"),
        ("gamma = true", "Error parsing --gamma: a number is needed, got 'True'"),
        ('agent = "td3"', "run.toml is for td3, not for sac"),
        ("[agent]\ngamma = 1", 'agent is the name of one, such as "sac"'),
        ('steps = "many"', "many"),
    ],
)
def test_what_is_wrong_with_a_file_is_a_line_that_names_it(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    code, _, errors = attempt("train", "sac", "--env", "Pendulum-v1", "--config", tmp_path / "run.toml", "--quiet")
    assert code != 0
    assert len(errors.strip().splitlines()) == 1
    assert said in errors


def test_what_is_wrong_with_a_source_is_a_line(tmp_path: Path) -> None:
    foreign = {"agent": "sac", "config": {"env": "a:B-v0", "agent": {"gone": 1}, "interventions": {}}}
    (tmp_path / "run.json").write_text(json.dumps(foreign))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for words, said in [
        (("--like", tmp_path), "run.json, of another version, has a setting 'gone' that is not known"),
        (("--like", tmp_path / "nowhere"), "is not a run"),
        (("--config", tmp_path / "none.toml"), "none.toml cannot be read: No such file"),
        (("--config", tmp_path / "binary.toml"), "is no TOML"),
        (("--config",), "--config needs a path"),
        (("--like", tmp_path, "--like", tmp_path), "--like is given twice"),
    ]:
        code, _, errors = attempt("train", "sac", "--quiet", *words)
        assert code != 0
        assert said in errors
    code, _, errors = attempt("train", "--config", _file(tmp_path, 'env = "CartPole-v1"'), "--quiet")
    assert code != 0
    assert 'an agent is needed: plasticity train AGENT ..., or agent = "NAME" in the file of --config' in errors
    assert "--env" not in with_sources("sac", ["--config", str(_file(tmp_path, "gamma = 0.5"))])
    foreign["config"]["agent"] = {}  # type: ignore[index]
    (tmp_path / "run.json").write_text(json.dumps(foreign))
    assert "--env" not in with_sources("sac", ["--like", str(tmp_path)])  # it would import a module


def _file(folder: Path, text: str) -> Path:
    (folder / "good.toml").write_text(text)
    return folder / "good.toml"
