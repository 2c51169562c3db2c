"""Cheap checks of small arrays: at a few entries NumPy's own cost as much as a step of a simulator."""

from __future__ import annotations

import numpy as np

FLOAT32 = np.dtype(np.float32)
LARGEST = float(np.finfo(np.float32).max)


def ordinary(values: np.ndarray) -> bool:
    """Say that every entry is finite, in float32 too; it may say no to entries beyond 1e16, which can be finite."""
    # NaN and infinity spoil the sum of the squares. Of NumPy's products vdot alone does not warn of overflow.
    return float(np.vdot(values, values)) < LARGEST


def to_float32(values: np.ndarray) -> np.ndarray:
    """Return a copy as float32; what overflows becomes infinite without a warning, for `GymEnv` to report."""
    if values.dtype == FLOAT32 or ordinary(values):
        return values.astype(FLOAT32)
    with np.errstate(over="ignore"):  # costs more than the question before it
        return values.astype(FLOAT32)
