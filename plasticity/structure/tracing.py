"""Follow single neurons through one forward pass.

Every weight layer's output is labelled, element by element, with the number of the neuron that wrote it. A dispatch
mode then sees each tensor operation below autograd and moves the labels as the operation moves the data (``rules.py``).
Unlike a walk over the autograd graph this also sees frozen layers, integer inputs, passes without gradients and the
layout of a flattened feature map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from .divisions import Call, Divisions
from .functional import Index
from .labels import NOTHING, STRIDE, Label, Plane, mix, tensors_in
from .rules import MATRIX_PRODUCTS, MOVES, TOLD, Operation, propagate

FACTORIES = ("_like", "new_", "empty", "zeros", "ones", "rand", "full", "bernoulli")
"""Parts of the names of operations whose result takes nothing but the shape of a tensor."""


MOST_ACTIVATED = 4
"""How many planes per call are considered: the first activation is among the first ones."""


Owner = tuple[str, bool]
"""The name of a module, and whether its parameter is a matrix, as weights are, or a vector, as biases are."""


@dataclass
class Activated:
    """A plane that may be a layer's activation, and what was done with it next."""

    plane: Plane
    reduced: bool = False
    """True if a statistic was taken of it."""
    used: bool = False
    """True if it went into anything else."""


class Tracer(TorchDispatchMode):
    """Carry neuron labels through every operation that runs inside the ``with`` block."""

    def __init__(self, parameters: Mapping[str, Iterable[Tensor]]) -> None:
        """Take the parameters of each module by its name."""
        super().__init__()
        self.tags = WeakIdKeyDictionary()
        self.calls: list[Call] = []
        self._activated: defaultdict[int, list[Activated]] = defaultdict(list)
        self.absorbed: dict[int, str] = {}
        """Number of a call -> the operation that mixed its neurons by a parameter of no known layer."""
        self.used: set[str] = set()
        """The modules whose parameters were used, by whatever operation."""
        self.inside = 0
        """How many known weight layers are running: products with their parameters are no surprise."""
        self.paused = 0
        """How many modules are running whose effect is put in by hand."""
        self.borrowed: dict[str, str] = {}
        """Module -> the first operation outside of all known weight layers that joined its weight with data."""
        self._owners: defaultdict[int, list[tuple[range, Owner]]] = defaultdict(list)
        """Memory -> where in it parameters lie, and to whom they belong."""
        for name, own in parameters.items():
            for parameter in filter(_memory, own):
                self._owners[_memory(parameter) or 0].append((_place(parameter), (name, parameter.dim() > 1)))
        self.fused = Divisions(self.calls)
        self._weights = WeakIdKeyDictionary()
        """The tensors that were computed from parameters alone, and the owners of these."""

    def label(self, layer: str, index: int, output: Tensor, axis: int) -> None:
        """Give ``output`` fresh neuron numbers along ``axis``: a weight layer has just written it."""
        number, num = len(self.calls), output.shape[axis]
        self.calls.append(Call(layer, index, num))
        shape = [1] * output.dim()
        shape[axis] = num
        ids = torch.arange(num, device=output.device).add_(number * STRIDE).view(shape).expand(output.shape)
        self.tags[output] = Label((Plane(ids, frozenset([number])),))

    def label_parts(self, calls: list[tuple[str, int]], indices: list[Index | None], output: Tensor, axis: int) -> None:
        """Give the parts of ``output`` neuron numbers of their own: a function has written several layers at once."""
        num = output.shape[axis]
        if indices == [None]:
            self.label(*calls[0], output, axis)
            return
        ids = torch.full(output.shape, NOTHING, device=output.device)
        numbers = range(len(self.calls), len(self.calls) + len(calls))
        for number, (layer, call), index in zip(numbers, calls, indices, strict=True):
            self.calls.append(Call(layer, call, num))
            ids[index] = torch.arange(num, device=output.device).add_(number * STRIDE)
        self.tags[output] = Label((Plane(ids, frozenset(numbers)),))

    def mark_external(self, tensors: Iterable[Tensor]) -> None:
        """Say that these tensors come from outside: inputs, embeddings, anything that no traced layer wrote."""
        for tensor in tensors:
            if tensor.is_floating_point():
                self.tags[tensor] = Label(external=True)

    def tag(self, tensor: Tensor) -> Label:
        """Return what ``tensor`` carries; an empty tag for constants and parameters."""
        return self.tags.get(tensor) or Label()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        # Read before running: an in-place operation must not see its own result.
        operands = [(t, self.tag(t)) for t in tensors_in((args, kwargs))]
        weights = set[Owner]().union(*(self._owners_of(t) for t, tag in operands if not tag))
        out = func(*args, **kwargs)
        if any(tag for _, tag in operands):
            weights = set() if self.inside else weights
            for name in (name for name, is_matrix in weights if is_matrix):
                self.borrowed.setdefault(name, func.overloadpacket.__name__)
            self._follow(func, args, kwargs, operands, out, bool(weights))
        elif weights:
            self._weights.update((t, weights) for t in tensors_in(out) if t.is_floating_point() or t.is_complex())
        return out

    def _owners_of(self, tensor: Tensor) -> set[Owner]:
        """Return to whom a tensor that carries no neurons belongs as a parameter, or as computed from some."""
        known, where = self._owners.get(_memory(tensor) or 0, ()), tensor.data_ptr() if _memory(tensor) else 0
        owners = {owner for place, owner in known if where in place}
        self.used.update(name for name, _ in owners)
        return owners | self._weights.get(tensor, set())

    def _follow(
        self, func: Any, args: tuple, kwargs: dict, operands: list[tuple[Tensor, Label]], out: Any, weights: bool
    ) -> None:
        """Tag what came ``out`` of an operation; ``weights``: whether weights of no running layer took part."""
        name = func.overloadpacket.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        name = name.removesuffix("_") if in_place else name
        if name not in MOVES and any(part in name for part in FACTORIES):
            return
        op = Operation(func, name, args, kwargs, operands, list(tensors_in(out)))
        tags = propagate(op)
        self.fused.follow(op, tags)
        self._note_absorbed(op, tags, weights)
        if weights and name == "mul":
            tags = [tag.map(lambda p: replace(p, weighted=p.weighted or p.clean)) for tag in tags]
        self._note_uses(op, any(tag.statistic for tag in tags))
        for tensor, tag in zip(op.outputs, tags, strict=True):
            if tensor.is_floating_point() or tensor.is_complex() or (tensor.dtype == torch.bool and name in TOLD):
                self._assign(tensor, tag, name)
                if in_place:
                    self._write_through(tensor, name)

    def _assign(self, tensor: Tensor, tag: Label, name: str) -> None:
        try:
            tag = tag.map(lambda p: replace(p, ids=p.ids.broadcast_to(tensor.shape)))
        except RuntimeError:
            tag = mix([tag], name)
        for plane in tag.planes:
            for call in plane.calls if plane.clean and tensor.dtype != torch.bool else ():
                if len(self._activated[call]) < MOST_ACTIVATED:
                    self._activated[call].append(Activated(plane))
        self.tags[tensor] = tag

    def _write_through(self, written: Tensor, name: str) -> None:
        """Tell the other tensors that look at the memory an in-place operation has changed."""
        tag = self.tag(written)
        aliases = [t for t in self.tags if t is not written and _memory(t) == _memory(written)]
        if written._base is not None and all(t is not written._base for t in aliases):
            aliases.append(written._base)
        for alias in aliases:
            if alias.numel() == written.numel() and alias.is_contiguous() and written.is_contiguous():
                self.tags[alias] = tag.reshaped(alias.shape)
            else:
                self.tags[alias] = mix([self.tag(alias), tag], f"{name}_ on a part of it")

    def _note_absorbed(self, op: Operation, tags: list[Label], weights: bool) -> None:
        """Remember neurons that were mixed by weights of no known layer, be they themselves made by the model."""
        carried = set().union(*(tag.calls for _, tag in op.operands)) if weights else set()
        if op.name in MATRIX_PRODUCTS and sum(bool(tag) for _, tag in op.operands) > 1:
            planes = (plane for _, tag in op.operands for plane in tag.planes)
            carried = carried.union(*(p.calls for p in planes if p.clean and "softmax" not in str(p.activation)))
        for number in carried.intersection(*(tag.mixed for tag in tags)):
            self.absorbed.setdefault(number, op.name)

    def _note_uses(self, op: Operation, statistic: bool) -> None:
        for plane in (plane for _, tag in op.operands for plane in tag.planes):
            for found in (found for call in plane.calls for found in self._activated.get(call, ())):
                if found.plane is plane:
                    found.reduced |= statistic
                    found.used |= not statistic

    def activated(self, number: int, joined: frozenset[int] = frozenset()) -> Plane | None:
        """Return the plane of a call right after its first activation, joined to these calls; None if there is none."""
        # What was nothing but reduced is a step to a statistic: the square in an RMS norm is no activation.
        alike = (found for found in self._activated[number] if found.plane.joined == joined)
        found = (found.plane for found in alike if found.used or not found.reduced)
        return next(found, None)


def _place(tensor: Tensor) -> range:
    """Return the addresses of a tensor's entries, from the first to the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return range(tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size())


def _memory(tensor: Tensor) -> int | None:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None
