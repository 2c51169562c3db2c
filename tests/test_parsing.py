"""The command line of ``plasticity train``: what is switched on, in what order, and what may not be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from plasticity.agents import AGENTS
from plasticity.agents.parts import NORMS
from plasticity.callback import Callback
from plasticity.cli import main
from plasticity.commands.parsing import parse
from plasticity.commands.settings import chosen, settings
from plasticity.interventions import INTERVENTIONS, ReDo
from plasticity.meters import METERS, Churn
from plasticity.storage.record import read_record

ENV = ["--env", "Pendulum-v1"]


@pytest.mark.parametrize("agent", AGENTS)
def test_the_settings_are_the_dataclasses_own(agent: str) -> None:
    config = parse(agent, ENV)
    plain = AGENTS[agent][1]()
    ours, theirs = dataclasses.asdict(config.agent), dataclasses.asdict(plain)
    assert {**ours, "anneal_steps": None} == {**theirs, "anneal_steps": None}
    assert chosen(config, "interventions") == chosen(config, "meters") == {}
    assert settings(config)["interventions"] == settings(config)["meters"] == {}


def test_what_is_on_comes_in_the_order_of_the_registries() -> None:
    flags = ["--reset", "--churn", "--target_distance", "--redo", "--shrink_perturb", "--plasticity-injection"]
    config = parse("sac", [*ENV, *flags])
    on = [name for name in INTERVENTIONS if name in ("reset", "redo", "shrink_perturb", "plasticity_injection")]
    assert list(chosen(config, "interventions")) == on
    assert list(chosen(config, "meters")) == [name for name in METERS if name in ("churn", "target_distance")]
    assert chosen(config, "interventions")["redo"] == ReDo()


def test_spellings() -> None:
    given = ["--redo", "--redo.adam_step", "zero", "--redo.networks", "critic_*", "--batch_size=32", "--no-learn-alpha"]
    given += ["--checkpoint.keep", "3", "--churn", "--churn.num-states=7", "--hidden", "8", "9", "--probes", "--quiet"]
    config = parse("sac", [*ENV, *given])
    assert (config.agent.batch_size, config.agent.learn_alpha, config.agent.hidden) == (32, False, (8, 9))
    assert (config.checkpoint.keep, config.probes, config.quiet) == (3, (), True)
    redo = chosen(config, "interventions")["redo"]
    assert (redo.adam_step, redo.networks, redo.every) == ("zero", ("critic_*",), 1000)
    assert settings(config)["meters"]["churn"]["num_states"] == 7


@pytest.mark.parametrize(("name", "preset"), [(name, p) for name, m in INTERVENTIONS.items() for p in m.PRESETS])
@pytest.mark.some(12)
def test_a_preset_is_that_of_the_method_itself(name: str, preset: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    config = parse("sac", [*ENV, flag, f"{flag}.preset", preset])
    kind: Any = INTERVENTIONS[name]
    assert chosen(config, "interventions")[name].settings() == kind(preset=preset).settings()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-method", "'my-method' cannot be switched on: a name is letters"),
        ("churn", "--churn would mean two things"),
        ("gamma", "--gamma would mean two things"),
        ("num_envs", "--num-envs would mean two things"),
        ("checkpoint", "--checkpoint would mean two things"),
        ("help", "--help would mean two things"),
        ("class", "'class' cannot be switched on"),
    ],
)
def test_a_name_is_one_flag(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTERVENTIONS, name, ReDo)
    with pytest.raises(ValueError, match=message):
        parse("sac", ENV)


@pytest.mark.parametrize("entry", [3, object, Callback])
def test_what_is_switched_on_is_a_dataclass_of_its_kind(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METERS, "mine", entry)
    with pytest.raises(ValueError, match=r"METERS\['mine'\] must be a dataclass that inherits from Meter, got"):
        parse("sac", [*ENV, "--mine"])


@pytest.mark.parametrize("entry", [AGENTS["td3"][0], (AGENTS["td3"][0], dict), 3])
def test_an_agent_is_registered_with_its_config(entry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGENTS, "mine", entry)
    with pytest.raises(ValueError, match=r"AGENTS\['mine'\] must be \(agent class, config dataclass\), got"):
        parse("mine", ENV)


def test_registries_are_read_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METERS, "mine", Churn)
    monkeypatch.setitem(NORMS, "mine", NORMS["layer"])
    monkeypatch.setitem(AGENTS, "mine", AGENTS["td3"])
    config = parse("mine", [*ENV, "--mine", "--norm", "mine"])
    assert list(chosen(config, "meters")) == ["mine"]
    assert config.agent.norm == "mine"


def test_a_run_with_a_meter_is_logged_recorded_and_goes_on(tmp_path: Path) -> None:
    sizes = "--steps 80 --learning-starts 40 --hidden 8 --batch-size 8 --quiet --probes --checkpoint.every 60"
    short = "--eval-every 0 --eval-episodes 1 --max-episode-steps 20 --target-distance --target-distance.every 5"
    assert main(["train", "sac", *ENV, *sizes.split(), *short.split(), "--out", str(tmp_path), "--name", "one"]) == 0
    assert read_record(tmp_path / "one")["config"]["meters"]["target_distance"]["every"] == 5
    assert main(["train", "--resume", str(tmp_path / "one"), "--steps", "120"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "plasticity/critic_1/target_distance/all" in row]
    assert steps[0] < 60
    assert set(range(steps[0], 120, 5)) == set(steps)  # one update per step


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--trac", "no option --trac; did you mean --optimizer trac?"),
        ("--hl-gauss", "did you mean --critic-returns hl_gauss?"),
        ("--Hadamard", "no option --Hadamard; "),
        ("--gmp", "did you mean --ne --ne.preset gmp?"),
        ("--adamrel", "did you mean --optimizer-reset --optimizer-reset.preset adamrel?"),
        ("--bbf", "--shrink-perturb --shrink-perturb.preset bbf or --horizon --horizon.preset bbf?"),
        ("--trak", "add --help for all of them"),
    ],
)
def test_a_value_in_the_place_of_a_flag_is_told_its_option(
    capsys: pytest.CaptureFixture[str], flag: str, hint: str
) -> None:
    assert main(["train", "sac", *ENV, flag, "--dry-run"]) == 2
    assert hint in capsys.readouterr().err
    if "did you mean" in hint:  # each hint is one that can be followed
        followed = hint.rpartition("did you mean ")[2].removesuffix("?").split(" or ")[0]
        parse("sac", [*ENV, *followed.split()])


def test_a_flag_that_is_nearly_the_same_comes_before_a_value_of_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sac", *ENV, "--step", "100"]) == 2
    told = capsys.readouterr().err
    assert "no option --step; did you mean --steps or --optimizer-reset --optimizer-reset.what step?" in told
