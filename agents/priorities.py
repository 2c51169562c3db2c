"""Prioritised experience replay, the proportional variant (Schaul et al. 2016, ICLR, arXiv 1511.05952).

Transition i is drawn with probability P(i) = p_i^alpha / sum_j p_j^alpha, p_i = |error_i| + ERROR_OFFSET. Its loss is
weighted by (N P(i))^-beta, divided by the largest weight of the batch. New transitions get the largest priority so far.
A sum tree finds a draw in a few steps, for a whole batch at once. Its nodes have WIDTH children instead of two: on
tensors a step costs about the same whether it looks at 2 numbers or at 16, and there are four times fewer of them.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .ages import invert, reject

ERROR_OFFSET = (
    1e-6  # keeps transitions without error in reach; Schaul et al. leave its size open, this is OpenAI baselines'
)
WIDTH = 16


class Priorities:
    """Sum tree over the p^alpha of `capacity` transitions: `levels[0]` are the leaves, in groups of WIDTH.

    `levels[k + 1][g]` is the sum of group g of `levels[k]`, and the last level is one group. Draws are independent,
    with replacement; Schaul et al. draw one from each of batch_size equal ranges of the sum, which is the same for
    every single draw.
    """

    def __init__(self, capacity: int, alpha: float, *, device: torch.device | str = "cpu") -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"Priorities needs alpha in [0, 1], got {alpha}")
        self.capacity, self.alpha = capacity, alpha
        self.levels: list[Tensor] = []
        groups = capacity
        while not self.levels or groups > 1:
            groups = -(-groups // WIDTH)
            self.levels.append(torch.zeros(groups * WIDTH, dtype=torch.float64, device=device))
        self.largest = torch.ones((), dtype=torch.float64, device=device)

    @property
    def leaves(self) -> Tensor:
        """Return p^alpha of every slot (capacity,) float64, a view; 0 where there is no transition yet."""
        return self.levels[0][: self.capacity]

    def add(self, index: Tensor) -> None:
        """Give new transitions the largest priority so far."""
        self._set(index, self.largest.expand(len(index)))

    def update(self, index: Tensor, error: Tensor) -> None:
        """Set priorities by the errors (batch,) just found; slots drawn twice must come with the same error."""
        values = (error.detach().double().abs() + ERROR_OFFSET) ** self.alpha
        self.largest = torch.maximum(self.largest, values.max())
        self._set(index, values)

    def _set(self, index: Tensor, values: Tensor) -> None:
        self.levels[0][index] = values
        for lower, upper in pairwise(self.levels):
            index = index // WIDTH
            upper[index] = lower.view(-1, WIDTH)[index].sum(1)

    def draw(
        self, batch_size: int, generator: torch.Generator, chance: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return slots (batch_size,) int64, with probability P(i), or P(i) chance(i) / sum for `chance(slots)`."""
        if chance is None:
            return self._descend(batch_size, generator)

        def exact(size: int) -> Tensor:
            return invert(self.probabilities(chance), size, generator)

        return reject(lambda size: self._descend(size, generator), chance, exact, batch_size, generator)

    def _descend(self, size: int, generator: torch.Generator) -> Tensor:
        """Return leaves (size,) int64 for uniform shares of the total, found from the top of the tree down."""
        device = generator.device
        node = torch.zeros(size, dtype=torch.int64, device=device)
        rest = torch.rand(size, dtype=torch.float64, generator=generator, device=device) * self.levels[-1].sum()
        for level in reversed(self.levels):
            sums = level.view(-1, WIDTH)[node].cumsum(1)  # (size, WIDTH)
            # The first child whose sum is beyond the rest; where rounding leaves none, the last one that has any.
            child = (sums <= rest[:, None]).sum(1).minimum((sums < sums[:, -1:]).sum(1))
            before = sums.gather(1, (child - 1).clamp_min(0)[:, None]).squeeze(1)
            rest = torch.where(child > 0, rest - before, rest)
            node = node * WIDTH + child
        return node

    def probabilities(self, chance: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the probability (capacity,) float64 of each slot; `chance` is ignored where it leaves nothing."""
        values = self.leaves
        if chance is not None:
            product = values * chance(torch.arange(self.capacity, device=values.device))
            values = torch.where(product.sum() > 0, product, values)
        return values / values.sum()

    def importance(self, index: Tensor, beta: float) -> Tensor:
        """Return the weights (batch,) float32 in (0, 1]: (N P(i))^-beta over the largest of the batch.

        They make up for the priorities only: an age weight that shares in the drawing is meant to be felt.
        """
        values = self.leaves[index]
        return (values.min() / values).pow(beta).float()

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the priorities; the sums follow from them."""
        return {"leaves": self.leaves.clone(), "largest": self.largest.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of as many transitions."""
        self.largest = state["largest"].to(self.largest)
        self._set(torch.arange(self.capacity, device=self.largest.device), state["leaves"].to(self.largest))
