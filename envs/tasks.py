"""The tasks that a batch of environments plays now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
from torch import Tensor

from .layers import task_holder, task_setter


class Tasks:
    """Read and set the tasks of some environments: the int attribute `task` of one layer of each.

    The attribute names the task of the next action. It may change at the end of a step or in a reset.
    """

    def __init__(self, envs: Sequence[gymnasium.Env], device: torch.device) -> None:
        self.envs, self.device = envs, device
        self._holders: list[Any] = []
        self._ids: list[int] = []
        self._present: Tensor | None = None

    def find(self) -> None:
        """Look for the attribute; do it after the first reset, which may set it. All environments have it, or none."""
        holders = [task_holder(env) for env in self.envs]
        self._holders = holders if None not in holders else []

    def present(self) -> Tensor | None:
        """Return the present tasks (N,) int64, the same tensor until one changes; None where there are no tasks."""
        if self._holders:
            ids = [int(holder.task) for holder in self._holders]
            if ids != self._ids:
                self._ids, self._present = ids, torch.tensor(ids, dtype=torch.int64, device=self.device)
        return self._present

    def set(self, task: Tensor | int) -> bool:
        """Let every environment play its task, of (N,) ids or one for all, from the next reset on, and no other.

        Returns False, and changes nothing, where an environment has no method `set_task(task)`.
        """
        setters = [task_setter(env) for env in self.envs]
        if not setters or None in setters:
            return False
        ids = torch.as_tensor(task).expand(len(setters)).tolist()
        for setter, one in zip(setters, ids, strict=True):
            assert setter is not None
            setter(one)
        return True
