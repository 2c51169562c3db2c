"""Weights that are computed from others: parametrizations, weight norm, spectral norm, pruning masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from plasticity.isolation import copied

HOOKS = (WeightNorm, SpectralNorm, BasePruningMethod)
"""Hooks that compute a weight before a pass: torch's ways before parametrizations, and pruning."""
SetValue = Callable[[Tensor], object]


def setters_of(module: Any) -> dict[str, SetValue]:
    """Return name -> what sets, in place, all that the module computes the tensor of this name from, by its value."""
    found: dict[str, SetValue] = {}
    if is_parametrized(module):
        found |= {name: partial(_set_parametrized, parts) for name, parts in module.parametrizations.items()}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            found[hook.name] = partial(_set_normed, module, hook)
        elif isinstance(hook, SpectralNorm | BasePruningMethod):
            name = hook.name if isinstance(hook, SpectralNorm) else hook._tensor_name
            found[name] = getattr(module, f"{name}_orig").copy_
    return found


def plain_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module in which every computed tensor is a parameter, of the value that was used last."""
    plain: Any = copied(module)
    values = {name: getattr(plain, name).detach().clone() for name in setters_of(plain)}
    if is_parametrized(plain):  # torch's own way back would take the property from the class, which copies share
        plain.__class__ = type(plain).__bases__[0]
        del plain._modules["parametrizations"]
    for key, hook in list(plain._forward_pre_hooks.items()):
        if isinstance(hook, HOOKS):
            del plain._forward_pre_hooks[key]
    for name, value in values.items():
        plain.__dict__.pop(name, None)
        for end in ("g", "v", "orig"):
            plain._parameters.pop(f"{name}_{end}", None)
        plain._parameters[name] = nn.Parameter(value, value.is_floating_point())
    return plain


def _set_parametrized(parts: ParametrizationList, value: Tensor) -> None:
    """Set what a tensor is computed from as torch did: the first parametrization is inverted, if it can be."""
    began = ParametrizationList([parts[0]], value, parts.unsafe)
    for name, original in began.named_buffers(recurse=False):
        getattr(parts, name).copy_(original)


def _set_normed(module: nn.Module, hook: WeightNorm, value: Tensor) -> None:
    """Set length and direction of torch's older weight norm."""
    getattr(module, f"{hook.name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
    getattr(module, f"{hook.name}_v").copy_(value)
