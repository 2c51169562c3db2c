"""Random numbers for acting, drawn for many steps at once: a hundred rows cost hardly more than one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

NUM_ROWS = 128


class Draws:
    """Rows of random numbers (num_envs, *shape) from a generator: arrays on the CPU, tensors on another device.

    `draw(size, generator)` fills a block of rows, which the generator moves past at once. What is left of the block
    belongs to the state, so that a run goes on to the bit wherever it stopped.
    """

    def __init__(
        self, draw: Callable[[Sequence[int], torch.Generator], Tensor], size: Sequence[int], generator: torch.Generator
    ) -> None:
        self.draw, self.size, self.generator = draw, tuple(size), generator
        self._rows: list[Any] = []  # the next one last

    def row(self, num: int) -> Any:
        """Return the numbers of one step of `num` environments; another number than that of the rows is drawn apart."""
        if num != self.size[0]:
            return self._block((num, *self.size[1:]))
        if not self._rows:
            self._rows = list(self._block((NUM_ROWS, *self.size)))[::-1]
        return self._rows.pop()

    def _block(self, size: Sequence[int]) -> Any:
        block = self.draw(size, self.generator)
        return block.numpy() if block.is_cpu else block

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that are left, (rows, num_envs, *shape)."""
        if not self._rows:
            return {"rows": torch.empty((0, *self.size), device="cpu")}
        return {
            "rows": torch.stack([torch.as_tensor(row, device=self.generator.device) for row in reversed(self._rows)])
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; rows of another size are left out."""
        rows = state["rows"].clone().to(self.generator.device)
        fits = rows.shape[1:] == self.size
        self._rows = list(rows.numpy() if rows.is_cpu else rows)[::-1] if fits else []


def normal(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from N(0, 1)."""
    return torch.randn(size, generator=generator, device=generator.device)


def uniform(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw evenly from [0, 1)."""
    return torch.rand(size, generator=generator, device=generator.device)


def gumbel(size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw from the standard Gumbel distribution: minus the logarithm of an Exp(1)."""
    return -torch.empty(size, device=generator.device).exponential_(generator=generator).log()
