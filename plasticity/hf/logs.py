"""A trainer's own log as a destination, and its state as the place where the callback's state is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerState

from plasticity.callback import Writer
from plasticity.tags import ALL

STATE = "plasticity"
"""The key of the callback's state among those that ``trainer_state.json`` holds."""


class HistoryWriter(Writer):
    """Add rows to ``state.log_history``, one for each step at which something was logged.

    ``fresh``: values of whole networks since the trainer logged last, for what it prints.
    """

    def __init__(self, state: TrainerState) -> None:
        self._state = state
        self._row: dict[str, Any] = {}
        self.fresh: dict[str, float] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars to the row of the step."""
        numbers = {tag: float(value) for tag, value in values.items()}
        self.fresh |= {tag: number for tag, number in numbers.items() if tag.endswith(f"/{ALL}")}
        if self._row.get("step") != step:
            self._row = {"step": step, "epoch": self._state.epoch}
            self._state.log_history.append(self._row)
        self._row.update(numbers)

    def settle(self) -> None:
        """Say of the last row, once its step is over, in which epoch it was."""
        if self._row.get("step") == self._state.global_step:
            self._row["epoch"] = self._state.epoch
