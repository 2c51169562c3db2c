"""Faults of whole runs: numbers that are none, things that raise, disks, signals, locks; and the table in the docs."""

from __future__ import annotations

import ast
import errno
import logging
import math
import random
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plasticity.callback import Callback, Context, fire
from plasticity.cli import main
from plasticity.commands.saving import Save
from plasticity.envs import make_env
from plasticity.interventions import INTERVENTIONS
from plasticity.interventions.least import LearnToStop
from plasticity.interventions.recycling import Recycling
from plasticity.interventions.reset import Reset
from plasticity.probes import Dormancy
from plasticity.storage.files import RunLock
from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import read_record
from plasticity.storage.rows import read_metrics

ROOT = Path(__file__).parents[1]
FAULTY = "Faulty-v0"
SMALL = ["--env", FAULTY, "--steps", "80", "--checkpoint.every", "20", "--checkpoint.keep", "9",
         "--hidden", "8", "--batch-size", "8", "--learning-starts", "10", "--buffer-size", "100",
         "--eval-every", "0", "--eval-episodes", "1",
         "--probe-every", "10", "--log-every", "5", "--quiet"]  # fmt: skip


class Faulty(gymnasium.Env):
    """A walk of ten steps, in which the process's ``step`` number ``at`` does what ``fault`` says."""

    observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    fault, at, taken, closed = "", 50, 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=2).astype(np.float32)
        self.steps = 0
        return self.place, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        Faulty.taken += 1
        self.steps += 1
        self.place = (self.place + 0.1 * float(action[0])).clip(-10, 10).astype(np.float32)
        obs, reward, fault = self.place, float(-abs(self.place[0])), Faulty.fault if Faulty.taken == Faulty.at else ""
        if fault == "observation":
            obs = np.array([0.5, np.nan], np.float32)
        elif fault == "reward":
            reward = math.inf
        elif fault == "loss":
            reward = 3e38  # a number, but its square is none
        elif fault == "raise":
            raise KeyError("simulator")
        elif fault == "exit":
            sys.exit(0)
        elif Faulty.fault == "global":
            reward += random.random() + np.random.random()
        elif Faulty.fault == "signal" and Faulty.taken == Faulty.at:
            signal.raise_signal(signal.SIGTERM)
        return obs, reward, False, self.steps == 10, {}

    def close(self) -> None:
        Faulty.closed += 1


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Register the environment; the function that is lent says what goes wrong, and forgets all steps."""
    gymnasium.register(FAULTY, Faulty)

    def set_fault(fault: str) -> None:
        Faulty.fault, Faulty.taken, Faulty.closed = fault, 0, 0

    set_fault("")
    yield set_fault
    del gymnasium.registry[FAULTY]


def train(out: Path, *more: str) -> int:
    return main(["train", "sac", *SMALL, "--out", str(out), "--name", "run", *more])


def whole(run: Path) -> tuple[int, dict[str, Any]]:
    """Return (step, state) of the newest checkpoint, in which every network must be finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none is damaged
        step, state = Checkpoints(run / "checkpoints").load_latest()
    for network in state["agent"]["networks"].values():
        assert all(tensor.isfinite().all() for tensor in network.values())
    return step, state


# -- numbers, and what raises ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("observation", "Faulty-v0: observation of environment 0 is not finite (entry 1 is nan) after 50 steps"),
        ("reward", "Faulty-v0: reward of environment 0 is not finite (entry 0 is inf) after 50 steps"),
        ("loss", "sac: critic_loss is not finite at update"),
        ("raise", "KeyError: 'simulator'"),
        ("exit", "sys.exit(0) was called in training"),
    ],
)
def test_what_stops_a_run_is_one_line_with_the_step_and_leaves_a_good_checkpoint(
    fault: str, words: str, tmp_path: Path, faulty: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty(fault)
    assert train(tmp_path) == 1
    text = capsys.readouterr().err
    assert words in text
    assert re.search(r" \(at step \d+ of Faulty-v0\)$", text.strip())
    assert len(text.strip().splitlines()) == 1
    run = tmp_path / "run"
    record = read_record(run)
    assert record["status"] == "failed"
    assert 49 <= record["steps_done"] <= 80
    step, _ = whole(run)
    assert step >= 40
    assert Faulty.closed == 1
    assert read_metrics(run)[-1]["step"] >= 30  # what was logged before is there
    if fault == "loss":
        return  # the reward is in the replay, and a run that goes on meets it again
    faulty("")
    assert main(["train", "--resume", str(run)]) == 0
    assert whole(run)[0] == 80
    assert read_record(run)["status"] == "finished"


def test_the_error_itself_is_in_the_chain_and_keeps_its_type(tmp_path: Path, faulty: Callable) -> None:
    faulty("raise")
    with pytest.raises(KeyError, match="simulator") as error:
        train(tmp_path, "--debug")
    assert error.value.__notes__ == ["at step 49 of Faulty-v0"]
    assert error.traceback[-1].name == "step"
    assert error.traceback[-1].path.name == Path(__file__).name


def test_an_action_that_is_no_number_stops_the_run(
    tmp_path: Path, faulty: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from plasticity.agents.sac import SAC

    act = SAC.act

    def broken(self: Any, obs: Tensor, explore: bool) -> Tensor:
        return act(self, obs, explore) * (math.nan if Faulty.taken == 45 else 1.0)

    monkeypatch.setattr(SAC, "act", broken)
    assert train(tmp_path) == 1
    text = capsys.readouterr().err
    assert "Faulty-v0: action of environment 0 is not finite (entry 0 is nan) after 45 steps (at step 45 of" in text
    assert whole(tmp_path / "run")[0] == 40


def test_networks_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    ctx, checkpoints = Context({"critic": network}), Checkpoints(tmp_path, keep=1)
    stopped: list[bool] = []
    save = Save(checkpoints, 10, 100, lambda _: ({"w": network.weight.detach()}, None), lambda: bool(stopped))
    save.on_train_start(ctx)
    ctx.step = 10
    save.on_step_end(ctx)
    good = network.weight.detach().clone()
    with torch.no_grad():
        network.weight[0, 1] = math.inf
    ctx.step = 20
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"critic\.weight is not finite, so no checkpoint is written"):
            save.on_step_end(ctx)
        stopped.append(True)
        ctx.step = 25
    assert checkpoints.load_latest()[0] == 10
    assert torch.equal(checkpoints.load_latest()[1]["w"], good)


def fail(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("method", "kind", "entry"),
    [("redo", Recycling, "_recycle_"), ("reset", Reset, "apply"), ("least", LearnToStop, "on_step")],
)
def test_an_intervention_that_fails_stops_the_run_with_its_name(
    method: str, kind: type, entry: str, tmp_path: Path, faulty: Callable, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if method == "least":
        real = LearnToStop.on_step
        monkeypatch.setattr(kind, entry, lambda self, ctx, t: fail() if ctx.step > 45 else real(self, ctx, t))
    else:
        monkeypatch.setattr(kind, entry, fail)
    options = {"redo": ["--redo.every", "30", "--redo.threshold", "9"], "reset": ["--reset.every", "30"], "least": []}
    assert train(tmp_path, f"--{method}", *options[method]) == 1
    text = capsys.readouterr().err
    blame = rf"\(raised by {method}, at step \d+ of Faulty-v0\)"
    assert re.fullmatch(rf"plasticity train: ZeroDivisionError: oh {blame}\n", text)
    assert whole(tmp_path / "run")[0] in (20, 40)
    assert read_record(tmp_path / "run")["status"] == "failed"


def test_a_callback_keeps_the_type_of_its_error_and_is_named_once() -> None:
    class Pruned(Exception):
        """The error by which a search for settings ends a run."""

    class Mine(Callback):
        def on_step(self, ctx: Context, transition: Any) -> None:
            raise Pruned

    class Group(Callback):
        def on_step(self, ctx: Context, transition: Any) -> None:
            fire([Mine(), Mine()], "on_step", ctx, transition)

    with pytest.raises(Pruned) as error:
        fire([Group()], "on_step", Context(), None)
    assert error.value.__notes__ == ["raised by Mine", "raised by Group"]


def test_a_probe_that_fails_warns_once_and_training_goes_on(
    tmp_path: Path, faulty: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "plain") == 0
    monkeypatch.setattr(Dormancy, "compute", fail)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert train(tmp_path / "broken") == 0
    # One monitor per network, hence one warning for each.
    found = [str(w.message) for w in warned if w.category is RuntimeWarning]
    assert found == ["probe 'dormancy' failed and is off from now on: ZeroDivisionError('oh')"] * 3
    tags = {tag for row in read_metrics(tmp_path / "broken" / "run") for tag, value in row.items() if value is not None}
    assert "plasticity/critic_1/grama/all" in tags
    assert "plasticity/critic_1/dormancy/all" not in tags
    networks = [whole(tmp_path / name / "run")[1]["agent"]["networks"] for name in ("plain", "broken")]
    for key, tensor in networks[0]["actor"].items():
        assert torch.equal(tensor, networks[1]["actor"][key])


# -- seeds, signals, locks, settings -----------------------------------------------------------------------------------


def test_one_seed_also_decides_what_an_environment_draws_from_the_global_generators(
    tmp_path: Path, faulty: Callable
) -> None:
    faulty("global")
    found = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        random.seed()
        np.random.seed()
        assert train(tmp_path / name, "--seed", seed) == 0
        rows = read_metrics(tmp_path / name / "run")
        found.append([row["charts/episodic_return"] for row in rows if "charts/episodic_return" in row])
    assert found[0] == found[1] != found[2]


def test_sigterm_saves_at_the_step_and_the_run_goes_on_from_there(
    tmp_path: Path, faulty: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty("signal")
    assert train(tmp_path) == 143
    run = tmp_path / "run"
    assert read_record(run)["status"] == "interrupted"
    assert whole(run)[0] == 50
    faulty("")
    assert main(["train", "--resume", str(run)]) == 0
    assert whole(run)[0] == 80


def test_two_runs_in_one_folder_and_other_settings_are_refused(
    tmp_path: Path, faulty: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path) == 0
    run = str(tmp_path / "run")
    with RunLock(Path(run)):
        assert main(["train", "--resume", run]) == 1
    assert re.search(r"run is in use by process \d+: wait until it ends", capsys.readouterr().err)
    assert main(["train", "--resume", run, "--gamma", "0.5", "--seed", "9"]) == 1
    text = capsys.readouterr().err
    assert "cannot go on with other settings" in text
    assert "agent.gamma: 0.99 in the run, 0.5 asked for" in text
    assert "seed: 1 in the run, 9 asked for" in text
    for control in (["--retries", "2"], ["--seeds=3"], ["--jobs", "2"], ["--dry-run"], ["--dry_run"]):
        assert main(["train", "--resume", run, *control]) == 1
        assert (
            f"{control[0].partition('=')[0].replace('_', '-')}: --resume goes on with one run"
            in capsys.readouterr().err
        )
    assert main(["train", "--resume", run, "--steps", "100"]) == 0
    assert whole(Path(run))[0] == 100


def test_a_run_without_a_checkpoint_cannot_go_on_and_says_so(
    tmp_path: Path, faulty: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--checkpoint.every", "0") == 0
    assert main(["train", "--resume", str(tmp_path / "run")]) == 1
    assert "holds no checkpoint that can be read" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_gone_on_from(tmp_path: Path, faulty: Callable) -> None:
    assert train(tmp_path) == 0
    folders = Checkpoints(tmp_path / "run" / "checkpoints").all()
    path = folders[-1] / "tensors.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=rf"{re.escape(str(path))}: it is damaged.*; going back to 000003-step-60"):
        assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert read_record(tmp_path / "run")["steps_done"] == 80


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_training_goes_on(
    number: int, tmp_path: Path, faulty: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, refused = Path.rename, []

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "000002-step-40" and not refused:
            refused.append(target)
            raise OSError(number, "refused by the system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.warns(RuntimeWarning, match=r"not saved: refused by the system.*step-40'; training goes on without it"):
        assert train(tmp_path) == 0
    names = [folder.name for folder in Checkpoints(tmp_path / "run" / "checkpoints").all()]
    assert names == ["000001-step-20", "000002-step-60", "000003-step-80"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_full_disk_drops_rows_and_events_and_training_goes_on(
    tmp_path: Path, faulty: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from plasticity.storage.appendfile import AppendFile

    append = AppendFile.append

    def full(self: AppendFile, record: bytes) -> None:
        if 30 < Faulty.taken < 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, record)

    monkeypatch.setattr(AppendFile, "append", full)
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path) == 0
    steps = [row["step"] for row in read_metrics(tmp_path / "run")]
    assert min(steps) <= 30 < 60 <= max(steps)
    assert not [step for step in steps if 31 < step < 60]
    first = [r.message for r in caplog.records if "metrics.jsonl not written" in r.message]
    assert len(first) == 1
    assert "training goes on, more are counted" in first[0]
    assert any("could not be written" in r.message and "x metrics.jsonl" in r.message for r in caplog.records)


def test_a_full_disk_at_a_stop_is_an_error_for_nothing_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    save = Save(checkpoints, 10, 100, lambda _: ({}, None), lambda: True)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="the checkpoint was not saved: full"):
        save.on_step_end(Context(step=7))


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, faulty: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert train(tmp_path / "file" / "below") == 1
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert str(tmp_path / "file") in text


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    assert main(["train", "dqn", "--env", "LunarLander-v3", "--quiet"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("plasticity train: LunarLander-v3 needs Box2D: pip install 'plasticity-toolkit[box2d]'")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("agent", "space", "words"),
    [
        ("sac", gymnasium.spaces.MultiDiscrete([2, 3]), "cannot use the action space MultiDiscrete([2 3])"),
        ("ppo", gymnasium.spaces.Box(-np.inf, 1, (1,)), "infinite bounds"),
        ("dqn", gymnasium.spaces.Box(-1, 1, (1,)), "dqn needs a Discrete action space"),
    ],
)
def test_an_action_space_that_cannot_be_used_is_one_line(
    agent: str, space: Any, words: str, tmp_path: Path, faulty: Callable, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(Faulty, "action_space", space)
    assert main(["train", agent, "--env", FAULTY, "--out", str(tmp_path), "--quiet"]) == 1
    text = capsys.readouterr().err
    assert words in text
    assert len(text.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# -- what stays itself -------------------------------------------------------------------------------------------------


def test_every_environment_is_told_to_reset_never_resets_itself() -> None:
    """Autoreset would put the first observation of the next episode where the last of this one belongs."""
    for name in ("CartPole-v1", "sanity/clock"):
        env = make_env(name, num_envs=2)
        assert env._vector.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.DISABLED  # type: ignore[attr-defined]
        env.close()


def test_every_intervention_has_a_name_to_blame() -> None:
    assert all(name == kind.NAME for name, kind in INTERVENTIONS.items())


# -- the table in the docs ---------------------------------------------------------------------------------------------


def test_every_row_of_the_table_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| [A-E]\d+ \|", line)]
    labels = [row.split("|")[1].strip() for row in rows]
    for section, number in {"A": 18, "B": 22, "C": 12, "D": 8, "E": 46}.items():  # no row is missing
        assert [label for label in labels if label[0] == section] == [f"{section}{i + 1}" for i in range(number)]
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4, row
        assert all(cells), row
        assert "::" in cells[3] or cells[3].startswith("none: "), row
    names = set(re.findall(r"`(test_\w+)\.py::(test_\w+)`", text))
    assert len(names) > 100
    for file in sorted({file for file, _ in names}):
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        missing = {name for other, name in names if other == file} - functions
        assert not missing, f"{file}.py has no {missing}"


@pytest.mark.slow
def test_a_few_kills_change_nothing() -> None:
    import subprocess

    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"identical": true' in done.stdout
