"""Optimizers and the parameters that they hold."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer


def all_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Return every parameter an optimizer holds, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def trainer(network: nn.Module, optimizers: Iterable[Optimizer]) -> Optimizer | None:
    """Return the first optimizer that holds a parameter of ``network``, None if none does."""
    own = {id(p) for p in network.parameters()}
    return next((o for o in optimizers if any(id(p) in own for p in all_parameters(o))), None)


def num_hooks(optimizer: Optimizer) -> int:
    """Return the number of hooks on the optimizer's steps."""
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def innermost(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside wrappers that hold it as ``optimizer``, as accelerate's do: its hooks run."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
