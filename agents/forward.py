"""Ways to run a network on a batch: the module comes first, so that a copy or a target can be given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def of_obs(module: nn.Module, batch: Any) -> Tensor:
    """Return the module's outputs at `batch.obs`; several, such as mean and log_std, are joined along the last axis."""
    return joined(module(batch.obs))


def of_obs_and_action(module: nn.Module, batch: Any) -> Tensor:
    """Return the module's outputs at `batch.obs` and `batch.action`."""
    return joined(module(batch.obs, batch.action))


def joined(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return one tensor, (batch, ...): the members of a tuple or distribution side by side."""
    return output if isinstance(output, Tensor) else torch.cat(tuple(output), -1)
