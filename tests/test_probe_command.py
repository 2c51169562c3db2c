"""``plasticity probe``: the networks of a saved agent, measured on fresh data, every agent alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plasticity.agents import AGENTS
from plasticity.cli import main
from plasticity.commands.run import load_state
from plasticity.storage.folder import Checkpoints

SMALL = ["--steps", "200", "--hidden", "12", "6", "--probes", "--eval-every", "0", "--eval-episodes", "1", "--quiet"]
REPLAY = ["--batch-size", "8", "--learning-starts", "20", "--checkpoint.every", "100"]
AGENT = {
    "sac": (["--env", "Pendulum-v1", "--num-envs", "2", *REPLAY], {"actor", "critic_1", "critic_2"}),
    "td3": (["--env", "Pendulum-v1", *REPLAY], {"actor", "critic_1", "critic_2"}),
    "dqn": (["--env", "CartPole-v1", "--num-envs", "4", *REPLAY], {"q"}),
    "ppo": (["--env", "CartPole-v1", "--num-steps", "20", "--num-envs", "2"], {"actor", "critic"}),
    "supervised": (["--env", "bitflip", "--batch-size", "8"], {"net"}),
}


def test_every_agent_is_covered() -> None:
    assert AGENT.keys() == AGENTS.keys()


@pytest.mark.parametrize("agent", AGENT)
def test_every_layer_is_measured_on_all_samples(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, networks = AGENT[agent]
    assert main(["train", agent, *flags, *SMALL, "--out", str(tmp_path), "--name", "run"]) == 0
    before = load_state(tmp_path / "run")["agent"]
    arguments = ["--samples", "64", "--probes", "dormancy", "grama", "effective_rank"]
    assert main(["probe", str(tmp_path / "run"), *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["values"].keys() == networks
    assert "64 fresh transitions" in printed["measured"]
    for values in printed["values"].values():
        layers = {tag.rsplit("/", 1)[1] for tag in values} - {"all"}
        assert len(layers) == 2
        assert all(0 <= value <= 1 for tag, value in values.items() if "/dormancy/" in tag)
        ranks = [value for tag, value in values.items() if "/effective_rank/" in tag]
        assert len(ranks) == 3
        assert all(1 <= value <= 12 for value in ranks)
    after = load_state(tmp_path / "run")["agent"]
    for name in networks:
        assert all(torch.equal(v, after["networks"][name][k]) for k, v in before["networks"][name].items())


def test_a_checkpoint_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--out", str(tmp_path), "--name", "run", "--checkpoint.keep", "5"]
    assert main(["train", "sac", *AGENT["sac"][0], *SMALL, *where]) == 0
    first = Checkpoints(tmp_path / "run" / "checkpoints").all()[0]
    assert main(["probe", str(first), "--samples", "32"]) == 0
    assert "critic_1" in capsys.readouterr().out


def test_what_cannot_be_measured_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", str(tmp_path)]) == 1
    assert "is not a run" in capsys.readouterr().err
    assert main(["probe", str(tmp_path), "--samples", "1"]) == 1
    assert "samples must be at least 2" in capsys.readouterr().err
