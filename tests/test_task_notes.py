"""The note of a run whose steps are not those of all tasks of its stream."""

from __future__ import annotations

from typing import Any

import pytest

from plasticity.cli import main
from plasticity.commands.parsing import parse
from plasticity.commands.task_notes import notes_of_tasks

STREAM = ["--env", "cgym-short/cartpole", "--task-steps", "4000", "--num-tasks", "5"]


def notes(*arguments: str) -> list[str]:
    return notes_of_tasks(parse("ppo", arguments))


def test_steps_that_end_before_the_tasks_are_noted() -> None:
    (line,) = notes("--env", "cgym/cartpole", "--steps", "200_000")
    assert line == (
        "note: 200,000 steps begin 2 of the 10 tasks of cgym/cartpole; all 10 of 160,000 steps: --steps 1_600_000"
    )
    (line,) = notes(*STREAM, "--steps", "19_999")
    assert "begin 5 of the 5 tasks" in line


def test_steps_after_the_last_task_are_noted() -> None:
    (line,) = notes(*STREAM)
    assert line == (
        "note: the last task of cgym-short/cartpole goes on from step 20,000 to 100,000; all 5 of 4,000 steps: "
        "--steps 20_000"
    )


@pytest.mark.parametrize("steps", ["20_000", "20_010"])
def test_all_tasks_are_no_note_also_where_environments_share_them(steps: str) -> None:
    assert notes(*STREAM, "--num-envs", "3", "--steps", steps) == []  # 3 environments play 1,334 steps of a task each


def test_other_environments_have_none(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert notes("--env", "CartPole-v1") == []
    main(["train", "ppo", "--env", "nothing/here", "--out", str(tmp_path)])
    assert "no environment is called" in capsys.readouterr().err


def test_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", *STREAM, "--probes", "dormancy", "--dry-run"]) == 0
    assert "goes on from step 20,000 to 100,000" in capsys.readouterr().err
