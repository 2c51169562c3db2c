"""The statistics of observations and rewards at the start of a task."""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any

import torch
from torch import nn

from plasticity.agents.normalise import RunningNorm
from plasticity.agents.rewards import ReturnScaler
from plasticity.callback import Callback, Context

INITIAL = {"mean": 0.0, "var": 1.0, "count": 0.0, "returns": 0.0}
"""Buffers of running statistics -> their values before the first observation."""


class NormaliserReset(Callback):
    """Start running statistics anew at the first step of every task but the first: `--normaliser reset`.

    They are those of the agent's `normalisers`, and those inside its networks (`RunningNorm`, as in SimBa). By default
    they are kept, so that a reset of them is never taken for an effect of the task, or of a method.
    """

    def __init__(self, agent: Any) -> None:
        self.agent = agent

    def on_task_start(self, ctx: Context, task: Any) -> None:
        """Reset the statistics of all parallel environments, which share them."""
        if ctx.num_tasks > 1:
            for module in chain(getattr(self.agent, "normalisers", {}).values(), ctx.networks.values()):
                reset_statistics_(module)

    def on_train_end(self, ctx: Context) -> None:
        """Warn where there were no tasks, so that nothing was reset."""
        if ctx.num_tasks == 0:
            warnings.warn("--normaliser reset did nothing: the environment has no tasks", RuntimeWarning, stacklevel=2)


@torch.no_grad()
def reset_statistics_(module: nn.Module) -> None:
    """Set the running statistics of observations and rewards in `module` to what they were before the first one."""
    for part in module.modules():
        if isinstance(part, (RunningNorm, ReturnScaler)):
            for name, buffer in part.named_buffers(recurse=False):
                buffer.fill_(INITIAL[name])
