"""Writing single rows of a memory: on the CPU through numpy, which takes a third of the time that torch needs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def writable(storage: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return, by name, what rows are assigned to: views of the same memory as numpy arrays, or the tensors."""
    return {name: values.numpy() if is_numpys(values) else values for name, values in storage.items()}


def is_numpys(values: Tensor) -> bool:
    """Return whether numpy can look at a tensor: bfloat16 it does not know."""
    return values.is_cpu and values.dtype != torch.bfloat16


def as_row(values: Tensor, rows: Any) -> Any:
    """Return what is assigned to one of `rows` the fastest: an array, or the number where there is only one."""
    if not isinstance(rows, np.ndarray):
        return values.detach()
    if values.numel() == 1:
        return values.item()
    if values.requires_grad or not is_numpys(values):
        values = values.detach().cpu()
        values = values if is_numpys(values) else values.float()
    return values.numpy()


def any_true(done: Tensor) -> bool:
    """Return whether any entry of a mask (N,) is true: for a few entries, four times as fast as `any`."""
    return True in done.tolist()
