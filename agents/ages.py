"""Drawing ages with probability proportional to weights of age, exactly, in time independent of the memory's size.

A weight is any callable that takes ages (float64, the newest is 1) and returns a weight in [0, 1] for each; several
multiply. It may also know a closed form, `sample(num_rows, batch_size, generator)`, that draws from it. One weight
with a closed form is drawn from directly. Otherwise ages are proposed, from the first weight that has a closed form or
else uniformly, and kept with the probability that the remaining weights give. That takes batch / acceptance proposals;
where more than MAX_PROPOSALS per draw would be needed, the rest of the batch comes from the cumulative sum of the
weights of all ages, which is exact too but costs O(num_rows).
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

MAX_PROPOSALS = 256  # per draw; below this acceptance rate, one pass over all ages is the cheaper way


class AgeFunction(Protocol):
    """Function that weighs ages; it may have a method `sample`, a fast way to draw from its weights."""

    def __call__(self, age: Tensor) -> Tensor:
        """Return weights in [0, 1] for float64 ages >= 1, of the same shape."""


def draw_ages(weights: Mapping[str, AgeFunction], num_rows: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Return ages (batch_size,) int64 in 1..num_rows, drawn with replacement; uniform without weights."""

    def uniform(size: int) -> Tensor:
        return torch.randint(1, num_rows + 1, (size,), generator=generator, device=generator.device)

    if not weights:
        return uniform(batch_size)

    def closed_form(size: int) -> Tensor:
        return weights[sampled].sample(num_rows, size, generator)  # type: ignore[attr-defined, index]

    def all_ages(size: int) -> Tensor:
        return invert(probabilities(weights, num_rows, generator.device), size, generator) + 1

    sampled = next((name for name, weight in weights.items() if hasattr(weight, "sample")), None)
    propose = uniform if sampled is None else closed_form
    others = {name: weight for name, weight in weights.items() if name != sampled}
    if not others:
        return propose(batch_size)
    return reject(propose, lambda age: multiply(others, age.double()), all_ages, batch_size, generator)


def probabilities(weights: Mapping[str, AgeFunction], num_rows: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the probability (num_rows,) float64 of each age 1..num_rows; uniform where all weights are 0."""
    age = torch.arange(1, num_rows + 1, dtype=torch.float64, device=device)
    product = multiply(weights, age)
    total = product.sum()
    return torch.where(total > 0, product / total.clamp_min(1e-300), torch.full_like(product, 1 / num_rows))


def multiply(weights: Mapping[str, AgeFunction], age: Tensor) -> Tensor:
    """Return the product of all weights at the given ages; raise ValueError for a weight outside [0, 1]."""
    product = torch.ones_like(age)
    for name, weight in weights.items():
        one = weight(age)
        if not ((one >= 0) & (one <= 1)).all():
            wrong = one[~((one >= 0) & (one <= 1))][0].item()
            raise ValueError(f"the age weight {name!r} returned {wrong}: weights must be in [0, 1]")
        product *= one
    return product


def reject(
    propose: Callable[[int], Tensor],
    chance: Callable[[Tensor], Tensor],
    exact: Callable[[int], Tensor],
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Return `batch_size` independent draws by rejection: proposals are kept with the probability `chance(proposed)`.

    After MAX_PROPOSALS per draw, the missing ones come from `exact(size)`, which draws from the same distribution.
    """
    kept, missing, proposed, size = [], batch_size, 0, 2 * batch_size
    while missing and proposed < MAX_PROPOSALS * batch_size:
        found = propose(size)
        draw = torch.rand(size, dtype=torch.float64, generator=generator, device=generator.device)
        kept.append(found[draw < chance(found)][:missing])
        missing -= len(kept[-1])
        proposed += size
        size *= 2
    if missing:
        kept.append(exact(missing))
    return torch.cat(kept)


def invert(probability: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return indices (size,) int64, drawn by inverting the cumulative sum; none of probability 0. O(len)."""
    cumulative = probability.cumsum(0)
    last = torch.searchsorted(cumulative, cumulative[-1:])  # the last one of positive probability
    draw = torch.rand(size, dtype=torch.float64, generator=generator, device=generator.device) * cumulative[-1]
    return torch.searchsorted(cumulative, draw, right=True).minimum(last)
