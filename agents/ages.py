"""Drawing ages with probability proportional to weights of age, exactly, in time independent of the memory's size.

A weight is any callable that takes ages (float64, the newest is 1) and returns a weight in [0, 1] for each; several
multiply. It may also know a closed form, `sample(num_rows, batch_size, generator)`, that draws from it. One weight
with a closed form is drawn from directly. Otherwise ages are proposed, from the first weight that has a closed form or
else uniformly, and kept with the probability that the remaining weights give. That takes batch / acceptance proposals;
where more than MAX_PROPOSALS per draw would be needed, the rest of the batch comes from the cumulative sum of the
weights of all ages, which is exact too but costs O(num_rows).
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

MAX_PROPOSALS = 256  # per draw; below this acceptance rate, one pass over all ages is the cheaper way


class AgeWeight(Protocol):
    """Weights of ages; `sample` is optional, and therefore not part of the protocol."""

    def __call__(self, age: Tensor) -> Tensor:
        """Return weights in [0, 1] for float64 ages >= 1, of the same shape."""


def draw_ages(weights: Mapping[str, AgeWeight], num_rows: int, batch_size: int, generator: torch.Generator) -> Tensor:
    """Ages (batch_size,) int64 in 1..num_rows, drawn with replacement; uniform without weights."""
    if not weights:
        return _uniform(num_rows, batch_size, generator)
    sampled = next((name for name, weight in weights.items() if hasattr(weight, "sample")), None)
    if sampled is None:
        return _reject(weights, weights, None, num_rows, batch_size, generator)
    others = {name: weight for name, weight in weights.items() if name != sampled}
    if not others:
        return weights[sampled].sample(num_rows, batch_size, generator)  # type: ignore[attr-defined]
    return _reject(weights, others, weights[sampled], num_rows, batch_size, generator)


def probabilities(weights: Mapping[str, AgeWeight], num_rows: int, device: torch.device | str = "cpu") -> Tensor:
    """Probability (num_rows,) float64 of each age 1..num_rows; uniform where all weights are 0. O(num_rows)."""
    age = torch.arange(1, num_rows + 1, dtype=torch.float64, device=device)
    product = multiply(weights, age)
    total = product.sum()
    return torch.where(total > 0, product / total.clamp_min(1e-300), torch.full_like(product, 1 / num_rows))


def multiply(weights: Mapping[str, AgeWeight], age: Tensor) -> Tensor:
    """Product of all weights at the given ages; raises ValueError for a weight outside [0, 1]."""
    product = torch.ones_like(age)
    for name, weight in weights.items():
        one = weight(age)
        if not ((one >= 0) & (one <= 1)).all():
            wrong = one[~((one >= 0) & (one <= 1))][0].item()
            raise ValueError(f"the age weight {name!r} returned {wrong}: weights must be in [0, 1]")
        product *= one
    return product


def _uniform(num_rows: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, num_rows + 1, (size,), generator=generator, device=generator.device)


def _reject(
    weights: Mapping[str, AgeWeight],
    others: Mapping[str, AgeWeight],
    proposal: AgeWeight | None,
    num_rows: int,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Keep proposed ages with the probability `others` give them; accepted ones are independent exact draws."""
    kept, missing, proposed, size = [], batch_size, 0, 2 * batch_size
    while missing and proposed < MAX_PROPOSALS * batch_size:
        if proposal is None:
            age = _uniform(num_rows, size, generator)
        else:
            age = proposal.sample(num_rows, size, generator)  # type: ignore[attr-defined]
        chance = torch.rand(size, dtype=torch.float64, generator=generator, device=generator.device)
        kept.append(age[chance < multiply(others, age.double())][:missing])
        missing -= len(kept[-1])
        proposed += size
        size *= 2
    if missing:
        kept.append(_invert(probabilities(weights, num_rows, generator.device), missing, generator))
    return torch.cat(kept)


def _invert(probability: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Ages by inverting the cumulative sum; one of probability 0 is never drawn."""
    cumulative = probability.cumsum(0)
    last = torch.searchsorted(cumulative, cumulative[-1:])  # the last age of positive probability
    draw = torch.rand(size, dtype=torch.float64, generator=generator, device=generator.device) * cumulative[-1]
    return torch.searchsorted(cumulative, draw, right=True).minimum(last) + 1
