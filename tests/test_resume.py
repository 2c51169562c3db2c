"""A run that was stopped and resumed is, bit for bit, the run that was never stopped; for every agent and method."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plasticity.agents import AGENTS, gradient
from plasticity.cli import main
from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import read_record
from plasticity.storage.rows import read_metrics

SMALL = [
    *("--steps", "240", "--seed", "3", "--num-envs", "2", "--checkpoint.every", "120", "--checkpoint.keep", "9"),
    *("--hidden", "8", "8", "--probe-every", "15", "--eval-every", "90", "--eval-episodes", "2", "--log-every", "7"),
    *("--max-episode-steps", "45", "--quiet"),
]
REPLAY = ["--batch-size", "8", "--learning-starts", "40", "--buffer-size", "100"]
AGENT = {
    "sac": ["--env", "Pendulum-v1", *REPLAY],
    "td3": ["--env", "Pendulum-v1", *REPLAY],
    "dqn": ["--env", "CartPole-v1", *REPLAY, "--train-every", "2"],
    "ppo": ["--env", "Pendulum-v1", "--num-steps", "32", "--num-minibatches", "4", "--num-epochs", "2"],
}
METHOD = {
    "redo": ["--redo", "--redo.every", "20", "--redo.threshold", "0.4"],
    "regrama": ["--regrama", "--regrama.every", "20", "--regrama.threshold", "0.4"],
    "ne": ["--ne", "--ne.every", "10"],
    "swd": ["--swd", "--swd.horizon", "50"],
    "least": ["--least"],
    "reset": ["--reset", "--reset.every", "60"],
    "shrink_perturb": ["--shrink-perturb", "--shrink-perturb.every", "40"],
    "plasticity_injection": ["--plasticity-injection", "--plasticity-injection.at", "70"],
}
ON_POLICY = {"ppo"}
TIMED = re.compile(r"time|charts/SPS|plasticity/overhead|interventions/\w+/seconds")  # all that time tells
NEEDS_REPLAY = {"swd", "least"}


def rows(folder: Path) -> list[dict[str, Any]]:
    kept = [{k: v for k, v in row.items() if not TIMED.fullmatch(k)} for row in read_metrics(folder)]
    return [row for row in kept if row.keys() != {"step"}]


def same(a: Any, b: Any, where: str = "") -> None:
    """Assert that two nested states are equal, bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{index}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)), f"{where}: {a} != {b}"


def stopped_halfway(whole: Path, to: Path) -> Path:
    """Copy a finished run as a kill after its first checkpoint would have left it, rows of later steps included."""
    shutil.copytree(whole, to)
    _, *later = Checkpoints(to / "checkpoints").all()
    assert later
    for folder in [*later, to / "model"]:
        shutil.rmtree(folder)
    return to


def test_an_environment_that_imports_a_module_must_be_typed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "gymnasium.envs.classic_control:Pendulum-v1"
    command = ["train", "sac", "--env", name, *REPLAY, *SMALL, "--out", str(tmp_path), "--name", "module"]
    assert main(command) == 0
    assert main(["train", "--resume", str(tmp_path / "module"), "--steps", "300"]) == 1
    assert f"pass --env {name}" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "module"), "--steps", "300", "--env", name]) == 0
    assert read_record(tmp_path / "module")["steps_done"] == 300


# Those of SAC, and every agent without a method, are in the batteries: test_batteries.py.
CBP = ["--cbp.rate", "0.03", "--cbp.maturity", "4"]
"""Settings with which layers that cannot be cut are found, and left alone from then on, before the checkpoint."""
TWINS = ("redo", "least", "plasticity_injection")
"""Methods with which TD3, whose loop and memory are SAC's, is resumed quickly; with the others it is slow."""
CASES = [
    pytest.param(agent, method, marks=() if agent != "td3" or method in ("none", *TWINS) else pytest.mark.slow)
    for agent in sorted(AGENT.keys() - {"sac"})
    for method in METHOD
    if not (agent in ON_POLICY and method in NEEDS_REPLAY)
]


def test_every_agent_is_covered() -> None:
    assert {*AGENT, "supervised"} == AGENTS.keys()  # that one: test_supervised.py


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what a method says about so small a run is not the subject
@pytest.mark.parametrize(("agent", "method"), CASES)
@pytest.mark.some(10)
def test_resuming_changes_nothing(agent: str, method: str, tmp_path: Path) -> None:
    assert_resumes(agent, METHOD[method], tmp_path)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("agent", ["sac", "ppo"])
def test_resuming_in_the_middle_of_a_window_changes_nothing(agent: str, tmp_path: Path) -> None:
    state = assert_resumes(agent, ["--probe-window", "15"], tmp_path)  # as long as --probe-every: it never pauses
    gathered = state["callbacks"]["measure"]["gathered"]
    assert all(network["num_passes"] > 1 for network in gathered.values())
    assert len(gathered) == {"sac": 3, "ppo": 2}[agent]


def assert_resumes(agent: str, options: list[str], tmp_path: Path) -> dict[str, Any]:
    """Assert that a run that was stopped goes on to the same state and rows, and return the state it began with."""
    where = ["--out", str(tmp_path), "--name", "whole"]
    assert main(["train", agent, *AGENT[agent], *SMALL, *options, *where]) == 0
    resumed = stopped_halfway(tmp_path / "whole", tmp_path / "resumed")
    _, begin = Checkpoints(resumed / "checkpoints").load_latest()
    assert main(["train", "--resume", str(resumed)]) == 0
    states = [Checkpoints(tmp_path / name / "checkpoints").load_latest() for name in ("whole", "resumed")]
    assert [step for step, _ in states] == [240, 240]
    same(states[1][1], states[0][1], "state")
    assert rows(resumed) == rows(tmp_path / "whole")
    assert read_record(resumed)["eval_returns"] == read_record(tmp_path / "whole")["eval_returns"]
    return begin


OBSERVED = ["--probes", "dormancy", "grama", "rank", "weight_change", "--probe-window", "3"]
METERS = {
    "ppo": ["--policy", "--churn"],
    "dqn": ["--churn", "--overestimation", "--target-distance", "--replay"],
    "sac": ["--critic-disagreement", "--feature-dot", "--fit-probe", "--policy"],
    "td3": ["--churn", "--critic-disagreement", "--target-distance"],
}
EDITED = ["--ne", "--ne.every", "10", "--redo", "--redo.every", "20", "--parseval", "--l2-init", "--infer", "--chain"]


@pytest.mark.usefixtures("as_traced")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("after", [0, 20, 100], ids=lambda updates: f"from update {updates}")
@pytest.mark.parametrize("options", [OBSERVED, EDITED], ids=["observed", "edited"])
@pytest.mark.parametrize("agent", sorted(AGENT))
@pytest.mark.some(2, rotates=True)
def test_resuming_changes_nothing_where_updates_are_compiled(
    agent: str, options: list[str], after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eager update in place of a compiled one would differ in the last bits."""
    monkeypatch.setattr(gradient, "COMPILE_AFTER", after)
    more = METERS[agent] if options is OBSERVED else []
    assert_resumes(agent, ["--compile", "auto", *options, *more], tmp_path)


@pytest.mark.parametrize(
    "method",
    ["parseval", *(pytest.param(m, marks=pytest.mark.slow) for m in ("weight-clipping", "infer", "chain", "cbp"))],
)
def test_layers_of_an_injection_after_a_resume_are_known(method: str, tmp_path: Path) -> None:
    at, more = ("60", CBP) if method == "cbp" else ("150", [])
    options = [f"--{method}", *more, "--plasticity-injection", "--plasticity-injection.at", at]
    assert_resumes(
        "sac", [*options, *(["--weight-clipping.no-outputs"] if method == "weight-clipping" else [])], tmp_path
    )


@pytest.mark.parametrize(("at", "before"), [("80", True), pytest.param("90", False, marks=pytest.mark.slow)])
@pytest.mark.some(1)
def test_what_was_known_of_modules_that_an_injection_replaced_goes_with_them(
    at: str, before: bool, tmp_path: Path
) -> None:
    """The checkpoint is written between injection and next update, copy and measurement; or before the injection."""
    begin = assert_resumes("sac", ["--chain", "--plasticity-injection", "--plasticity-injection.at", at], tmp_path)
    assert any("frozen" in name for name in begin["agent"]["networks"]["critic_1"]) == before
    assert not any("frozen" in name for name in begin["callbacks"]["chain"]["kept"]["critic_1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", ["--spectral-normalization", "--spectral", "--knife --knife.every 20 --knife.window 5"]
)
def test_numbers_do_not_depend_on_where_weights_lie_in_memory(options: str, tmp_path: Path) -> None:
    """After a resume weights lie elsewhere until the first step, and products by a vector may round differently."""
    assert_resumes("sac", options.split(), tmp_path)
