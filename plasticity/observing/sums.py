"""Sums of tensors over passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MANY, MANY_NUMBERS = 64, 1 << 16
"""Passes, or numbers in them, after which tensors are added up: many at once cost a fraction."""


class Sums:
    """Sums over passes, in float64, of tensors that have the same entries."""

    def __init__(self) -> None:
        self.times = 0
        self._totals: list[Tensor] | None = None
        self._waiting: list[Sequence[Tensor]] = []
        self._shapes: list[torch.Size] = []
        self._many = 0

    def misfits(self, tensors: Sequence[Tensor]) -> list[tuple[int, torch.Size]]:
        """Return the positions of tensors that cannot be added, with the shape that could."""
        pairs = zip(tensors, self._shapes, strict=False)  # none before the first
        return [(i, shape) for i, (tensor, shape) in enumerate(pairs) if tensor.shape != shape]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add what one pass shows."""
        self.times += 1
        self._waiting.append(tensors)
        if len(self._waiting) >= self._many:
            if not self._many:
                self._shapes = self._shapes or [tensor.shape for tensor in tensors]
                self._many = max(1, min(MANY, MANY_NUMBERS // max(1, sum(map(Tensor.numel, tensors)))))
            if len(self._waiting) >= self._many:
                self.totals()

    def totals(self) -> list[Tensor]:
        """Return the sums."""
        if self._waiting:
            sums = [_sum(parts) for parts in zip(*self._waiting, strict=True)]
            self._totals = sums if self._totals is None else [a + b for a, b in zip(self._totals, sums, strict=True)]
            self._waiting = []
        assert self._totals is not None
        return self._totals

    def state_dict(self) -> dict[str, Any]:
        """Return all there is; what waits is added later, for the same bits."""
        return {"times": self.times, "totals": self._totals, "waiting": self._waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.times, self._totals, self._waiting = state["times"], state["totals"], list(state["waiting"])
        self._shapes = [tensor.shape for tensor in self._totals or self._waiting[0]]


class Total:
    """The sum of a vector over passes, in float64, to which a graph adds in place."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.times = 0
        self.vector = torch.zeros(size, dtype=torch.float64, device=device)

    def clear(self) -> None:
        """Start anew, in the same memory."""
        self.times = 0
        self.vector.zero_()

    def totals(self) -> list[Tensor]:
        """Return the sum, which stays as it is now."""
        return [self.vector.clone()]

    def state_dict(self) -> dict[str, Any]:
        """Return all there is, as of :class:`Sums`."""
        return {"times": self.times, "totals": self.totals(), "waiting": []}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        sums = Sums()
        sums.load_state_dict(state)
        self.times = sums.times
        self.vector.copy_(sums.totals()[0])


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors of one device as one vector: float32 where all are, else float64; may be traced."""
    dtype = torch.float32 if all(tensor.dtype == torch.float32 for tensor in tensors) else torch.float64
    return torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors])


def unpacked(vector: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
    """Return the tensors of a vector, in their shapes."""
    parts = vector.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum in float64; of one tensor at a fraction of the cost."""
    return parts[0].double() if len(parts) == 1 else torch.stack([*parts]).sum(0, dtype=torch.float64)
