"""Follow single neurons through one forward pass.

Every weight layer's output is labelled, element by element, with the number of the neuron that wrote it. A dispatch
mode then sees each tensor operation below autograd and moves the labels as the operation moves the data (``rules.py``).
Unlike a walk over the autograd graph this also sees frozen layers, integer inputs, passes without gradients and the
layout of a flattened feature map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from plasticity.isolation import put_back

from .divisions import Call, Divisions
from .functional import Index
from .labels import NOTHING, STRIDE, Label, Plane, mix, tensors_in
from .rules import COPIES, MATRIX_PRODUCTS, MOVES, RESHAPES, TOLD, Operation, propagate

FACTORIES = ("_like", "new_", "empty", "zeros", "ones", "rand", "full", "bernoulli")
"""Parts of the names of operations whose result takes nothing but the shape of a tensor."""


MOST_ACTIVATED = 4
"""How many planes per call are considered: the first activation is among the first ones."""


LINEAR_IN_A_WEIGHT = MOVES | COPIES | RESHAPES | {"mul", "div"}
"""Operations on one weight that leave its columns columns, and its zeros zeros."""


class Owned(NamedTuple):
    """A parameter that takes part in an operation."""

    module: str
    key: str
    is_matrix: bool
    """True for a matrix, as weights are, False for a vector, as biases are."""
    start: int
    """Its address, which tied parameters share."""
    is_changed: bool = False
    """True if it was changed before by more than a factor."""

    @property
    def name(self) -> str:
        """The name of the parameter."""
        return f"{self.module}.{self.key}".removeprefix(".")


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

    def __init__(self, parameters: Mapping[str, Iterable[tuple[str, Tensor]]]) -> None:
        """Take the parameters of each module, by their names, by its name."""
        super().__init__()
        self.tags = WeakIdKeyDictionary()
        self.calls: list[Call] = []
        self._activated: defaultdict[int, list[Activated]] = defaultdict(list)
        self.absorbed: dict[int, str] = {}
        """Number of a call -> the operation that mixed its neurons by a parameter of no known layer."""
        self.used: set[str] = set()
        """The modules whose parameters were used, by whatever operation."""
        self.running: list[str | None] = []
        """The weight layers and functions now running, innermost last: products with their weights are no surprise.
        None for those of which it does not matter what they compute with."""
        self.paused = 0
        """How many modules are running whose effect is put in by hand."""
        self.borrowed: dict[str, str] = {}
        """Module -> the first operation outside of all known weight layers that joined its weight with data."""
        self.besides: dict[str, str] = {}
        """Weight layer -> what it computes with that is not its weight as it is, in words."""
        self.written: dict[tuple[str, str], Tensor] = {}
        """Module and name of a parameter that the pass writes to in place -> the values that it had."""
        self._parameters: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        """Module and name of each parameter -> itself, and the memory that it began with."""
        self._owners: defaultdict[int, list[tuple[range, Owned]]] = defaultdict(list)
        """Memory -> where in it parameters lie."""
        for name, own in parameters.items():
            for key, parameter in ((key, p) for key, p in own if _memory(p)):
                owned = Owned(name, key, parameter.dim() > 1, parameter.data_ptr())
                self._owners[_memory(parameter) or 0].append((_place(parameter), owned))
                self._parameters[name, key] = (parameter, parameter.data)
        self.fused = Divisions(self.calls)
        self._weights = WeakIdKeyDictionary()
        """The tensors that were computed from parameters alone, and these."""

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
        if func._schema.is_mutable:
            self._keep_written(func, args, kwargs)
        if self.paused:
            return func(*args, **kwargs)
        # Read before running: an in-place operation must not see its own result.
        operands = [(t, self.tag(t)) for t in tensors_in((args, kwargs))]
        owned = [found for t, tag in operands if not tag and (found := self._owned(t))]
        weights = set[Owned]().union(*owned)
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if any(tag for _, tag in operands):
            if any(t.dim() for t, _ in operands):  # not what a model logs, nor a penalty in its loss
                self._note_borrowed(weights, name)
            self._follow(func, args, kwargs, operands, out, bool(weights and not self.running))
        elif weights:
            if name.removesuffix("_") not in LINEAR_IN_A_WEIGHT or len(owned) > 1:
                weights = {one._replace(is_changed=True) for one in weights}
            for t in (t for t in tensors_in(out) if t.is_floating_point() or t.is_complex()):
                self._weights[t] = weights
                if name.endswith("_") and t._base is not None:  # a part of it was written to
                    self._weights[t._base] = weights | self._weights.get(t._base, set())
        return out

    def _keep_written(self, func: Any, args: tuple, kwargs: dict) -> None:
        """Keep the values of parameters that an operation is about to write to."""
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in (tensor for tensor in tensors_in(value) if _memory(tensor)):
                    there = _place(tensor)
                    for place, one in self._owners.get(_memory(tensor) or 0, ()):
                        if place.start < there.stop and there.start < place.stop:
                            parameter, _ = self._parameters[one.module, one.key]
                            self.written.setdefault((one.module, one.key), parameter.detach().clone())

    def put_back(self) -> Iterator[tuple[str, str]]:
        """Let the parameters have what they had before the pass, and yield the module and name of those that changed.

        Memory is not given back where the shape is another one: what shards a model moves its parameters.
        """
        for place, (parameter, data) in self._parameters.items():
            alike = (parameter.shape, parameter.dtype) == (data.shape, data.dtype)
            moved = alike and parameter.data_ptr() != data.data_ptr()
            if moved or place in self.written:
                put_back(parameter, data if moved else parameter.data, self.written.get(place, data))
                yield place

    def note_inputs(self, tensors: Iterable[Tensor], name: str) -> None:
        """Note that what was computed from weights alone, such as some of their rows, goes into a module."""
        for tensor in (tensor for tensor in tensors if not self.tag(tensor)):
            self._note_borrowed(self._owned(tensor), name)

    def _note_borrowed(self, weights: set[Owned], by: str) -> None:
        """Note the matrices among the weights that something joins with data, but for those of the layer that runs."""
        matrices = [one for one in weights if one.is_matrix]
        if not self.running:
            for one in matrices:
                self.borrowed.setdefault(one.module, by)
        elif (layer := self.running[-1]) is not None:
            own = [one for one in matrices if (one.module, one.key) == (layer, "weight")]
            for one in sorted(one for one in matrices if one.start not in {weight.start for weight in own}):
                if one.module != layer:
                    self.borrowed.setdefault(one.module, by)
                self.besides.setdefault(layer, f"{one.name} besides its weight")
            if any(weight.is_changed for weight in own):
                self.besides.setdefault(layer, "a change of its weight")

    def _owned(self, tensor: Tensor) -> set[Owned]:
        """Return the parameters that a tensor without neurons is a part of, or was computed from."""
        known, where = self._owners.get(_memory(tensor) or 0, ()), tensor.data_ptr() if _memory(tensor) else 0
        owned = {one for place, one in known if where in place}
        self.used.update(one.module for one in owned)
        return owned | self._weights.get(tensor, set())

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
    """Return where a tensor's storage lies; None for sparse ones, and for those that wrap others, as in vmap."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else None
    except RuntimeError:
        return None
