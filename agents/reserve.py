"""Memory for transitions, reserved at once, and what is said where the machine has too little of it."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

Fields = Mapping[str, tuple[Sequence[int], torch.dtype]]
"""Name of a field -> shape and type of one transition's."""

MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the limit, in bytes, of a container or of a job of a cluster."""

OF_ALLOCATORS = ("memory", "overflow", "buffer size")
"""Words of which one is in the error of every device whose memory is too small."""


def reserve(capacity: int, fields: Fields, device: torch.device) -> dict[str, Tensor]:
    """Return a tensor (capacity, *shape) for each field, not yet written.

    On the CPU the system gives each page when it is first written, so a memory that is too large fails late, by a
    kill: a RuntimeWarning tells it at once. Raises MemoryError where the device refuses.
    """
    each = sum(math.prod(shape) * dtype.itemsize for shape, dtype in fields.values())
    need = f"a replay memory of {capacity:,} transitions takes {gigabytes(capacity * each)}"
    try:
        tensors = {
            name: torch.empty((capacity, *shape), dtype=dtype, device=device) for name, (shape, dtype) in fields.items()
        }
    except RuntimeError as error:
        if not any(word in str(error) for word in OF_ALLOCATORS):
            raise
        raise MemoryError(f"{need}, more than {device} gives: choose a smaller buffer_size") from error
    if device.type == "cpu" and capacity * each > (there := machine_memory()):
        warnings.warn(
            f"{need} when it is full, and this machine has {gigabytes(there)}: the system will end the run before "
            f"{there // each:,} transitions; choose a smaller buffer_size",
            RuntimeWarning,
            stacklevel=4,
        )
    return tensors


def machine_memory() -> int:
    """Return the bytes of memory that a process may have here: the machine's, or the limit of its container."""
    texts = [file.read_text(encoding="utf-8").strip() for file in MEMORY_LIMITS if file.is_file()]
    limits = [int(text) for text in texts if text.isdigit()]
    with suppress(AttributeError, ValueError, OSError):  # of a system that does not tell
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=2**63)


def gigabytes(number: int) -> str:
    """Return a number of bytes in words: 28.2 GB."""
    return f"{number / 1e9:,.1f} GB" if number < 1e12 else f"{number / 1e12:,.1f} TB"
