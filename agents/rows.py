"""Writing single rows of a memory: on the CPU through numpy, which takes a third of the time that torch needs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def writable(storage: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return, by name, what rows are assigned to: views of the same memory as numpy arrays, or the tensors."""
    return {name: values.numpy() if values.device.type == "cpu" else values for name, values in storage.items()}
