"""Probes under data-parallel training: every process sees its share of the batch, the scores are of the whole."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plasticity.probes.probe import Probe

K = TypeVar("K", bound=tuple[str, ...])


def process_group(model: nn.Module) -> Any | None:
    """Return the processes that train ``model`` together; None unless it is in DistributedDataParallel."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod  # type: ignore[assignment]
    return model.process_group if isinstance(model, nn.parallel.DistributedDataParallel) else None


def combined(probes: Mapping[K, Probe], group: Any) -> dict[K, Probe]:
    """Return copies of the probes that have seen what the probes of every process in ``group`` have seen.

    Every process must call it, with probes of the same names; RuntimeError on all of them where the numbers differ.
    """

    def add(tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    copies = {key: copy.deepcopy(probes[key]) for key in sorted(probes)}
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else None
    mine = torch.tensor([len(copies), len(copies) ** 2], device=device)
    number, squares = (add(mine) / dist.get_world_size(group)).tolist()
    if squares != number**2:  # they have a variance
        raise RuntimeError("the processes of the group measured different layers, which cannot be combined")
    for probe in copies.values():
        probe.combine(add)
    return copies
