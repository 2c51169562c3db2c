"""Hidden units that several layers write together: neurons that are added or multiplied before one activation.

Such are ``relu(f(s) + g(a))``, features that a task scales and shifts (FiLM, Perez et al. 2018), a low-rank adapter
written flat, and the two linears of a recurrent cell. A residual stream is none: there, too, layers are added, but what
is read in between is not the sum of all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .labels import NOTHING, Label, Plane, unrepeated

CallNumbers = frozenset[int]
"""Numbers of layer calls."""

ALONE: CallNumbers = frozenset()
"""The sum that a neuron is in which is added to no other."""


class Summations:
    """The sums in which the neurons of each call of a pass were taken up."""

    def __init__(self) -> None:
        self._seen: defaultdict[int, set[CallNumbers]] = defaultdict(set)
        self._units: dict[int, CallNumbers] = {}

    def note(self, plane: Plane) -> None:
        """Note that a layer, or the caller of the model, takes up neurons."""
        for number in plane.calls:
            self._seen[number].add(plane.joined)

    def settle(self, is_activated: Callable[[int, CallNumbers], bool]) -> None:
        """Find the units: sums that are activated, and whose calls are taken up in no other way."""
        for joined in {joined for found in self._seen.values() for joined in found if joined}:
            if all(self._seen[number] <= {joined} and is_activated(number, joined) for number in joined):
                self._units.update(dict.fromkeys(joined, joined))

    def of(self, number: int) -> CallNumbers:
        """Return the calls that a call makes units with, itself among them; :data:`ALONE` if it makes its own."""
        return self._units.get(number, ALONE)

    def holds(self, number: int, joined: CallNumbers) -> bool:
        """Return whether neurons of a call that were seen in a sum were seen as what they are: units, or alone."""
        return joined == self.of(number)


def summands(operands: Sequence[Label]) -> CallNumbers:
    """Return the layer calls whose neurons a sum or product of ``operands`` joins; none where it joins anything else.

    Parts of one layer may be joined to each other, but no neuron to itself, as in a rotary embedding. Outside data may
    take part, such as an embedding of the task: they are nobody's neurons.
    """
    if len(operands) < 2 or any(tag.mixed for tag in operands):
        return ALONE
    planes = [plane for tag in operands for plane in tag.planes]
    if any(plane.activation or plane.summed or plane.product for plane in planes):
        return ALONE
    pairs = [(a, b) for i, a in enumerate(operands) for b in operands[:i] if a.calls & b.calls]
    if any(bool(torch.isin(_neurons(a), _neurons(b)).any()) for a, b in pairs):
        return ALONE
    return frozenset().union(*(tag.calls for tag in operands))


def _neurons(tag: Label) -> Tensor:
    """Return the labels of all neurons that a tensor carries, each once."""
    found = torch.cat([unrepeated(plane.ids).flatten() for plane in tag.planes]).unique()
    return found[found != NOTHING]


def plus(plane: Plane, joined: frozenset[int]) -> Plane:
    """Return a plane to which others were added: all in one unit, where they are ``joined``."""
    return replace(plane, joined=joined, added=True) if joined else replace(plane, summed=True)
