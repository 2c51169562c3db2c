"""Fused projections: layers whose neurons go apart before anything is computed with all of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from .labels import STRIDE, Label, Plane, unrepeated
from .rules import COPIES, MOVES, RESHAPES, Operation


@dataclass(frozen=True)
class Call:
    """One call of a weight layer: the ``index``-th of that layer in the pass."""

    layer: str
    index: int
    num_neurons: int


class Divisions:
    """The parts into which the neurons of each call are divided: queries, keys and values of one weight, say.

    Rotary embeddings take the two halves of a head apart as well, but compute with the whole besides.
    """

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._parts: defaultdict[int, list[Tensor]] = defaultdict(list)
        """Number of a call -> the parts of its neurons that were taken, each (neurons,) of indices."""
        self._whole: set[int] = set()
        """Calls of which all neurons took part together in an operation that computes."""

    def follow(self, op: Operation, tags: list[Label]) -> None:
        """Look at one operation, and at the tags of its results."""
        if op.name in COPIES or op.name in RESHAPES:
            return
        if op.name not in MOVES:
            for plane in (plane for _, tag in op.operands for plane in tag.planes):
                self._whole.update(number for number in plane.calls - self._whole if self._is_all(plane, number))
            return
        results = [plane for tag in tags for plane in tag.planes]
        for source in op.source.planes:
            for number in source.calls - self._whole:
                smaller = [p for p in results if number in p.calls and p.ids.numel() < source.ids.numel()]
                if smaller and self._is_all(source, number):
                    found = [neurons_in(plane, number) for plane in smaller]
                    self._parts[number] += [part for part in found if len(part) < self._calls[number].num_neurons]

    def _is_all(self, plane: Plane, number: int) -> bool:
        return len(neurons_in(plane, number)) == self._calls[number].num_neurons

    def of(self, number: int) -> list[Tensor]:
        """Return the parts of a call's neurons; none where it was used as a whole, or in part only, or they overlap."""
        parts = self._parts.get(number, [])
        if number in self._whole or len(parts) < 2:
            return []
        together = torch.cat(parts).sort().values
        every = torch.arange(self._calls[number].num_neurons, device="cpu")
        return parts if torch.equal(together, every) else []


def neurons_in(plane: Plane, number: int) -> Tensor:
    """Return the neurons of a call among the labels of a plane, (neurons,) in their order, on the CPU."""
    found = unrepeated(plane.ids).unique()
    return (found[found // STRIDE == number] % STRIDE).cpu()
