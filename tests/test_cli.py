"""The command line as a person uses it: run folders, errors of one line, and the same numbers for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plasticity.cli import main
from plasticity.commands.return_text import return_text
from plasticity.commands.run import load_state
from plasticity.storage.record import read_record

TINY = [
    *(
        "--env",
        "Pendulum-v1",
        "--steps",
        "260",
        "--learning-starts",
        "200",
        "--hidden",
        "16",
        "16",
        "--batch-size",
        "16",
    ),
    *("--probe-every", "20", "--eval-every", "0", "--eval-episodes", "2", "--log-every", "20", "--quiet"),
]


def train(out: Path, name: str, *extra: str) -> Path:
    assert main(["train", "sac", *TINY, "--out", str(out), "--name", name, *extra]) == 0
    return out / name


def rows(folder: Path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("time", "charts/SPS", "plasticity/overhead")}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "first", "--seed", "5")


def test_a_run_folder_holds_record_metrics_events_and_model(finished: Path) -> None:
    record = read_record(finished)
    assert record["status"] == "finished"
    assert record["steps_done"] == 260
    assert record["config"]["seed"] == 5
    assert record["config"]["agent"]["batch_size"] == 16
    assert record["config"]["interventions"] == {}
    assert record["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert len(record["eval_returns"]) == 2
    tags = {tag for row in rows(finished) for tag in row}
    assert {"charts/episodic_return", "charts/eval_return", "losses/critic_loss", "plasticity/actor/grama/all"} <= tags
    assert len(list(finished.glob("events.out.tfevents.*"))) == 1
    assert not list(finished.glob("*.partial"))
    state = load_state(finished)["agent"]
    assert set(state["networks"]) == {"actor", "critic_1", "critic_2"}


def test_the_same_seed_writes_the_same_numbers_and_probes_do_not_matter(finished: Path, tmp_path: Path) -> None:
    again = train(tmp_path, "again", "--seed", "5")
    assert rows(again) == rows(finished)
    bare = train(tmp_path, "bare", "--seed", "5", "--probes")
    assert not any(tag.startswith("plasticity/") for row in rows(bare) for tag in row)
    states = [load_state(folder)["agent"]["networks"] for folder in (finished, again, bare)]
    for name, network in states[0].items():
        for key, value in network.items():
            assert torch.equal(value, states[1][name][key])
            assert torch.equal(value, states[2][name][key])
    assert read_record(bare)["eval_returns"] == read_record(finished)["eval_returns"]
    assert rows(train(tmp_path, "other", "--seed", "6")) != rows(finished)


def test_eval_plays_the_saved_agent(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(finished), "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert "sac on Pendulum-v1, trained for 260 steps, seed 5" in text
    assert "2 episodes" in text
    assert main(["eval", str(finished), "--episodes", "1"]) == 0
    assert "deviation" not in capsys.readouterr().out  # one episode has none
    assert main(["eval", str(finished), "--device", "cuda:99"]) == 1
    assert "--device cuda:99 cannot be used; PyTorch" in capsys.readouterr().err


def test_a_return_within_one_has_three_decimals() -> None:
    assert [return_text(value) for value in (0.4834, -1.0, 1.04, -1523.96)] == ["0.483", "-1.000", "1.0", "-1524.0"]


def test_an_intervention_is_switched_on_set_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, "redo", "--redo", "--redo.every", "10", "--redo.threshold", "0.5")
    assert read_record(folder)["config"]["interventions"]["redo"]["every"] == 10
    events = [row for row in rows(folder) if row.get("event") == "redo"]
    assert events
    assert any(neurons for event in events for neurons in event["neurons"].values())
    assert main(["train", "sac", *TINY, "--redo.every", "10"]) == 2
    assert "--redo.every sets an option of redo, which is off; switch it on with --redo" in capsys.readouterr().err


def test_dry_run_shows_settings_wiring_and_probes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "sac", *TINY, "--out", str(tmp_path / "none"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[: text.index("\n}\n") + 2])["steps"] == 260
    assert "trunk.0" in text
    assert "critic_2: what the probes measure" in text
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "sca", "--env", "x"], "no agent 'sca'; did you mean sac? there are"),
        (["train", "sac", "--env", "Pendulun-v1"], "Pendulum-v1"),
        (["train", "sac", "--env", "CartPole-v1"], "sac needs a one-dimensional Box action space, found Discrete(2)"),
        (
            ["train", "sac", "--env", "Pendulum-v1", "--probes", "dormant"],
            "dormant; did you mean dormancy? there are",
        ),
        (["train", "sac", "--env", "Pendulum-v1", "--device", "cuda:99"], "--device cuda:99 cannot be used; PyTorch"),
        (["train", "sac", "--env", "Pendulum-v1", "--device", "gpu", "--seeds", "2"], "sees cpu"),
        (["train", "sac", "--env", "Pendulum-v1", "--steps", "0"], "steps must be at least 1, got 0"),
        (["train", "sac", "--env", "Pendulum-v1", "--eval-episodes", "0"], "eval_episodes must be at least 1, got 0"),
        (["train", "sac", "--env", "Pendulum-v1", "--eval-every", "-1"], "eval_every must be at least 0, got -1"),
        (["train", "sac", "--env", "Pendulum-v1", "--gamma", "2"], "SACConfig needs gamma in [0, 1]; got gamma=2.0\n"),
        (["eval", "nowhere"], "there is no folder nowhere"),
        (["list", "agent"], "cannot list agent; did you mean agents? there are agents, envs, probes, "),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(ValueError, match="no folder"):
        main(["eval", "nowhere", "--debug"])


def test_unknown_command_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err
    assert main([]) == main(["--help"]) == 0
    assert "plasticity <command>" in capsys.readouterr().out


def test_a_folder_that_is_not_empty_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "run.json").read_bytes()
    assert main(["train", "sac", *TINY, "--out", str(finished.parent), "--name", "first"]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (finished / "run.json").read_bytes() == before


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == main(["list", "envs"]) == 0
    text = capsys.readouterr().out
    for name in (
        "sac",
        "dmc/cartpole-swingup",
        "HalfCheetah-v5",
        "grama",
        "effective_rank",
        "regrama",
        "shrink_perturb",
    ):
        assert f"  {name}" in text
    assert "``" not in text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"agent": "sac"}'])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_record(tmp_path)


def test_a_foreign_run_cannot_make_eval_import_a_module(finished: Path, tmp_path: Path) -> None:
    record = read_record(finished)
    record["config"]["env"] = "antigravity:Env-v0"
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="imports a module; pass --env"):
        main(["eval", str(tmp_path), "--debug"])


@pytest.mark.parametrize("episodes", [1, 3])
def test_ppo_is_played_in_any_number_of_environments_whatever_it_learned_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], episodes: int
) -> None:
    split = "--num-critics 2 --critic-split --num-envs 4 --num-steps 4 --num-minibatches 8 --hidden 4"
    train = f"train ppo --env CartPole-v1 --steps 16 {split} --eval-episodes 1 --probes --quiet --name split"
    assert main([*train.split(), "--out", str(tmp_path)]) == 0
    assert main(["eval", str(tmp_path / "split"), "--episodes", str(episodes)]) == 0
    returns = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("returns: "))
    assert len(returns.split()) == 1 + episodes
