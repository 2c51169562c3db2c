"""The units of a network: layers that write the same units, factors of a gate or summands, count as one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from plasticity.structure.layers import Layer
from plasticity.structure.partners import partners
from plasticity.structure.wirings import Wiring


class WholeUnits:
    """The layers of a wiring by the units that they write."""

    def __init__(self, wired: Wiring, layers: Iterable[Layer]) -> None:
        self.made_of = wired
        self._first: dict[str, str] = {}
        """Layer -> the first of those that write the same units."""
        self._number: dict[str, int] = {}
        """Layer -> the number of units that it takes part in."""
        for layer in layers:
            found = partners(wired, layer) if layer.name in wired.layers else set()
            first = next((self._first[name] for name in found if name in self._first), layer.name)
            self._first[layer.name] = first
            self._number[layer.name] = layer.num_neurons // (1 + (layer.name in found))

    def together(self, values: Mapping[str, float]) -> tuple[list[float], list[int]]:
        """Return a value for all layers that write the same units, their mean, and how many units these are."""
        found: dict[str, list[str]] = {}
        for layer in values:
            found.setdefault(self._first[layer], []).append(layer)
        means = [sum(values[layer] for layer in layers) / len(layers) for layers in found.values()]
        return means, [max(self._number[layer] for layer in layers) for layers in found.values()]

    def number(self, layers: Iterable[str]) -> int:
        """Return the number of different units of layers."""
        return sum(self.together(dict.fromkeys(layers, 0.0))[1])
