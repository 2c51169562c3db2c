"""``plasticity diagnose``: on runs of every agent, at a checkpoint, without a trace in the run, and its errors."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch

from plasticity.cli import main
from plasticity.commands.diagnose import DiagnoseConfig, _patients, seconds_of, state_at
from plasticity.commands.patients import step_of, with_fresh_targets
from plasticity.commands.run import find_run
from plasticity.diagnosis.parts import renew_all
from plasticity.reports.runs import load_runs
from plasticity.reports.verdicts import VERDICT, verdicts
from plasticity.surgery.origin import Moved
from plasticity.testing.runs import QUICK_RUNS, SHORT, command, require_same

OPTIONS = ["--steps", "3", "--teachers", "2", "--no-remedies", "--budget", "10m"]


@pytest.fixture(
    scope="module", params=["sac", *(pytest.param(a, marks=pytest.mark.slow) for a in ("td3", "ppo", "dqn"))]
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run."""
    folder = tmp_path_factory.mktemp("runs")
    command("train", request.param, *QUICK_RUNS[request.param], *SHORT, "--out", folder, "--name", "run")
    return folder / "run"


def digest(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a run, but for its diagnoses."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "diagnosis" not in file.parts]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_run_is_examined_and_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(run)
    assert main(["diagnose", str(run), *OPTIONS]) == 0
    text = capsys.readouterr().out
    assert "aged beside fresh networks, 3 updates" in text
    assert digest(run) == before
    assert (next((run / "diagnosis").glob("step-*")) / "verdict.txt").read_text() == text
    assert main(["diagnose", str(run), *OPTIONS]) == 0  # from what is kept: the same
    assert capsys.readouterr().out == text


def test_a_report_shows_the_verdicts_and_names_what_it_cannot_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", str(run), *OPTIONS]) == 0
    printed, (file,) = capsys.readouterr().out, run.glob(f"diagnosis/*/{VERDICT}")
    saved = json.loads(file.read_text())
    assert all(one["findings"][0] in printed for one in saved["networks"].values())
    bad = run / "diagnosis" / "step-3" / VERDICT
    bad.parent.mkdir()
    network = '{"step": 1, "networks": {"q": %s}}'
    for text in ("[]", "{", network % "null", network % '{"findings": "abc", "advice": null}', '{"step": null}'):
        bad.write_text(text)
        table, notes = verdicts(load_runs([run])[0])
        assert table is not None
        assert [row[2] for row in table.rows] == list(saved["networks"])
        assert len(notes) == 1
        assert str(bad) in notes[0]
    assert main(["report", str(run), "--out", str(tmp_path), "--formats", "md"]) == 0
    page = (tmp_path / "report.md").read_text()
    bad.unlink()
    assert "Verdicts" in page
    assert all(one["findings"][0].partition("  ")[0] in page for one in saved["networks"].values())
    assert f"{bad} is left out" in page


def test_replay_and_target_networks_can_be_made_fresh(run: Path) -> None:
    config = DiagnoseConfig(run)
    folder, record = find_run(run)
    agent, inputs, patients = _patients(config, record, state_at(run, folder, None)[0])
    parts = {patient.name: set(patient.surroundings) for patient in patients}
    critics, value = {"replay", "target network"}, {"dqn": "q", "ppo": "critic"}.get(record["agent"])
    if record["agent"] == "ppo":
        assert parts == {"actor": set(), "critic": set()}  # its rollout is fresh, and it has no target
        return
    assert parts == ({value: critics} if value else {"actor": {"replay"}, "critic_1": critics, "critic_2": critics})
    patient = patients[-1]
    fresh = patient.surroundings["replay"].made()
    assert len(fresh.batches) == len(inputs[step_of(agent, patient.name)])
    assert not torch.equal(fresh.batches[0][0].obs, patient.batches[0][0].obs)
    twin = with_fresh_targets(agent)
    for name, target in twin.targets.items():
        require_same(target.state_dict(), agent.networks[name].state_dict(), name)
    if record["agent"] != "dqn":  # whose targets may just have been copied
        lagging = agent.targets[patient.name].parameters()
        pairs = zip(twin.targets[patient.name].parameters(), lagging, strict=True)
        assert any(not torch.equal(new, old) for new, old in pairs)
        made = patient.surroundings["target network"].made()
        assert patient.loss(patient.model, patient.batches[0]) != made.loss(patient.model, patient.batches[0])


KNIFE = ["--knife", "--knife.every", "10", "--knife.window", "5", "--knife.cap", "0.5", "--knife.threshold", "9"]
INJECTION = ["--plasticity-injection", "--plasticity-injection.at", "60"]


@pytest.mark.parametrize("method", [KNIFE, INJECTION, [*KNIFE, *INJECTION]], ids=["knife", "injection", "both"])
def test_networks_that_a_method_rebuilt_have_fresh_twins(method: list[str], tmp_path: Path) -> None:
    command("train", "dqn", *QUICK_RUNS["dqn"], *SHORT, *method, "--out", tmp_path, "--name", "run")
    folder, record = find_run(tmp_path / "run")
    _, _, (patient,) = _patients(DiagnoseConfig(folder), record, state_at(folder, folder, None)[0])
    rebuilt = [module for module in patient.model.modules() if isinstance(module, Moved)]
    assert rebuilt
    aged, twin, batch = patient.aged(), patient.twin(1), patient.batches[0]
    kept = copy.deepcopy(aged.model)
    for module in kept.modules():
        if isinstance(module, Moved):
            module.cancel_()
    before = patient.forward(aged.model, batch)
    assert not torch.equal(patient.forward(kept, batch), before)  # the method did keep something
    renew_all(aged, twin)
    fresh = patient.forward(twin, batch)
    assert not torch.equal(fresh, before)
    torch.testing.assert_close(patient.forward(aged.model, batch), fresh, rtol=0, atol=0)
    alone = copy.deepcopy(twin)
    for module in alone.modules():
        if isinstance(module, Moved):
            module.cancel_()
    torch.testing.assert_close(patient.forward(alone, batch), fresh, rtol=0, atol=0)
    assert command("diagnose", folder, *OPTIONS)


@pytest.mark.parametrize("moved", [False, True], ids=["alone", "put into another module"])
def test_networks_whose_weights_a_method_computes_have_fresh_twins(moved: bool, tmp_path: Path) -> None:
    options = [*SHORT, "--spectral-normalization", *(KNIFE if moved else [])]
    command("train", "dqn", *QUICK_RUNS["dqn"], *options, "--out", tmp_path, "--name", "run")
    folder, record = find_run(tmp_path / "run")
    _, _, (patient,) = _patients(DiagnoseConfig(folder), record, state_at(folder, folder, None)[0])
    parameters = dict(patient.model.named_parameters())
    assert any("parametrizations" in name for name in parameters)
    twins = [dict(patient.twin(seed).named_parameters()) for seed in (1, 2)]
    for name, parameter in parameters.items():
        assert not torch.equal(twins[0][name], parameter)
        assert parameter.dim() < 2 or not torch.equal(twins[0][name], twins[1][name])
    assert command("diagnose", folder, *OPTIONS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Rank. fewer samples")
def test_an_agent_of_images_is_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--steps", "300", "--learning-starts", "100", "--batch-size", "8", "--eval-episodes", "1"]
    options = ["--network", "minatar_cnn", *few, "--probes", "dormancy", "--quiet"]
    assert main(["train", "dqn", "--env", "minatar/breakout", *options, "--out", str(tmp_path), "--name", "run"]) == 0
    assert main(["diagnose", str(tmp_path / "run"), "--budget", "5m", "--steps", "3", "--teachers", "2"]) == 0
    assert "aged beside fresh networks, 3 updates" in capsys.readouterr().out


def test_one_network_at_a_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = sorted(int(folder.name.split("-step-")[1]) for folder in (run / "checkpoints").iterdir())
    network = "q" if run.parent.name.startswith("dqn") else None
    chosen = ["--networks", network] if network else []
    assert main(["diagnose", str(run), "--at", str(steps[0]), *OPTIONS, "--out", str(tmp_path), *chosen]) == 0
    assert f"step {steps[0]:,}" in capsys.readouterr().out
    assert [folder.name for folder in tmp_path.iterdir()] == [f"step-{steps[0]}"]


def test_errors_say_what_there_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(run), "--at", "7"]) == 1
    assert "no checkpoint at step 7; there are" in capsys.readouterr().err
    assert main(["diagnose", str(run), "--networks", "nose", "--out", str(tmp_path)]) == 1
    assert "no network to examine is 'nose'; there are" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main(["diagnose", str(run), "--budget", "soon"]) == 1
    assert "--budget is a time such as 60s" in capsys.readouterr().err


def test_budgets_are_times() -> None:
    assert [seconds_of(text) for text in ("60s", "5m", "1h", "90", "0.5m")] == [60, 300, 3600, 90, 30]


@pytest.mark.slow
def test_global_random_states_of_a_process_do_not_matter(run: Path, tmp_path: Path) -> None:
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        main(["diagnose", str(run), *OPTIONS, "--out", str(tmp_path / str(seed))])
        texts.append(next((tmp_path / str(seed)).glob("*/verdict.txt")).read_text())
    assert texts[0] == texts[1]
