"""Weight layers that run without a module's call: slices of three-dimensional parameters, weights given to functions.

Experts in one parameter (experts, neurons, inputs), vectorised critics and weights that a model hands to
``F.linear`` or ``F.conv1d`` itself are seen where a function of torch takes them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from plasticity.isolation import is_scripted

from .einsum import roles
from .layers import NORM_MODULES, inputs_first, neuron_axis
from .slices import Slice

TAKING: dict[str, tuple[int, bool]] = {
    **{"linear": (0, False), **{f"conv{d}d": (0, False) for d in (1, 2, 3)}},
    **{"matmul": (0, True), "__matmul__": (0, True), "mm": (0, True), "bmm": (0, True)},
    **{"addmm": (1, True), "baddbmm": (1, True), "grouped_mm": (0, True), "_grouped_mm": (0, True)},
}
"""Name of a function -> the position of its input, before the weight, and whether the weight has its inputs first."""


Index = int | slice | tuple[Any, ...]
"""The expression in brackets behind a tensor."""


@dataclass(frozen=True)
class Part:
    """A part of a tensor, which one layer takes up or writes."""

    whole: Tensor
    index: Index

    def of(self, tensor: Tensor) -> Tensor:
        """Return the same part of another tensor, such as a gradient."""
        return tensor[self.index]


Value = Tensor | Part


def shown(value: Any) -> Any:
    """Return what a value shows: the part of a tensor, or the value itself."""
    return value.of(value.whole) if isinstance(value, Part) else value


class Taken(NamedTuple):
    """A call of a function that takes up the weights of one or several layers."""

    place: str
    """The name of the event: that of the layer, or of the parameter that several are slices of."""
    layers: dict[int, str]
    """Position -> the layer that has samples there."""
    inputs: dict[int, Value]
    indices: dict[int, Index | None]
    """Position -> the part of the output that is the layer's; None for all of it."""

    def outputs(self, output: Tensor) -> dict[int, Value]:
        """Return what each layer writes."""
        return {key: output if i is None else Part(output, i) for key, i in self.indices.items()}


class _Matrix(NamedTuple):
    name: str
    weight: Tensor
    sliced: bool
    inputs_first: bool


class Weights:
    """Find the layers whose weights a function is given; ``modules``: those whose own parameters are looked for."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._at: dict[tuple[int, int], tuple[_Matrix, int | None]] = {}
        self.slices: dict[str, dict[str, Slice]] = {}
        """Parameter -> the layers that are slices of it, once a function took one up."""
        self._modules = modules
        for matrix in _matrices(modules):
            start, dims = matrix.weight.data_ptr(), matrix.weight.dim()
            self._at[start, dims] = matrix, None
            if matrix.sliced:
                step = matrix.weight.stride(0) * matrix.weight.element_size()
                self._at.update({(start + i * step, 2): (matrix, i) for i in range(len(matrix.weight))})

    def taken(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Taken | None:
        """Return what a call of a function takes up; None where these are no weights of layers."""
        name = getattr(func, "__name__", "")
        if name == "einsum":
            return self._taken_by_einsum(*args)
        if name not in TAKING:
            return None
        position, inputs_first = TAKING[name]
        given = [*args, *(kwargs[key] for key in ("input", "weight", "mat2", "other") if key in kwargs)]
        x, weight = given[position : position + 2] if len(given) > position + 1 else (None, None)
        if not (isinstance(x, Tensor) and isinstance(weight, Tensor)) or (position and not _is_bias(given[0], x)):
            return None
        try:
            matrix, index = self._find(weight)
        except (StopIteration, RuntimeError):  # unknown, or a tensor without memory of its own
            return None
        if not matrix.sliced:
            conv = func.__name__.startswith("conv")
            return _whole(matrix.name, x) if _is_same(matrix, weight, inputs_first, conv) else None
        names = self._slices(matrix, neurons_last=_neurons_last(weight, inputs_first, matrix, index))
        if names is None:
            return None
        if index is not None:
            return _whole(names[index], x)
        return _several(matrix.name, names, x, kwargs.get("offs", given[2] if len(given) > 2 else None), name)

    def _taken_by_einsum(self, equation: Any, *operands: Any) -> Taken | None:
        """Return what an einsum of an input and the weights of one layer, or of an ensemble, takes up."""
        operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
        if not isinstance(equation, str) or len(operands) != 2 or not all(isinstance(t, Tensor) for t in operands):
            return None
        for position, weight in enumerate(operands):
            x, found = operands[1 - position], roles(equation, position)
            try:
                matrix, index = self._find(weight)
            except (StopIteration, RuntimeError):
                continue
            if found is None or index is not None or matrix.sliced != (found.of_output is not None) or not x.numel():
                return None
            if not matrix.sliced or found.of_output is None:
                return _whole(matrix.name, x) if _is_same(matrix, weight, found.inputs_first, False) else None
            names = self._slices(matrix, neurons_last=found.inputs_first) if weight.dim() == 3 else None
            return None if names is None else _members(matrix.name, names, x, found.of_input, found.of_output)
        return None

    def _find(self, weight: Tensor) -> tuple[_Matrix, int | None]:
        start = weight.data_ptr()
        if (start, weight.dim()) in self._at:
            return self._at[start, weight.dim()]
        return next(self._at[start, dims] for dims in (2, 3, 4, 5) if (start, dims) in self._at)

    def _slices(self, matrix: _Matrix, neurons_last: bool) -> list[str] | None:
        """Return the names of the slices of a parameter; None where they were used with the other axis as neurons."""
        if matrix.name not in self.slices:
            host, _, key = matrix.name.rpartition(".")
            of = self._modules[host]
            found = {f"{matrix.name}.{i}": Slice(of, key, i, neurons_last) for i in range(len(matrix.weight))}
            self.slices[matrix.name] = found
        found = self.slices[matrix.name]
        return None if next(iter(found.values())).neurons_last != neurons_last else list(found)


def slices_of(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of all that may be layers as slices of a parameter."""
    return [f"{found.name}.{i}" for found in _matrices(modules) if found.sliced for i in range(len(found.weight))]


def sliced_parameters(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the parameters by name whose slices may be layers."""
    return {found.name: found.weight for found in _matrices(modules) if found.sliced}


def _matrices(modules: Mapping[str, nn.Module]) -> Iterator[_Matrix]:
    for name, module in modules.items():
        if isinstance(module, NORM_MODULES) or is_scripted(module):
            continue
        weight = module._parameters.get("weight")
        if neuron_axis(module) is not None:
            if weight is not None and not is_lazy(weight) and weight.numel():
                yield _Matrix(name, weight, False, inputs_first(module))
            continue
        for key, parameter in module._parameters.items():
            if parameter is None or is_lazy(parameter):
                continue
            if parameter.dim() == 3 and len(parameter) > 1 and max(parameter.shape[1:]) > 1:
                yield _Matrix(f"{name}.{key}".removeprefix("."), parameter, True, False)


def _is_same(matrix: _Matrix, weight: Tensor, inputs_first: bool, conv: bool) -> bool:
    """Return whether a weight is given as its own layer would use it, and not transposed, as in tied autoencoders."""
    if conv:
        return matrix.weight.dim() == weight.dim() and matrix.weight.shape == weight.shape
    own = matrix.weight if inputs_first == matrix.inputs_first else matrix.weight.mT
    return weight.dim() == 2 and weight.shape == own.shape and weight.stride() == own.stride()


def _neurons_last(weight: Tensor, inputs_first: bool, matrix: _Matrix, index: int | None) -> bool:
    """Return whether the neurons of a slice lie along the parameter's last axis."""
    own = matrix.weight if index is None else matrix.weight[index]
    return (weight.stride()[-2:] == own.stride()[-2:]) == inputs_first


def _is_bias(added: Any, x: Tensor) -> bool:
    """Return whether what a product is added to can be a bias, and not what another layer wrote for each sample."""
    return isinstance(added, nn.Parameter) or not isinstance(added, Tensor) or added.shape[:-1] != x.shape[:-1]


def _whole(name: str, x: Tensor) -> Taken:
    return Taken(name, {0: name}, {0: x}, {0: None}) if x.numel() else Taken(name, {}, {}, {})


def _several(place: str, names: list[str], x: Tensor, offs: Any, function: str) -> Taken | None:
    """Return the parts of a batch of products: one matrix each, or one group of rows each."""
    if function in ("grouped_mm", "_grouped_mm"):
        if x.dim() != 2 or not isinstance(offs, Tensor):
            return None
        ends = offs.tolist()
        rows = {
            i: slice(start, end) for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)) if end > start
        }
    elif x.dim() >= 3 and x.shape[-3] == len(names) and x.numel():
        return _members(place, names, x, -3, -3)
    elif x.dim() == 2 and x.numel():  # one input for all
        return _members(place, names, x, None, -3)
    else:
        return None
    parts: dict[int, Value] = {i: Part(x, index) for i, index in rows.items()}
    return Taken(place, {i: names[i] for i in rows}, parts, dict(rows))


def _members(place: str, names: list[str], x: Tensor, of_input: int | None, of_output: int) -> Taken:
    """Return the parts of a product with the weights of an ensemble, whose members lie along an axis of each side."""
    indices = {i: _at(of_output, i) for i in range(len(names))}
    inputs: dict[int, Value] = {i: x if of_input is None else Part(x, _at(of_input, i)) for i in indices}
    return Taken(place, dict(enumerate(names)), inputs, dict(indices))


def _at(axis: int, index: int) -> Index:
    """Return what takes one element along an axis."""
    return (*[slice(None)] * axis, index) if axis >= 0 else (..., index, *[slice(None)] * (-axis - 1))


DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout}
"""Functions that leave some activations out, in training only: a pass in evaluation mode shows no operation."""


class FunctionCalls(TorchFunctionMode):
    """Call ``enter(taken)`` before a function takes up weights of layers, and ``leave(taken, output)`` after.

    ``drop(call, x)``: called to run a dropout of ``x``, by ``call()``.
    """

    def __init__(
        self,
        weights: Weights,
        enter: Callable[[Taken], None],
        leave: Callable[[Taken, Tensor], None],
        drop: Callable[[Callable[[], Tensor], Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._weights, self._enter, self._leave, self._drop = weights, enter, leave, drop

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        taken = self._weights.taken(func, args, kwargs or {})
        if self._drop is not None and args and func in DROPOUTS:
            return self._drop(partial(func, *args, **(kwargs or {})), args[0])
        if taken is None:
            return func(*args, **(kwargs or {}))
        self._enter(taken)
        output = func(*args, **(kwargs or {}))
        self._leave(taken, output)
        return output
