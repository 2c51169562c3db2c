"""A step of fused Adam without the Python around its kernel, which takes most of the time of `torch.optim.Adam.step`.

Outside of graphs its kernel is called, on the same numbers, so the weights are the same bits. In a graph (`Move`) it is
the same arithmetic, compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from .flat import STATE

ONE = torch.ones((), device="cpu")  # counters on the CPU take a tensor three times as fast as a number


def step(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Do what `optimizer.step()` does, where `parameters` are all that have a gradient.

    Anything but PyTorch's own Adam or AdamW, fused, with one group and no pre-hooks is that call.
    """
    if any(group.get("fused") for group in optimizer.param_groups):
        put_in_order(optimizer, parameters)
    if not is_plain(optimizer):
        optimizer.step()
        return
    gradients = [parameter.grad for parameter in parameters]
    if any(g is None for g in gradients):
        optimizer.step()
        return
    states = [optimizer.state.get(parameter) or begun(optimizer, parameter) for parameter in parameters]
    *moments, counters = ([state[name] for state in states] for name in STATE)
    torch._foreach_add_(counters, ONE if counters[0].is_cpu else 1)
    kernel(optimizer, parameters, gradients, *moments, counters)
    after(optimizer)


def put_in_order(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Make parameters, gradients and state contiguous: fused kernels on the CPU take them for that and do not ask."""
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    tensors = [*parameters, *(p.grad for p in parameters), *chain.from_iterable(map(dict.values, states))]
    if all(one.is_contiguous() for one in tensors if isinstance(one, Tensor)):
        return
    for parameter, state in zip(parameters, states, strict=True):
        parameter.data = parameter.data.contiguous()
        parameter.grad = None if parameter.grad is None else parameter.grad.contiguous()
        state.update({name: one.contiguous() for name, one in state.items() if isinstance(one, Tensor)})


@torch.no_grad()
def kernel(optimizer: Optimizer, parameters: Any, gradients: Any, averages: Any, squares: Any, counters: Any) -> None:
    """Move the parameters, and the optimizer's moments; counters count this step already."""
    group = optimizer.param_groups[0]
    call = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    call(
        parameters, gradients, averages, squares, [], counters,
        lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
        eps=group["eps"], amsgrad=False, maximize=group["maximize"], grad_scale=None, found_inf=None,
    )  # fmt: skip


def once(number: Tensor) -> Tensor:
    """Return a number of no dimensions, which a graph is to compute once and not for every entry."""
    return torch.ops.plasticity.once(number)


@dataclass(frozen=True)
class Move:
    """The settings of a plain Adam, and its step as a part of a graph."""

    decoupled: bool
    maximize: bool
    weight_decay: float
    beta1: float
    beta2: float
    eps: float

    @staticmethod
    def of(optimizer: Optimizer) -> Move:
        """Return the settings of a plain optimizer."""
        group = optimizer.param_groups[0]
        flags = group["decoupled_weight_decay"], group["maximize"]
        return Move(*flags, group["weight_decay"], *group["betas"], group["eps"])

    def __call__(
        self, weights: Tensor, gradient: Tensor, average: Tensor, square: Tensor, counters: Tensor, rate: Tensor
    ) -> None:
        """Step the weights and moments, (n,), in place, with `rate`, 0-D float64; count the step in `counters`."""
        counters.add_(1)
        count = counters[0].double()
        size = once((rate / (1 - self.beta1**count)).to(weights.dtype))
        scale = once((1 - self.beta2**count).rsqrt().to(weights.dtype))
        found = -gradient if self.maximize else gradient
        if self.weight_decay and self.decoupled:
            weights.mul_(once((1 - rate * self.weight_decay).to(weights.dtype)))
        elif self.weight_decay:
            found = found + self.weight_decay * weights
        average.lerp_(found, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(found, found, value=1 - self.beta2)
        weights.sub_(size * average / (square.sqrt() * scale + self.eps))


def bare_step(kind: type[Optimizer]) -> Callable[[Any], Any]:
    """Return the step of a class without the hooks that torch wraps around it, for optimizers that are made of others.

    Called as it is, a step within a step would call all hooks twice.
    """
    step: Any = kind.step
    found: Callable[[Any], Any] = step.__wrapped__ if getattr(step, "hooked", False) else step
    return found


def begun(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Return the state with which Adam begins; its own first step would import a compiler, which takes a second."""
    counter = torch.zeros((), dtype=torch.float32, device=parameter.device)
    optimizer.state[parameter] = {
        "step": counter, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter),
    }  # fmt: skip
    return optimizer.state[parameter]


def begin(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Give every parameter the state with which Adam begins, where it has none."""
    for parameter in parameters:
        if not optimizer.state.get(parameter):
            begun(optimizer, parameter)


def after(optimizer: Optimizer) -> None:
    """Call what is hooked behind the optimizer's step."""
    for hook in chain(optimizer._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
        hook(optimizer, (optimizer,), {})


def hooks_before(optimizer: Optimizer) -> list[dict]:
    """Return the hooks before a step, which may change what is stepped on."""
    return [optimizer._optimizer_step_pre_hooks, _global_optimizer_pre_hooks]


def is_plain(optimizer: Optimizer) -> bool:
    """Return whether a step is the fused kernel, and the hooks after it."""
    if type(optimizer) not in (Adam, AdamW) or len(optimizer.param_groups) > 1 or any(hooks_before(optimizer)):
        return False
    own, group = vars(optimizer), optimizer.param_groups[0]
    numbers = group["lr"], *group["betas"], group["eps"], group["weight_decay"]
    return (
        not ("step" in own or "grad_scale" in own or "found_inf" in own)  # put there by schedulers, gradient scalers
        and group["fused"] is True
        and not (group["amsgrad"] or group["capturable"] or group["differentiable"])
        and {*map(type, numbers)} <= {float, int}
    )
