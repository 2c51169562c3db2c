"""Remarks of MuJoCo on Gymnasium's own model files, about which a user could do nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

GYMNASIUM_MUJOCO = "gymnasium.envs.mujoco"
"""Where the classes of Gymnasium's bodies are, of which each reads a model file of Gymnasium."""


@contextmanager
def without_advice() -> Iterator[None]:
    """Within, MuJoCo does not speak of deprecated attributes; other warnings of its are those of Python.

    By itself it prints a line for every environment that is made, and adds it to a file MUJOCO_LOG.TXT.
    """
    try:
        import mujoco
    except ImportError:  # which the environment says in words
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_heard)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _heard(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(f"MuJoCo: {message}", RuntimeWarning, stacklevel=2)
