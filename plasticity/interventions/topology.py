"""The parts of sparse training: how dense each layer is, when it grows, what is pruned and grown, what is reviewed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity.probes import Probe
from plasticity.probes.probe import FORWARD, Summand
from plasticity.structure.layers import Layer
from plasticity.structure.wirings import Wiring
from plasticity.surgery.initialisers import weight_of
from plasticity.surgery.origin import Replacement

from .every_step import layers_of


@dataclass
class SparseLayer:
    """One sparse weight: where its density starts and where growth may take it."""

    name: str
    module: nn.Module
    initial: float
    final: float

    @property
    def weight(self) -> Tensor:
        """The weight itself."""
        return weight_of(self.module)


def sparse_layers(wired: Wiring, free: Iterable[Tensor], dense_ends: bool) -> list[Layer]:
    """Return the layers that may be made sparse, each weight once: those whose weight is among the ``free`` parameters.

    ``dense_ends``: not the first layers, which no other layer feeds, nor output layers. Never the parts of a plasticity
    injection, which have to cancel.
    """
    fed = {consumer.layer for layer in wired.layers.values() for consumer in layer.consumers}
    parts = [f"{path}." for path, part in wired.modules.items() if isinstance(part, Replacement)]
    allowed, chosen = {id(parameter) for parameter in free}, []
    for layer in wired.layers.values():
        weight = layer.module._parameters.get("weight")
        end = layer.is_output or layer.name not in fed
        inside = any(layer.name.startswith(part) for part in parts)
        if layer.num_calls and id(weight) in allowed and not inside and not (dense_ends and end):
            allowed.discard(id(weight))
            chosen.append(layer)
    return chosen


def may_be_sparse(network: nn.Module, dense_ends: bool) -> bool:
    """Return False where no pass can show a layer that may be sparse, as far as the order of the layers tells.

    The first and the last layer count as ends; a weight with a parametrization is computed, and never sparse.
    """
    layers = list(layers_of(network).values()) if dense_ends else []
    ends = {id(layer.weight) for layer in layers[:1] + layers[-1:]}
    weights = [(name, p) for name, p in network.named_parameters() if p.dim() > 1]
    return any(id(p) not in ends and "parametrizations." not in name for name, p in weights)


def erdos_renyi(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Return each layer's density so that together they have ``density``, thin layers being denser.

    A layer of shape (out, in, ...) gets eps * sum(shape) / prod(shape); layers that would exceed 1 are dense and eps is
    solved again for the rest. Source: Mocanu et al. 2018 (arXiv 1707.04780), as in google-research/rigl (ERK).
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is in (0, 1], got {density}")
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        rest = [i for i in range(len(shapes)) if i not in dense]
        wanted = density * sum(sizes) - sum(sizes[i] for i in dense)
        eps = wanted / sum(raw[i] * sizes[i] for i in rest)
        over = {i for i in rest if eps * raw[i] > 1}
        if not over:
            return [1.0 if i in dense else max(0.0, eps * raw[i]) for i in range(len(shapes))]
        # The densest first: making it dense may bring the others below 1.
        dense.add(max(over, key=lambda i: raw[i]))
    return [1.0] * len(shapes)


def grown_share(step: int, end: int) -> float:
    """Return the share of all growth done by ``step``, in [0, 1]: the sum of a rate (1 + cos(pi t / end)) / 2.

    Source: NE's cosine-annealed growth (arXiv 2410.07994, section 4), normalised so that growth is complete at ``end``.
    """
    t = min(max(step / end, 0.0), 1.0)
    return t + math.sin(math.pi * t) / math.pi


def pruned_share(step: int, begin: int, end: int) -> float:
    """Return the share of all pruning done by ``step``, 1 - (1 - t)^3 for t from ``begin`` to ``end``, in [0, 1].

    Source: Zhu & Gupta 2017 (arXiv 1710.01878), section 3.
    """
    t = min(max((step - begin) / (end - begin), 0.0), 1.0)
    return 1 - (1 - t) ** 3


def cosine_fraction(fraction: float, step: int, end: int) -> float:
    """Return fraction / 2 * (1 + cos(pi step / end)), 0 after ``end``. Source: RigL (arXiv 1911.11134), section 3."""
    return fraction / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0


def random_mask(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """Return a bool mask with ``count`` random entries True."""
    mask = torch.zeros(math.prod(shape), dtype=torch.bool, device="cpu")
    mask[torch.randperm(len(mask), generator=generator, device="cpu")[:count]] = True
    return mask.view(*shape)


def top(scores: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Return a bool mask of the ``count`` largest scores among the allowed entries, or of all if they are fewer."""
    count = min(count, int(allowed.sum()))
    mask = torch.zeros_like(allowed).flatten()
    ranked = torch.where(allowed, scores, -torch.inf).flatten().topk(count).indices
    mask[ranked] = True
    return mask.view_as(allowed)


def some(allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a bool mask of ``count`` random allowed entries, or of all if they are fewer."""
    scores = torch.rand(allowed.shape, generator=generator, device="cpu").to(allowed.device)
    return top(scores, allowed, count)


def regrow(
    mask: Tensor, cut: Tensor, count: int, gradient: Tensor | None, generator: torch.Generator, again: bool
) -> Tensor:
    """Return the mask without ``cut`` and with ``count`` more connections, or all there are room for.

    ``gradient``: of all connections; the largest magnitudes grow; None for random ones. ``again``: whether what was cut
    may grow again at once, as in RigL and SET; its weight is then kept. Shapes are those of the weight. Source: RigL
    (arXiv 1911.11134), section 3, and google-research/rigl.
    """
    kept = mask & ~cut
    free = ~kept if again else ~mask
    grown = some(free, count, generator) if gradient is None else top(gradient.abs(), free, count)
    return kept | grown


def review_gate(active: float, awaken: float = 0.4, amplitude: float = 0.9) -> float:
    """Return the probability of *not* reviewing old experience: 1 / (1 + A exp(a - active)), 0.4 where it exceeds 0.6.

    ``active``: fraction of active units, in [0, 1]. Source: github.com/torressliu/neuroplastic-expansion (the gate of
    its training script; the paper's own form is not public).
    """
    gate = 1 / (1 + amplitude * math.exp(awaken - active))
    return 0.4 if gate >= 0.6 else gate


class ActiveFraction(Probe):
    """Fraction of (sample, neuron) entries above 0, in [0, 1]; higher is better.

    NE's code gates its review by it and calls it FAU. It is not the fraction of neurons that are ever active.
    """

    def sums(self) -> Mapping[str, Summand]:
        """Count positive activations, (neurons,)."""
        return {FORWARD: lambda activations: (activations > 0).sum(0)}

    def compute(self) -> Tensor:
        """Return the fraction."""
        counts = self.total(FORWARD)
        return counts.sum() / (len(counts) * self.num_samples(FORWARD))


@dataclass(frozen=True)
class Oldest:
    """The age weight of a review: uniform over the oldest ``share`` of the memory, which holds ``rows()`` ages."""

    share: float
    rows: Callable[[], int]

    def __call__(self, age: Tensor) -> Tensor:
        """Return 1 for old enough ages, 0 for others."""
        return (age > self._newest(self.rows())).double()

    def sample(self, num_rows: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return ages, (batch_size,) int64, uniform over the oldest ones."""
        low = self._newest(num_rows) + 1
        return torch.randint(low, num_rows + 1, (batch_size,), generator=generator, device=generator.device)

    def _newest(self, num_rows: int) -> int:
        """Return the last age that is too young; at least one age is old."""
        return min(num_rows - 1, num_rows - math.floor(num_rows * self.share))
