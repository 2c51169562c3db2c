"""The neurons that methods recycled last in each network, for probes that ask what became of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

from torch import nn

_LAST: WeakKeyDictionary[nn.Module, dict[str, dict[str, list[int]]]] = WeakKeyDictionary()
"""Network -> method -> layer -> neurons of its last event."""


def note_recycled(network: nn.Module, method: str, neurons: Mapping[str, Sequence[int]]) -> None:
    """Note the neurons of a method's last event in a network, by layer."""
    _LAST.setdefault(network, {})[method] = {layer: list(indices) for layer, indices in neurons.items()}


def last_recycled(network: nn.Module) -> dict[str, list[int]]:
    """Return layer -> the neurons of the last event of every method, sorted; empty where nothing was recycled."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for neurons in _LAST.get(network, {}).values():
        for layer, indices in neurons.items():
            found[layer].update(indices)
    return {layer: sorted(indices) for layer, indices in found.items()}
