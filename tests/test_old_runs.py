"""Run folders of 0.1.0, each stopped half-way and with the model of its end: read, evaluated, probed and resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plasticity.commands.run import load_state
from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import read_record
from plasticity.storage.rows import read_metrics
from plasticity.testing.runs import attempt, command

OLD = Path(__file__).with_name("old_runs")
RUNS = ("sac", "dqn_injected", "ppo")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(OLD / request.param, tmp_path / request.param)


@pytest.mark.parametrize("words", [("eval", "--episodes", "3"), ("eval",), ("probe", "--samples", "32")], ids=str)
def test_model_and_checkpoint_are_evaluated_and_probed(run: Path, words: tuple[str, ...]) -> None:
    for place in (run, Checkpoints(run / "checkpoints").all()[-1]):
        assert len(command(*words, place).splitlines()) >= 3


def test_it_goes_on_to_its_end(run: Path) -> None:
    # not to the weights at which the old version ended: since then, agents draw the numbers of many actions at once
    before, record = load_state(run)["agent"], read_record(run)
    shutil.rmtree(run / "model")
    command("train", "--resume", run)
    after = load_state(run)["agent"]
    for kind in ("networks", "targets"):
        for name, network in before[kind].items():
            assert after[kind][name].keys() == network.keys()
            for key, value in network.items():
                assert after[kind][name][key].shape == value.shape
                assert after[kind][name][key].isfinite().all()
    assert read_record(run)["status"] == "finished"
    assert len(read_record(run)["eval_returns"]) == len(record["eval_returns"])
    assert read_metrics(run)[-1]["step"] == 120


def test_a_default_that_is_another_one_now_is_that_of_the_run(tmp_path: Path) -> None:
    run = shutil.copytree(OLD / "dqn_injected", tmp_path / "run")
    shutil.rmtree(run / "model")
    code, _, errors = attempt("train", "--resume", run, "--target-every", "250")  # the default of today
    assert (code, "agent.target_every: 50 in the run, 250 asked for" in errors) == (1, True)
    config = tmp_path / "more.toml"
    config.write_text('loss = "mse"\n')  # which names it without a flag
    code, _, errors = attempt("train", "--resume", run, "--config", config)
    assert (code, "agent.loss: huber in the run, mse asked for" in errors) == (1, True)
    command("train", "--resume", run, "--steps", "130")
    assert read_record(run)["config"]["agent"]["target_every"] == 50


def test_they_are_compared_and_reported(tmp_path: Path) -> None:
    for name in RUNS:
        for seed in (1, 2):  # nothing is said about chance from one run
            record = shutil.copytree(OLD / name, tmp_path / "runs" / f"{name} {seed}") / "run.json"
            record.write_text(record.read_text().replace('"seed": 1,', f'"seed": {seed},'))
    told = command("compare", tmp_path / "runs", "--env", "sanity/constant")
    assert all(text in told for text in ("dqn, plasticity_injection", "ppo, reset"))
    command("report", tmp_path / "runs", "--out", tmp_path / "report", "--formats", "md")
    written = "".join(page.read_text() for page in (tmp_path / "report").rglob("*.md"))
    assert all(word in written for word in ("redo", "plasticity_injection", "reset"))
