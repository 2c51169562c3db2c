"""Processes that are none: the runs of ``--seeds`` in the process of the test, one after another."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from plasticity.commands import fleet
from plasticity.testing.runs import attempt


class Inside:
    """A process that runs in this one, at once: for commands that start others."""

    def __init__(self, words: list[str], **more: Any) -> None:
        code, output, errors = attempt(*words[words.index("train") :])
        more["stdout"].write(f"{output}{errors}".encode(errors="replace"))
        self.code = code

    def poll(self) -> int:
        """Return the exit code: it has ended."""
        return self.code


def seeds_inside(patch: pytest.MonkeyPatch) -> None:
    """Let ``plasticity train --seeds`` run its processes in this one."""
    here = {"Popen": Inside, "DEVNULL": subprocess.DEVNULL, "STDOUT": subprocess.STDOUT}
    patch.setattr(fleet, "subprocess", SimpleNamespace(**here))  # not in the module, which others use, too
    patch.setattr(fleet, "POLL", 0.0)
