"""A step of fused Adam without the Python around its kernel, which takes most of the time of `torch.optim.Adam.step`.

What is called, and on which numbers, is the same, so the weights are the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

ONE = torch.ones((), device="cpu")  # counters on the CPU take a tensor three times as fast as a number

# Settings of a group with which the step is one call of the fused kernel; the others are arguments of that call.
SETTINGS = {"fused": True, "amsgrad": False, "capturable": False, "differentiable": False}
CHANGED = ("step", "grad_scale", "found_inf")  # what schedulers and gradient scalers put on an optimizer


def step(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Do what `optimizer.step()` does, where `parameters` are all that have a gradient.

    Anything but PyTorch's own Adam, fused, with one group, no pre-hooks and a state for every parameter is that call.
    """
    gradients = [parameter.grad for parameter in parameters]
    states = [optimizer.state.get(parameter) for parameter in parameters]
    if any(g is None for g in gradients) or not (all(states) and is_plain(optimizer)):
        optimizer.step()
        return
    averages, squares, counters = (
        [state[name] for state in states if state] for name in ("exp_avg", "exp_avg_sq", "step")
    )
    group = optimizer.param_groups[0]
    with torch.no_grad():
        torch._foreach_add_(counters, ONE if counters[0].is_cpu else 1)
        torch._fused_adam_(
            parameters, gradients, averages, squares, [], counters,
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=group["maximize"], grad_scale=None, found_inf=None,
        )  # fmt: skip
    for hook in chain(optimizer._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
        hook(optimizer, (optimizer,), {})


def is_plain(optimizer: Optimizer) -> bool:
    """Return whether a step is the fused kernel, and the hooks after it."""
    if type(optimizer) is not Adam or len(optimizer.param_groups) > 1:
        return False
    if optimizer._optimizer_step_pre_hooks or _global_optimizer_pre_hooks:  # which may change what is stepped on
        return False
    if any(name in vars(optimizer) for name in CHANGED):
        return False
    group = optimizer.param_groups[0]
    numbers = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
    return (
        all(group[name] is value for name, value in SETTINGS.items())
        and not group["decoupled_weight_decay"]
        and not any(isinstance(number, Tensor) for number in numbers)
    )
