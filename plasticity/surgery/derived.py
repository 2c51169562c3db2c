"""Buffers that are derived from weights: spectral norm's vectors belong to the weight that they were computed from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from plasticity.isolation import named_modules

ITERATIONS = 15
"""Power iterations from the vectors of the old weight: as many as torch makes for a new one."""


@torch.no_grad()
def renew_derived_(network: nn.Module, modules: set[str] | None = None) -> None:
    """Compute spectral norm's vectors again, from the present weights; ``modules``: of these alone, None for all.

    A change of a weight by other hands than the optimizer's leaves them behind: in evaluation mode, where they are not
    iterated, the norm of the weight would be anything but 1. Both of torch's implementations are known. Draws nothing.
    """
    for path, module in named_modules(network).items():
        if modules is not None and path not in modules and not any(path.startswith(f"{name}.") for name in modules):
            continue
        if isinstance(module, ParametrizationList):
            _renew_(module)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                _iterate_(hook, module)


def _renew_(parametrized: ParametrizationList) -> None:
    """Iterate the vectors of spectral norms among parametrizations, each on what those before it make."""
    parts = [*parametrized]
    normed = [i for i, part in enumerate(parts) if isinstance(part, _SpectralNorm) and hasattr(part, "_u")]
    if not normed:
        return
    value: tuple[Tensor, ...] = tuple(original for _, original in parametrized.named_parameters(recurse=False))
    for i, part in enumerate(parts[: normed[-1] + 1]):
        if i in normed:
            matrix = part._reshape_weight_to_matrix(value[0])  # type: ignore[operator]
            part._power_method(matrix, ITERATIONS)  # type: ignore[operator]
        if i < normed[-1]:
            value = (part(*value),)


def _iterate_(hook: SpectralNorm, module: nn.Module) -> None:
    """Iterate the vectors of torch's older spectral norm."""
    weight = hook.reshape_weight_to_matrix(getattr(module, f"{hook.name}_orig"))
    u, v = getattr(module, f"{hook.name}_u"), getattr(module, f"{hook.name}_v")
    for _ in range(ITERATIONS):
        v.copy_(nn.functional.normalize(weight.T.mv(u), dim=0, eps=hook.eps))
        u.copy_(nn.functional.normalize(weight.mv(v), dim=0, eps=hook.eps))
