"""The units of a network: layers that write the same units, factors of a gate or summands, count as one layer."""

from __future__ import annotations

from collections.abc import Iterable

from plasticity.structure.layers import Layer
from plasticity.structure.partners import partners
from plasticity.structure.wirings import Wiring


class WholeUnits:
    """The layers of a wiring by the units that they write."""

    def __init__(self, wired: Wiring, layers: Iterable[Layer]) -> None:
        self._first: dict[str, str] = {}
        """Layer -> the first of those that write the same units."""
        self._number: dict[str, int] = {}
        """Layer -> the number of units that it takes part in."""
        for layer in layers:
            found = partners(wired, layer) if layer.name in wired.layers else set()
            first = next((self._first[name] for name in found if name in self._first), layer.name)
            self._first[layer.name] = first
            self._number[layer.name] = layer.num_neurons // (1 + (layer.name in found))

    def groups(self, layers: Iterable[str]) -> list[tuple[list[str], int]]:
        """Return the layers, together where they write the same units, and how many units these are."""
        found: dict[str, list[str]] = {}
        for layer in layers:
            found.setdefault(self._first[layer], []).append(layer)
        return [(names, max(self._number[name] for name in names)) for names in found.values()]
