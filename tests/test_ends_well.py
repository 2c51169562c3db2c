"""A run ends well however it is told to: in an evaluation, at the start, without its folder, without its terminal."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity.agents.evaluate import EvaluationStopped, evaluate
from plasticity.commands import saving, training
from plasticity.envs import ENVS, Family, make_env
from plasticity.storage.files import RunLock
from plasticity.storage.folder import Checkpoints
from plasticity.storage.record import read_record
from plasticity.testing.runs import attempt, command

SMALL = ("--hidden", "4", "4", "--batch-size", "4", "--learning-starts", "8", "--buffer-size", "50", "--probes")


class Endless(gymnasium.Env):
    """Pay 1 for ever; ``act`` is called at every step with the number of steps of this environment."""

    act: Callable[[Endless, int], None] = lambda self, step: None
    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, limit: int | None) -> None:
        self.limit, self.steps = limit, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        type(self).act(self, self.steps)
        return np.zeros(2, np.float32), 1.0, False, False, {}


@pytest.fixture(autouse=True)
def endless() -> Iterator[None]:
    """Register the environment; afterwards it does nothing again."""
    ENVS["endless"] = Family("endless/", lambda: ["endless/one"], lambda name, seed, limit: Endless(limit))
    before = Endless.act
    yield
    Endless.act = before
    del ENVS["endless"]


class Still:
    """An agent that stands still."""

    networks: ClassVar[dict[str, torch.nn.Module]] = {}

    def act(self, obs: torch.Tensor, explore: bool) -> torch.Tensor:
        return torch.zeros(len(obs), 1)


def train(out: Path, *options: str) -> tuple[int, str, str]:
    words = ("train", "sac", "--env", "endless/one", *SMALL, "--eval-episodes", "2", "--out", str(out), "--name", "run")
    return attempt(*words, *options)


def test_an_episode_that_does_not_end_is_cut_and_said() -> None:
    with pytest.warns(RuntimeWarning, match=r"4 of 4 evaluation episodes of endless/one did not end within 7 steps"):
        assert evaluate(Still(), make_env("endless/one", num_envs=2), 4, max_steps=7).tolist() == [7.0] * 4  # type: ignore[arg-type]


def test_episodes_that_end_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("Pendulum-v1", num_envs=2, max_episode_steps=9)
    assert env.episode_limit == 9
    assert make_env("endless/one").episode_limit is None
    assert len(evaluate(Still(), env, 4, max_steps=9)) == 4  # type: ignore[arg-type]
    monkeypatch.setattr("plasticity.agents.evaluate.MAX_STEPS_PER_EPISODE", 5)  # the environment's limit is longer
    assert len(evaluate(Still(), env, 4)) == 4  # type: ignore[arg-type]


def test_the_number_of_steps_is_a_setting_of_training_and_eval(tmp_path: Path) -> None:
    code, _, errors = train(tmp_path, "--steps", "20", "--eval-max-steps", "5", "--quiet")
    assert code == 0, errors
    assert read_record(tmp_path / "run")["eval_returns"] == [5.0, 5.0]
    told = command("eval", tmp_path / "run", "--episodes", "2", "--eval-max-steps", "3")
    assert "returns: 3.0 3.0" in told
    assert "returns: 5.0 5.0" in command("eval", tmp_path / "run", "--episodes", "2")
    record = (tmp_path / "run" / "run.json").read_text()
    code, _, errors = attempt("train", "--resume", tmp_path / "run", "--steps", "10")
    assert code == 1
    assert "is at step 20 already, beyond --steps 10" in errors
    assert (tmp_path / "run" / "run.json").read_text() == record
    for words in (("train", "sac", "--env", "endless/one"), ("eval", tmp_path / "run")):
        code, _, errors = attempt(*words, "--eval-max-steps", "0")
        assert code != 0
        assert "eval_max_steps must be at least 1" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_an_evaluation_is_obeyed_and_the_run_goes_on_later(number: int, tmp_path: Path) -> None:
    sent: list[int] = []
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, which a run respects

    def act(env: Endless, step: int) -> None:
        if step == 100 and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    Endless.act = act
    try:
        code, _, errors = train(tmp_path, "--steps", "40", "--eval-every", "20", "--quiet")
    finally:
        signal.signal(number, before)
    assert code == 128 + number, errors
    assert read_record(tmp_path / "run")["status"] == "interrupted"
    assert Checkpoints(tmp_path / "run" / "checkpoints").load_latest()[0] == 20
    Endless.act = lambda env, step: None
    assert attempt("train", "--resume", tmp_path / "run", "--eval-max-steps", "5")[0] == 0
    assert read_record(tmp_path / "run")["eval_returns"] == [5.0, 5.0]


@pytest.mark.parametrize("when", ["reset", "between"])
def test_a_signal_at_the_start_and_between_two_steps_loses_no_step(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step; and right after the last moment at which the step's checkpoint could be asked for."""
    before, after = Endless.reset, saving.Save.on_step_end
    sent: list[int] = []

    def end(*_: Any) -> None:
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    def reset(env: Endless, **more: Any) -> Any:
        end()
        return before(env, **more)

    def on_step_end(save: saving.Save, ctx: Any) -> None:
        after(save, ctx)
        if ctx.step == 5:
            end()

    if when == "reset":
        monkeypatch.setattr(Endless, "reset", reset)
    else:
        monkeypatch.setattr(saving.Save, "on_step_end", on_step_end)
    code, _, errors = train(tmp_path, "--steps", "40", "--eval-every", "0", "--quiet")
    assert code == 143, errors
    record = read_record(tmp_path / "run")
    assert (record["status"], record["steps_done"]) == ("interrupted", 1 if when == "reset" else 6)
    assert Checkpoints(tmp_path / "run" / "checkpoints").load_latest()[0] == record["steps_done"]
    told = command("eval", tmp_path / "run", "--episodes", "1", "--eval-max-steps", "3")
    assert f"trained for {record['steps_done']} steps" in told  # not the 40 that were planned


def test_evaluating_asks_at_every_step() -> None:
    with pytest.raises(EvaluationStopped):
        evaluate(Still(), make_env("endless/one"), 1, stop=lambda: True)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["moved", "replaced", "rows deleted", "lock deleted"])
def test_a_run_whose_folder_is_gone_stops_with_its_name(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(saving.time, "monotonic", lambda: next(clock))
    folder, file = tmp_path / "run", "run.lock" if what == "lock deleted" else "metrics.jsonl"

    def act(env: Endless, step: int) -> None:
        if step == 30 and what.endswith(" deleted"):
            (folder / file).unlink()
        elif step == 30:
            folder.rename(tmp_path / "elsewhere")
            if what == "replaced":
                shutil.copytree(tmp_path / "elsewhere", folder)

    Endless.act = act
    code, _, errors = train(tmp_path, "--steps", "60", "--eval-every", "0", "--checkpoint.every", "40", "--quiet")
    assert code == 1
    assert f"{folder / file} vanished, moved or was replaced" in errors
    assert folder.exists() == (what != "moved")
    assert not (folder / "checkpoints").exists()


def test_a_resume_that_cannot_start_leaves_the_record_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--steps", "20", "--eval-max-steps", "5", "--checkpoint.every", "10", "--quiet")
    assert train(tmp_path, *options)[0] == 0
    before = json.loads((tmp_path / "run" / "run.json").read_text())

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the state does not fit")

    for name in ("restore", "open_writers"):
        with monkeypatch.context() as patch:
            patch.setattr(training, name, fail)
            assert "does not fit" in attempt("train", "--resume", tmp_path / "run", "--steps", "30")[2]
        assert json.loads((tmp_path / "run" / "run.json").read_text()) == before


def test_a_second_start_of_several_seeds_is_refused(tmp_path: Path) -> None:
    """Of the same command, and where a process lives on without its parent."""
    words = ("train", "sac", "--env", "endless/one", *SMALL, "--seeds", "2", "--out", tmp_path, "--name", "group")
    for held in (tmp_path / "group", tmp_path / "group" / "seed_2"):
        held.mkdir()
        with RunLock(held):
            code, _, errors = attempt(*words)
            assert code == 1
            assert f"{held} is in use by process {os.getpid()}: wait until it ends, or stop it" in errors
        assert [path.name for path in held.iterdir() if path.is_file()] == ["run.lock"]


def test_a_folder_that_was_filled_while_waiting_for_its_lock_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.lock").touch()
    training.require_empty(folder)
    (folder / "run.json").touch()
    with pytest.raises(ValueError, match=r"is not empty; pass another --name"):
        training.require_empty(folder)


@pytest.mark.slow
def test_a_run_in_a_terminal_that_closes_is_saved(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    words = ["train", "sac", "--env", "Pendulum-v1", *SMALL, "--steps", "100000000", "--out", tmp_path, "--name", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "plasticity", *map(str, words)],
        stdin=child, stdout=child, stderr=child, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(child)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < deadline
        os.set_blocking(parent, False)
        try:
            os.read(parent, 10_000)
        except BlockingIOError:
            time.sleep(0.05)
    os.close(parent)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert read_record(tmp_path / "run")["status"] == "interrupted"
    assert Checkpoints(tmp_path / "run" / "checkpoints").latest() is not None


@pytest.mark.slow
def test_seeds_whose_parent_died_live_on_and_are_left_alone(tmp_path: Path) -> None:
    """The parent is killed, and who read its output is gone: no run stops for it, and a second start touches none."""
    words = ("train", "sac", "--env", "Pendulum-v1", *SMALL, "--compile", "off", "--seeds", "2", "--jobs", "2")
    words = (*words, "--steps", "1000000", "--checkpoint.every", "200", "--out", str(tmp_path), "--name", "group")
    folders = [tmp_path / "group" / f"seed_{number}" for number in (1, 2)]
    parent = subprocess.Popen([sys.executable, "-m", "plasticity", *words], stdout=subprocess.PIPE, stderr=-2)
    wait_until(lambda: all(Checkpoints(folder / "checkpoints").latest() for folder in folders))
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()
    numbers = [int((folder / "run.lock").read_text()) for folder in folders]
    try:
        before = [Checkpoints(folder / "checkpoints").latest() for folder in folders]
        code, _, errors = attempt(*words)
        assert code == 1
        assert f"{folders[0]} is in use by process {numbers[0]}: wait until it ends, or stop it" in errors
        wait_until(
            lambda: all(Checkpoints(f / "checkpoints").latest() != b for f, b in zip(folders, before, strict=True))
        )
    finally:
        for number in numbers:
            os.kill(number, signal.SIGTERM)
    wait_until(lambda: all(read_record(folder)["status"] == "interrupted" for folder in folders))
    for folder in folders:
        assert Checkpoints(folder / "checkpoints").load_latest()[0] == read_record(folder)["steps_done"]
        assert not list(folder.parent.glob("*unfinished*"))


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    words = ["train", "sac", "--env", "Pendulum-v1", *SMALL, "--compile", "off", "--steps", "3000", "--eval-every", "0"]
    words += ["--eval-episodes", "1", "--log-every", "50", "--out", str(tmp_path), "--name", "run"]
    run = subprocess.Popen(
        [sys.executable, "-m", "plasticity", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(300) == 0
    assert read_record(tmp_path / "run")["status"] == "finished"


def wait_until(true: Callable[[], bool], seconds: float = 240) -> None:
    """Wait until a condition holds; AssertionError if it never does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
