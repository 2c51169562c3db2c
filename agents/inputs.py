"""Arguments of a loss: tensors, and dataclasses of tensors or None such as a batch; graphs take them as a flat list."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor


def tensors_of(inputs: Sequence[Any]) -> list[Tensor]:
    """Return all tensors in order, contiguous, as graphs expect them."""
    found: list[Tensor] = []
    for one in inputs:
        if isinstance(one, Tensor):
            found.append(one)
        else:
            found += [value for value in vars(one).values() if value is not None]
    return [tensor.contiguous() for tensor in found]


def signature(inputs: Sequence[Any]) -> Hashable:
    """Return what a graph depends on: which tensors there are, their shapes and types."""
    fields = (tuple(vars(one).items()) if not isinstance(one, Tensor) else (("", one),) for one in inputs)
    return tuple((name, x.shape, x.dtype) for one in fields for name, x in one if x is not None)


def filled(inputs: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Return what `inputs` look like with other `tensors` in them."""
    rest = iter(tensors)
    return [
        next(rest)
        if isinstance(one, Tensor)
        else type(one)(**{name: None if value is None else next(rest) for name, value in vars(one).items()})
        for one in inputs
    ]
