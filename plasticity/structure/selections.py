"""Activations by selection: neurons that are let through where a comparison says so, as in ``z * (z > 0)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .labels import Label, mix

COMPARISONS = {"gt", "ge", "lt", "le"}
"""Operations whose result says which neurons are let through, as in ``z * (z > 0)``."""
LOGIC = {f"{kind}_{name}" for kind in ("bitwise", "logical") for name in ("and", "or", "xor", "not")}

Operands = Sequence[tuple[Tensor, Label]]
"""The tensors among the arguments of an operation, and what they carried before it ran."""


def either(operands: Operands, name: str, shape: torch.Size) -> Label:
    """Return the tag of a condition that is made of several, by the operation ``name``."""
    planes = [plane for _, tag in operands for plane in tag.planes]
    rest = mix((tag.without_planes() for _, tag in operands), name)
    return replace(rest, planes=tuple(replace(plane, ids=plane.ids.broadcast_to(shape)) for plane in planes))


def fills(indices: Sequence[Tensor | None], operands: Operands) -> bool:
    """Return whether values are written where the neurons themselves say so, as in ``z[z < 0] = 0``."""
    filled, carried = operands[0]
    told = {id(t): tag for t, tag in operands if t.dtype == torch.bool and t.shape == filled.shape}
    others = [tag for t, tag in operands[1:] if tag and id(t) not in told]
    where = told.get(id(indices[0])) if len(indices) == 1 else None
    return where is not None and not others and bool(carried.calls & where.calls)
