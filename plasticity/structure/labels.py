"""Labels: which element of a tensor carries which neuron, and what has happened to the neuron on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

NOTHING = -1
"""The label of an element that carries no neuron."""

STRIDE = 1 << 32
"""Neuron ``i`` of the ``c``-th call of a weight layer has the label ``c * STRIDE + i``."""

Replay = tuple[Callable[[Tensor], Tensor], ...]


@dataclass(frozen=True)
class Plane:
    """One neuron per element of a tensor, and what has happened to it since its layer wrote it."""

    ids: Tensor
    """Labels, int64, the shape of the tensor they label."""
    calls: frozenset[int]
    """The layer calls whose neurons are among the labels (possibly more, after a slice)."""
    activation: str | None = None
    """The first non-linear operation it went through."""
    norms: int = 0
    """How many normalisations it went through before that."""
    averaged: int = 0
    """How many weighted sums over samples it went through before that, as in a layer of a graph network."""
    renormalised: bool = False
    """True if a normalisation came after that activation, so that a dead neuron no longer shows as 0."""
    summed: bool = False
    """True if something else was added on top: a residual stream."""
    joined: frozenset[int] = frozenset()
    """The layer calls of which neurons were added to or multiplied with each other, or had outside data added, before
    any activation: they may be one unit."""
    added: bool = False
    """True if some of that was a sum: where these are no units, they are a residual stream."""
    multiplied: bool = False
    """True if some of that was a product: where these are no units, they are factors."""
    product: bool = False
    """True if it was multiplied with other neurons: a gate."""
    gated: bool = False
    """True if it is a factor of a product of neurons of which one is activated: that product is the hidden unit."""
    weighted: bool = False
    """True if it was multiplied by weights of no layer: a sum over neurons is then a product with these weights."""
    replay: Replay | None = ()
    """The operations that lead here from the layer's own output, or from the last norm module before the activation;
    None where other tensors took part."""
    condensed: bool = False
    """True if, once activated, samples were added up, pooled or left out, or values were changed: not every activation
    is seen any more as it was."""
    whole: Replay | None = None
    """:attr:`replay` as it was before values were moved or condensed: what only moves them leaves them as they are."""

    @property
    def path(self) -> Replay | None:
        """The operations that lead to its present values, or to the last before it was condensed."""
        return self.whole if self.replay is None else self.replay

    @property
    def clean(self) -> bool:
        """True if the element is the neuron's own activation and nothing else."""
        return self.activation is not None and not (self.renormalised or self.summed or self.product)

    def moved(self, ids: Tensor) -> Plane:
        """Return the plane with its values elsewhere."""
        return replace(self, ids=ids, replay=None, whole=self.path)

    def condense(self, ids: Tensor) -> Plane:
        """Return the plane after an operation over samples, or one that changed values."""
        return replace(self.moved(ids), condensed=self.activation is not None)

    def seen_anew(self) -> Plane:
        """Return the plane at the end of a norm module: a place to repeat operations from, before an activation."""
        return replace(self, replay=()) if self.activation is None else self

    def normalised(self) -> Plane:
        """Return the plane after a normalisation over neurons or samples."""
        if self.activation is None:
            return replace(self, norms=self.norms + 1, replay=None)
        return replace(self, renormalised=True, replay=None)


@dataclass(frozen=True)
class Label:
    """Contents of a tensor: neurons by element, neurons that were mixed (by which operation), or outside data."""

    planes: tuple[Plane, ...] = ()
    mixed: Mapping[int, str] = field(default_factory=dict)
    """Number of a layer call -> the operation that mixed its neurons."""
    statistic: bool = False
    """True if the mixture is a mere reduction over neurons (a mean, a norm), as normalisers compute it."""
    external: bool = False
    """True if the model's inputs, an embedding or the like take part."""
    weighed: frozenset[int] = frozenset()
    """Numbers of layer calls whose neurons were mixed after they were multiplied by weights of no layer."""

    def __bool__(self) -> bool:
        return bool(self.planes or self.mixed or self.external)

    @property
    def calls(self) -> set[int]:
        """The layer calls whose neurons the planes carry."""
        return set().union(*(plane.calls for plane in self.planes))

    def map(self, change: Callable[[Plane], Plane]) -> Label:
        """Return a tag with ``change`` applied to every plane."""
        return replace(self, planes=tuple(change(plane) for plane in self.planes))

    def without_planes(self) -> Label:
        """Return what the tag says besides its planes."""
        return replace(self, planes=())

    def normalised(self) -> Label:
        """Return the tag after a normalisation over neurons or samples."""
        return self.map(Plane.normalised)

    def reshaped(self, shape: torch.Size) -> Label:
        """Return the tag for another view of the same memory."""
        return self.map(lambda p: p.moved(p.ids.reshape(shape)))


def mix(tags: Iterable[Label], operation: str, statistic: bool = False) -> Label:
    """Return a tag that remembers only which layers took part, and in which operation."""
    mixed: dict[int, str] = {}
    weighed: frozenset[int] = frozenset()
    external = False
    for tag in tags:
        external |= tag.external
        mixed |= dict.fromkeys(tag.calls, operation) | dict(tag.mixed)
        weighed = weighed.union(tag.weighed, *(plane.calls for plane in tag.planes if plane.weighted))
    return Label(mixed=mixed, statistic=statistic, external=external, weighed=weighed)


def unrepeated(ids: Tensor) -> Tensor:
    """Return labels without the axes along which they are the same by construction."""
    for dim in (d for d in range(ids.dim()) if ids.stride(d) == 0 and ids.shape[d] > 1):
        ids = ids.narrow(dim, 0, 1)
    return ids


def common(ids: Tensor, dims: Iterable[int]) -> Tensor | None:
    """Return the labels with ``dims`` kept at size 1 if they do not vary along them; None if they do."""
    if not ids.numel():
        return None
    dims = tuple(d % ids.dim() for d in dims)
    for d in dims:
        if ids.stride(d) == 0:  # broadcast: the same by construction
            ids = ids.narrow(d, 0, 1)
    varying = tuple(d for d in dims if ids.shape[d] > 1)
    if not varying:
        return ids
    lowest = ids.amin(varying, keepdim=True)
    return lowest if torch.equal(lowest, ids.amax(varying, keepdim=True)) else None


def feature_vector(ids: Tensor, axis: int) -> Tensor | None:
    """Return the labels along ``axis`` if they are the same at every other position; None if they are not."""
    others = [d for d in range(ids.dim()) if d != axis % ids.dim()]
    vector = common(ids, others)
    return None if vector is None else vector.reshape(ids.shape[axis])


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield every tensor in nested sequences, mappings and plain objects (such as a distribution), in order."""
    if isinstance(value, Tensor):
        yield value
        return
    if not depth or isinstance(value, (type, nn.Module)):
        return
    items: Iterable[Any] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    elif hasattr(value, "__dict__"):
        items = vars(value).values()
    for item in items:
        yield from tensors_in(item, depth - 1)
