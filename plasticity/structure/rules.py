"""How each tensor operation moves neurons: from the tags of its operands to the tags of its results.

Reshapes and concatenations act on the labels themselves, element-wise operations pass them on, reductions and attention
keep them where everything they average carries the same neuron. Whatever mixes neurons is remembered by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .joint import plus, summands
from .labels import NOTHING, Label, Plane, common, mix, tensors_in
from .selections import COMPARISONS, LOGIC, either, fills

# Names of operations below autograd ("aten"), without the underscore of the in-place form.
COPIES = {"clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "native_dropout"}
RESHAPES = {"view", "_unsafe_view", "reshape"}
MOVES = {
    *(
        "permute",
        "transpose",
        "t",
        "squeeze",
        "unsqueeze",
        "expand",
        "select",
        "slice",
        "narrow",
        "diagonal",
        "movedim",
    ),
    *("split", "split_with_sizes", "unbind", "chunk", "unfold", "repeat", "repeat_interleave", "flip", "roll"),
    *("index", "index_select", "gather", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
}
LINEAR = {
    *("add", "sub", "rsub", "mul", "div", "neg", "lerp", "addcmul", "addcdiv", "masked_fill", "where", "dropout"),
    *("positive", "real", "complex"),
}
TOLD = COMPARISONS | LOGIC | MOVES | RESHAPES | COPIES
"""Operations through which it is followed what lets neurons through."""
ACTIVATION_OPERATIONS = {"_prelu_kernel", "prelu", "rrelu_with_noise", "hardswish", "log_sigmoid_forward"}
"""Activations that torch does not count as pointwise."""
JOINS = {"add", "sub", "rsub", "maximum", "minimum", "mul", "addcmul"}
"""Operations that make one unit of the neurons of several layers, where none has been activated before."""
PRODUCTS = {"mul", "div", "addcmul", "addcdiv", "pow", "atan2"}
ACTIVATION_FUNCTIONS = {
    *("relu", "leaky_relu", "elu", "celu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid", "threshold"),
    *("hardtanh", "hardsigmoid", "softshrink", "hardshrink", "clamp", "clamp_min", "maximum", "where"),
    *ACTIVATION_OPERATIONS,
    *PRODUCTS,  # of a neuron with itself, as in x * sigmoid(x)
}
"""Activation functions of networks. Others, such as exp and abs, may be steps to one that a model computes itself."""
SOFTMAX = {"_softmax", "_safe_softmax", "_log_softmax"}
NORM_OPERATIONS = {
    *("native_layer_norm", "native_group_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "batch_norm"),
    *("_fused_rms_norm", "rms_norm"),
}
REDUCTIONS = {
    *("mean", "sum", "prod", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp"),
    "linalg_vector_norm",
}
POOLS = {
    **{f"{kind}_pool{d}d{tail}": d for kind in ("max", "avg") for d in (1, 2, 3) for tail in ("", "_with_indices")},
    **{f"{start}adaptive_{kind}_pool{d}d": d for start in ("", "_") for kind in ("max", "avg") for d in (1, 2, 3)},
    **{f"upsample_{kind}1d": 1 for kind in ("nearest", "linear")},
    **{f"upsample_{kind}2d": 2 for kind in ("nearest", "bilinear", "bicubic")},
    **{f"upsample_{kind}3d": 3 for kind in ("nearest", "trilinear")},
}
MATRIX_PRODUCTS = {"mm", "bmm", "baddbmm", "_sparse_mm", "_sparse_addmm"}
SCATTERED = {"index_add": "source", "index_reduce": "source", "scatter_add": "src", "scatter_reduce": "src"}
"""Operations that add up samples at the places that an index tells, and the argument that holds the samples."""
ATTENTION = "_scaled_dot_product"


@dataclass
class Operation:
    """One operation that has just run."""

    func: Any
    name: str
    args: tuple
    kwargs: dict
    operands: Sequence[tuple[Tensor, Label]]
    """The tensors among its arguments and what they carried before it ran."""
    outputs: Sequence[Tensor]

    @property
    def source(self) -> Label:
        """Return the tag of the first argument; an empty one if it is no tensor that was followed."""
        first = self.operands and self.args and self.operands[0][0] is self.args[0]
        return self.operands[0][1] if first else Label()

    @property
    def mixed(self) -> Label:
        """The tag of a result about which no more is known than who took part."""
        return mix((tag for _, tag in self.operands), self.name)

    def argument(self, name: str) -> Any:
        """Return the argument called ``name``, wherever it was passed; None where the operation has none."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                default = self.args[position] if position < len(self.args) else argument.default_value
                return self.kwargs.get(name, default)
        return None


def propagate(op: Operation) -> list[Label]:
    """Return what each output of ``op`` carries."""
    try:
        tags = _rule(op)
    except (RuntimeError, IndexError, ValueError):  # an unforeseen shape: name it instead of guessing
        return [op.mixed] * len(op.outputs)
    return tags + [Label()] * (len(op.outputs) - len(tags))


def _rule(op: Operation) -> list[Label]:
    source = op.source
    if op.name in COPIES:
        return [source]
    if op.name == "copy":
        return [op.operands[1][1]]
    if op.name in RESHAPES:
        return [source.map(lambda p: p.moved(_reshape(p.ids, op.outputs[0].shape)))]
    if op.name in MOVES:
        return _move(op)
    if op.name == "view_as_real":
        return [source.map(lambda p: replace(p, ids=p.ids.unsqueeze(-1).expand(op.outputs[0].shape), replay=None))]
    if op.name == "view_as_complex":
        return [_reduced(source, [-1], False, op.outputs[0].shape) or op.mixed]
    if op.name in LOGIC:
        return [either(op.operands, op.name, op.outputs[0].shape)]
    if op.name == "index_put" and fills(op.args[1], op.operands):
        return [source.map(lambda p: replace(p, activation=p.activation or op.name, replay=None))]
    if op.name in ("cat", "stack"):
        return [_join(op)]
    if op.name == "constant_pad_nd":
        return [source.map(lambda p: replace(p, ids=op.func(p.ids, op.args[1], NOTHING), replay=None))]
    if op.name == "glu":
        return [_glu(op)]
    if op.name in SOFTMAX:
        return [source.map(lambda p: replace(p, activation=p.activation or "softmax", replay=None))]
    if op.name in NORM_OPERATIONS:
        return [source.normalised()]
    if op.name in REDUCTIONS:
        return [_reduce(op)]
    if op.name in POOLS:
        return [_pool(op, POOLS[op.name])]
    if op.name in MATRIX_PRODUCTS or op.name.startswith(ATTENTION):
        return [_weighted_sum(op)]
    if op.name in SCATTERED:
        source = op.argument(SCATTERED[op.name])
        return [_summed(op, next(i for i, (t, _) in enumerate(op.operands) if t is source), op.argument("dim"))]
    if torch.Tag.pointwise in op.func.tags or op.name in LINEAR | ACTIVATION_OPERATIONS:
        return [_pointwise(op, output.shape) for output in op.outputs]
    return [op.mixed] * len(op.outputs)


def _reshape(ids: Tensor, shape: torch.Size) -> Tensor:
    """Reshape labels; where they are broadcast over a first axis that stays, they stay broadcast (and small)."""
    if ids.dim() > 1 and len(shape) > 1 and ids.stride(0) == 0 and ids.shape[0] == shape[0]:
        return ids[:1].reshape(1, *shape[1:]).expand(shape)
    return ids.reshape(shape)


def _move(op: Operation) -> list[Label]:
    """Apply the very operation that moved the data to the labels."""
    results: list[list[Plane]] = [[] for _ in op.outputs]
    for plane in op.source.planes:
        moved = op.func(plane.ids, *op.args[1:], **op.kwargs)
        for result, ids in zip(results, tensors_in(moved), strict=True):
            result.append(plane.condense(ids) if ids.numel() < plane.ids.numel() else plane.moved(ids))
    return [replace(op.source, planes=tuple(planes)) for planes in results]


def _join(op: Operation) -> Label:
    """Concatenate the labels of each operand with nothing in the place of the others."""
    parts = list(op.args[0])
    planes: list[Plane] = []
    for position, (_, tag) in enumerate(op.operands[: len(parts)]):
        for plane in tag.planes:
            blank = [torch.full((), NOTHING, device=t.device).expand(t.shape) for t in parts]
            blank[position] = plane.ids
            planes.append(plane.moved(op.func(blank, *op.args[1:], **op.kwargs)))
    rest = mix((tag.without_planes() for _, tag in op.operands), op.name)
    return replace(rest, planes=tuple(planes))


def _glu(op: Operation) -> Label:
    dim = op.argument("dim")

    def half(plane: Plane, ids: Tensor) -> Plane:
        return replace(plane, ids=ids, activation=plane.activation or "glu", product=True, gated=True, replay=None)

    return replace(op.source, planes=tuple(half(p, ids) for p in op.source.planes for ids in p.ids.chunk(2, dim)))


def _reduce(op: Operation) -> Label:
    """Keep the labels if every reduced element carries the same neuron: a mean over time or space."""
    dims, keepdim = op.argument("dim"), bool(op.argument("keepdim"))
    dims = [dims] if isinstance(dims, int) else dims
    found = _reduced(op.source, dims or [], keepdim, op.outputs[0].shape)
    if found is None and op.name in ("sum", "mean") and dims and len(op.source.planes) > 1:
        found = _added(op, dims, keepdim)
    return found or mix([op.source], op.name, statistic=True)


def _reduced(source: Label, dims: Sequence[int], keepdim: bool, shape: torch.Size) -> Label | None:
    """Return a tag without some axes, along which each plane carries one neuron; None where one carries several."""
    planes = []
    for plane in source.planes:
        ids = common(plane.ids, dims) if dims else None
        if ids is None:
            return None
        planes.append(plane.condense(ids if keepdim else ids.reshape(shape)))
    return replace(source, planes=tuple(planes))


def _added(op: Operation, dims: Sequence[int], keepdim: bool) -> Label | None:
    """Return the tag of a sum over stacked tensors, in which each plane has one neuron per sum; None for others."""
    found = []
    for plane in op.source.planes:
        ids = plane.ids.amax(tuple(dims), keepdim=True)
        if not bool(((plane.ids == ids) | (plane.ids == NOTHING)).all()):
            return None
        found.append(replace(plane, ids=ids if keepdim else ids.reshape(op.outputs[0].shape), replay=None))
    joined = summands([replace(op.source, planes=(plane,)) for plane in op.source.planes])
    return replace(op.source, planes=tuple(plus(plane, joined) for plane in found))


def _pool(op: Operation, num_spatial: int) -> Label:
    """Keep the channel's label where all positions carry it, at the new spatial size."""
    return op.source.map(partial(_averaged, dims=range(-num_spatial, 0), shape=op.outputs[0].shape))


def _weighted_sum(op: Operation) -> Label:
    """Keep the labels of the values that attention weights, or those of a graph, average over; mix the rest."""
    if op.name.startswith(ATTENTION):
        return _summed(op, 2, -2)
    channels_first = len(op.operands) == 2 and op.operands[0][1].planes and not op.operands[1][1]
    return _summed(op, 0, -1) if channels_first else _summed(op, len(op.operands) - 1, -2)


def _summed(op: Operation, value_at: int, dim: int) -> Label:
    """Return the tag of sums of one operand over samples, along ``dim``; what else took part is mixed."""
    value = op.operands[value_at][1]
    kept = value.map(partial(_averaged, dims=[dim], shape=op.outputs[0].shape))
    kept = kept.map(lambda p: replace(p, averaged=p.averaged + (p.activation is None)))
    rest = mix((tag for i, (_, tag) in enumerate(op.operands) if i != value_at), op.name)
    rest = mix([rest, value.without_planes()], op.name)
    return replace(kept, mixed=rest.mixed, external=rest.external, weighed=rest.weighed)


def _averaged(plane: Plane, dims: Sequence[int], shape: torch.Size) -> Plane:
    ids = common(plane.ids, dims)
    if ids is None:
        raise ValueError("what is averaged carries different neurons")
    return plane.condense(ids.expand(shape))


def _pointwise(op: Operation, shape: torch.Size) -> Label:
    live = [tag for t, tag in op.operands if tag and (t.is_floating_point() or t.is_complex())]
    live, normalised = _absorb_statistics(live)
    conditions = [tag for t, tag in op.operands if t.dtype == torch.bool and (tag.planes or tag.mixed)]
    decided = set().union(*(tag.calls for tag in conditions))
    others_say = [tag for tag in conditions if not any(tag.calls & other.calls for other in live)]
    same = _same_neurons(live, shape)
    nonlinear = op.name not in LINEAR or (same and op.name in PRODUCTS | {"where"})
    # A mask or a scale from outside changes neurons, but joins them to nothing.
    joins = op.name in JOINS and not same and (op.name != "mul" or sum(bool(tag.planes) for tag in live) > 1)
    joined = summands(live) if joins else frozenset()
    # Played again as an out-of-place operation on a copy: the tensor it will be played on belongs to the model.
    step = partial(_play, op.func, op.args[1:], op.kwargs) if len(op.operands) == 1 and op.source else None

    def passed_on(plane: Plane, others: list[Label]) -> Plane:
        multiplies = op.name in PRODUCTS and any(tag.planes or tag.mixed for tag in others)
        activation = plane.activation or (op.name if nonlinear or plane.calls & decided else None)
        result = replace(
            plane,
            ids=plane.ids.broadcast_to(shape),
            activation=activation,
            norms=plane.norms + (normalised and activation is None),
            renormalised=plane.renormalised or (normalised and activation is not None),
            summed=plane.summed or (bool(others) and op.name not in PRODUCTS and not joined),
            joined=joined or plane.joined,
            added=plane.added or (bool(joined) and op.name != "mul"),
            multiplied=plane.multiplied or (multiplies and bool(joined)),
            gated=plane.gated or bool(others_say) or (op.name == "mul" and _gates(plane, others)),
            product=plane.product or bool(others_say) or (multiplies and not joined),
            replay=None if step is None or plane.replay is None else (*plane.replay, step),
            whole=plane.whole if plane.condensed else None,
        )
        # As relu(z) + 1, whose activation is relu(z).
        if plane.activation in ACTIVATION_FUNCTIONS and result.clean and not same:
            return plane.condense(result.ids)
        return result

    planes = []
    for tag in live:
        others = [] if same else [other for other in live if other is not tag]
        planes += [passed_on(plane, others) for plane in tag.planes]
    if same:
        each = len(live[0].planes)
        planes = [_merge(planes[i::each], [tag.planes[i] for tag in live]) for i in range(each)]
    rest = mix((tag.without_planes() for tag in live), op.name, statistic=bool(live) and all(t.statistic for t in live))
    return replace(rest, planes=tuple(planes), mixed={**rest.mixed, **mix(others_say, op.name).mixed})


def _gates(plane: Plane, others: list[Label]) -> bool:
    """Return whether the product of a plane with others is a gated unit: one of them is activated.

    The weights of a softmax are none: they depend on all neurons.
    """
    if plane.activation == "softmax":
        return False
    factors = [plane, *(factor for tag in others for factor in tag.planes)]
    return len(factors) > 1 and any(f.activation not in (None, "softmax") and not f.summed for f in factors)


def _absorb_statistics(live: list[Label]) -> tuple[list[Label], bool]:
    """Drop operands that are mere statistics of the others: ``x - x.mean()`` is a normalisation, not a sum."""
    calls = set().union(*(tag.calls for tag in live))
    kept = [tag for tag in live if not (tag.statistic and set(tag.mixed) <= calls)]
    return (kept, True) if kept and len(kept) < len(live) else (live, False)


def _play(func: Callable[..., Tensor], args: tuple, kwargs: dict, x: Tensor) -> Tensor:
    return next(tensors_in(func(x.clone(), *args, **kwargs)))


def _same_neurons(live: list[Label], shape: torch.Size) -> bool:
    """Return whether several operands carry the same neurons, as in ``x * sigmoid(x)``, in planes of one order."""
    if len(live) < 2 or any(not tag.planes or tag.mixed or tag.external for tag in live):
        return False
    first, *others = live
    if any([p.calls for p in tag.planes] != [p.calls for p in first.planes] for tag in others):
        return False
    pairs = [pair for tag in others for pair in zip(tag.planes, first.planes, strict=True)]
    return all(a.ids is b.ids or torch.equal(a.ids.broadcast_to(shape), b.ids.broadcast_to(shape)) for a, b in pairs)


def _merge(planes: list[Plane], before: list[Plane]) -> Plane:
    """Return the plane of a neuron that an operation took up twice, ``before`` it and after.

    It may have made an activation, as x * sigmoid(x), or changed the values of one, as relu(z) * sigmoid(relu(z)).
    """
    complete = all(p.activation is not None for p in before)
    changed = complete and before[0].activation in ACTIVATION_FUNCTIONS and len({p.path for p in before}) == 1
    return replace(
        planes[0],
        activation=next((p.activation for p in planes if p.activation), None),
        renormalised=any(p.renormalised for p in planes),
        summed=any(p.summed for p in planes),
        product=any(p.product for p in planes),
        gated=any(p.gated for p in planes),
        weighted=any(p.weighted for p in planes),
        norms=max(p.norms for p in planes),
        replay=None,
        condensed=changed or (complete and any(p.condensed for p in before)),
        whole=before[0].path if changed else None,
    )
