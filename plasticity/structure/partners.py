"""Units that several layers write together: factors of a gate, and summands before one activation.

Such a unit is recycled whole. With one of its rows fresh and the other as it was, a gate that is shut by one factor
would get no gradient at the other, for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from plasticity.structure.layers import Consumer, Layer
from plasticity.structure.wirings import Wiring


def partners(wired: Wiring, layer: Layer) -> set[str]:
    """Return the layers whose neurons make units with those of ``layer``; itself, where it writes both parts."""
    return {other.name for _, other, _ in _shared(wired, layer)}


def sum_refusal(wired: Wiring, layer: Layer) -> str | None:
    """Return why sums of neurons cannot be edited as units, None if they can or there are none.

    A neuron may be in several sums, as one that is broadcast, or be taken up alone, too.
    """
    for mine, other, theirs in _pairs(wired, layer):
        if mine.joined and not _one_to_one(mine, theirs):
            return f"neurons of {layer.name} are added to several of {other.name}, or the other way round"
        for one, summand in ((layer, other), (other, layer)) if mine.joined else ():
            if not all(consumer.joined for consumer in wired.layers[one.name].consumers):
                return f"{one.name} is added to {summand.name}, and taken up alone, too"
    return None


def completed(wired: Wiring, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the masks, layer -> bool (neurons,), with all parts of every unit of which one part is flagged."""
    found = {name: mask.cpu() for name, mask in masks.items()}
    waiting = [name for name, mask in found.items() if mask.any()]
    while waiting:
        layer = wired.layers[waiting.pop()]
        for mine, other, theirs in _shared(wired, layer):
            both = (mine.columns >= 0) & (theirs.columns >= 0)
            flagged = both & found[layer.name][mine.columns.clamp(min=0)]
            new = torch.zeros(other.num_neurons, dtype=torch.bool, device="cpu")
            new[theirs.columns[flagged]] = True
            old = found.get(other.name, torch.zeros_like(new))
            if bool((new & ~old).any()):
                found[other.name] = old | new
                waiting.append(other.name)
    return {name: found[name] for name in wired.layers if name in found}


def _shared(wired: Wiring, layer: Layer) -> Iterator[tuple[Consumer, Layer, Consumer]]:
    """Yield the pairs of parts that make units: of a gate those factors that are heard in the product alone."""
    for mine, other, theirs in _pairs(wired, layer):
        whole = (mine.joined and theirs.joined) or (wired.layers[layer.name].gated and wired.layers[other.name].gated)
        if whole and _one_to_one(mine, theirs):
            yield mine, other, theirs


def _pairs(wired: Wiring, layer: Layer) -> Iterator[tuple[Consumer, Layer, Consumer]]:
    """Yield (consumer of the layer, another layer, or this, that shares its columns, consumer of that layer)."""
    for way in wired.ways:
        here = way.layers.get(layer.name)
        for mine in here.consumers if here is not None else ():
            for other, theirs in way.producers.get(mine.layer, ()):
                shares = theirs is not mine and mine.shares(theirs)
                if shares and bool(((mine.columns >= 0) & (theirs.columns >= 0)).any()):
                    yield mine, other, theirs


def _one_to_one(mine: Consumer, theirs: Consumer) -> bool:
    """Return whether each neuron always meets the same one."""
    both = (mine.columns >= 0) & (theirs.columns >= 0)
    pairs = torch.stack([mine.columns[both], theirs.columns[both]])
    number = pairs.unique(dim=1).shape[1]
    return all(len(side.unique()) == number for side in pairs)
