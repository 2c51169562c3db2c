"""Follow single neurons through one forward pass: which element of which tensor carries which neuron.

Every weight layer's output is labelled, element by element, with the number of the neuron that wrote it. A dispatch mode
then sees each tensor operation below autograd and moves the labels as the operation moves the data: reshapes and
concatenations act on the labels themselves, element-wise operations pass them on, reductions keep them where all reduced
elements carry the same neuron. Whatever mixes neurons (a matrix product, a recurrent kernel) is remembered by name, so
that nothing is guessed. Unlike a walk over the autograd graph this also sees frozen layers, integer inputs, passes
without gradients and the layout of a flattened feature map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

NOTHING = -1
"""The label of an element that carries no neuron."""

STRIDE = 1 << 32
"""Neuron ``i`` of the ``c``-th call of a weight layer has the label ``c * STRIDE + i``."""

MOVES = frozenset(
    "view _unsafe_view reshape permute transpose t squeeze unsqueeze expand select slice narrow split split_with_sizes "
    "unbind chunk clone contiguous alias detach lift_fresh _to_copy index index_select gather flip roll repeat unfold "
    "movedim diagonal pixel_shuffle pixel_unshuffle channel_shuffle repeat_interleave".split()
)
SAME_SHAPE_MOVES = frozenset("clone contiguous alias detach lift_fresh _to_copy".split())
LINEAR = frozenset(
    "add sub rsub mul div neg copy lerp addcmul addcdiv masked_fill where native_dropout dropout positive real".split()
)
PRODUCTS = frozenset("mul div addcmul addcdiv pow atan2 glu".split())
NORMS = frozenset(
    "native_layer_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_batch_norm_with_update cudnn_batch_norm miopen_batch_norm batch_norm native_group_norm _fused_rms_norm rms_norm "
    "_softmax _safe_softmax _log_softmax native_dropout".split()
)
SOFTMAX = frozenset("_softmax _safe_softmax _log_softmax".split())
REDUCTIONS = frozenset("mean sum amax amin max min var std var_mean std_mean linalg_vector_norm logsumexp prod".split())
POOLS = {
    **{f"{kind}pool{d}d{tail}": d for kind in ("max_", "avg_") for d in (1, 2, 3) for tail in ("", "_with_indices")},
    **{f"{pre}adaptive_{kind}_pool{d}d": d for pre in ("", "_") for kind in ("max", "avg") for d in (1, 2, 3)},
    **{f"upsample_{kind}1d": 1 for kind in ("nearest", "linear")},
    **{f"upsample_{kind}2d": 2 for kind in ("nearest", "bilinear", "bicubic")},
    **{f"upsample_{kind}3d": 3 for kind in ("nearest", "trilinear")},
}
ATTENTION = "_scaled_dot_product"
FACTORIES = ("_like", "new_", "empty", "zeros", "ones", "rand", "full", "bernoulli")


@dataclass(frozen=True)
class Plane:
    """One neuron per element of a tensor, and what has happened to it since its layer wrote it."""

    ids: Tensor
    """Labels, int64, the shape of the tensor they label."""
    calls: frozenset[int]
    """The layer calls whose neurons are among the labels (possibly more, after a slice)."""
    activation: str | None = None
    """The first non-linear operation it went through."""
    renormalised: bool = False
    """Whether a normalisation came after that activation, so that a dead neuron no longer shows as 0."""
    summed: bool = False
    """Whether something else was added on top: a residual stream."""
    product: bool = False
    """Whether it was multiplied with other neurons: a gate."""
    replay: tuple[Callable[[Tensor], Tensor], ...] | None = ()
    """The operations that lead here from the layer's own output; None where other tensors took part."""

    @property
    def clean(self) -> bool:
        """Whether the element is the neuron's own activation and nothing else."""
        return self.activation is not None and not (self.renormalised or self.summed or self.product)


@dataclass(frozen=True)
class Tag:
    """What a tensor carries: neurons by element, neurons that were mixed (by which operation), or outside data."""

    planes: tuple[Plane, ...] = ()
    mixed: Mapping[int, str] = field(default_factory=dict)
    """Number of a layer call -> the operation that mixed its neurons."""
    statistic: bool = False
    """Whether the mixture is a mere reduction over neurons (a mean, a norm), as normalisers compute it."""
    external: bool = False
    """Whether the model's inputs, an embedding or the like take part."""

    def __bool__(self) -> bool:
        return bool(self.planes or self.mixed or self.external)

    @property
    def calls(self) -> set[int]:
        """The layer calls whose neurons the planes carry."""
        return set().union(*(plane.calls for plane in self.planes))


@dataclass(frozen=True)
class Call:
    """One call of a weight layer: the ``index``-th of that layer in the pass."""

    layer: str
    index: int
    num_neurons: int


class Tracer(TorchDispatchMode):
    """Carry neuron labels through every operation that runs inside the ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = WeakIdKeyDictionary()
        self.calls: list[Call] = []
        self.activations: dict[int, Plane] = {}
        """Number of a call -> its plane right after its first activation."""

    def label(self, layer: str, index: int, output: Tensor, axis: int) -> None:
        """Give ``output`` fresh neuron numbers along ``axis``: a weight layer has just written it."""
        number, num = len(self.calls), output.shape[axis]
        self.calls.append(Call(layer, index, num))
        shape = [1] * output.dim()
        shape[axis] = num
        ids = torch.arange(num, device=output.device).add_(number * STRIDE).view(shape).expand(output.shape)
        self.tags[output] = Tag((Plane(ids, frozenset([number])),))

    def mark_external(self, tensors: Iterable[Tensor]) -> None:
        """Say that these tensors come from outside: inputs, embeddings, anything that no traced layer wrote."""
        for tensor in tensors:
            if tensor.is_floating_point():
                self.tags[tensor] = Tag(external=True)

    def tag(self, tensor: Tensor) -> Tag:
        """Return what ``tensor`` carries; an empty tag for constants and parameters."""
        return self.tags.get(tensor) or Tag()

    # -- propagation ---------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        # Read before running: an in-place operation must not see its own result.
        operands = [(t, self.tag(t)) for t in tensors_in((args, kwargs))]
        out = func(*args, **kwargs)
        if any(tag for _, tag in operands):
            self._propagate(func, args, kwargs, operands, out)
        return out

    def _propagate(self, func: Any, args: tuple, kwargs: dict, operands: list[tuple[Tensor, Tag]], out: Any) -> None:
        packet = func.overloadpacket.__name__
        in_place = packet.endswith("_") and not packet.endswith("__")
        name = packet[:-1] if in_place else packet
        outputs = list(tensors_in(out))
        if name not in MOVES and any(part in name for part in FACTORIES):
            return
        try:
            tags = self._rule(func, name, args, kwargs, operands, outputs)
        except (RuntimeError, IndexError, ValueError):
            tags = [_mix(operands, name)] * len(outputs)
        for tensor, tag in zip(outputs, tags, strict=False):
            self._assign(tensor, tag, name, in_place)

    def _assign(self, tensor: Tensor, tag: Tag, name: str, in_place: bool) -> None:
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return
        tag = _fit(tag, tensor, name)
        for plane in tag.planes:
            if plane.clean:
                for call in plane.calls:
                    self.activations.setdefault(call, plane)
        base = tensor._base if in_place and tensor._is_view() else None
        if base is not None and base.shape != tensor.shape:
            # Part of a larger tensor was overwritten: what the whole now carries is no longer known.
            self.tags[base] = _mix([(base, self.tag(base)), (tensor, tag)], f"{name}_ on a slice")
        self.tags[tensor] = tag

    def _rule(
        self, func: Any, name: str, args: tuple, kwargs: dict, operands: list[tuple[Tensor, Tag]], outputs: list[Tensor]
    ) -> list[Tag]:
        source = self.tag(args[0]) if args and isinstance(args[0], Tensor) else Tag()
        if name in MOVES:
            return _move(func, name, args, kwargs, source, len(outputs))
        if name in ("cat", "stack"):
            return [_join(func, args, kwargs, operands)]
        if name == "constant_pad_nd":
            return [_map(source, lambda p: replace(p, ids=func(p.ids, args[1], NOTHING), replay=None))]
        if name == "copy":
            return [operands[1][1]]
        if name == "glu":
            return [_glu(source, args, kwargs)]
        if name in NORMS:
            return [_normalise(source, name)] + [Tag()] * (len(outputs) - 1)
        if name in REDUCTIONS:
            return [_reduce(func, name, args, kwargs, source)] + [Tag()] * (len(outputs) - 1)
        if name in POOLS:
            return [_pool(source, outputs[0], POOLS[name])]
        if name in ("bmm", "mm", "baddbmm") or name.startswith(ATTENTION):
            return [_weighted_sum(name, operands, outputs[0])] + [Tag()] * (len(outputs) - 1)
        if torch.Tag.pointwise in func.tags or name in LINEAR:
            return [_pointwise(func, name, args, kwargs, operands, out) for out in outputs]
        return [_mix(operands, name)] * len(outputs)


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Yield every tensor in nested sequences, mappings and plain objects (such as a distribution), in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module)):
        for item in vars(value).values():
            yield from tensors_in(item, depth - 1)


def feature_vector(ids: Tensor, axis: int) -> Tensor | None:
    """Return the labels along ``axis`` if they are the same at every other position; None if they are not."""
    axis %= ids.dim()
    others = [d for d in range(ids.dim()) if d != axis]
    if not others:
        return ids
    lowest = ids.amin(others)
    return lowest if torch.equal(lowest, ids.amax(others)) else None


def _map(tag: Tag, change: Callable[[Plane], Plane]) -> Tag:
    return replace(tag, planes=tuple(change(p) for p in tag.planes))


def _mix(operands: Iterable[tuple[Tensor, Tag]], name: str, statistic: bool = False) -> Tag:
    """Return a tag that remembers only which layers took part, and in which operation."""
    mixed: dict[int, str] = {}
    external = False
    for _, tag in operands:
        external |= tag.external
        mixed |= {call: name for call in tag.calls} | dict(tag.mixed)
    return Tag(mixed=mixed, statistic=statistic, external=external)


def _fit(tag: Tag, tensor: Tensor, name: str) -> Tag:
    """Give every plane the shape of the tensor it labels; mix what does not fit."""
    planes = []
    for plane in tag.planes:
        try:
            ids = plane.ids if plane.ids.shape == tensor.shape else plane.ids.broadcast_to(tensor.shape)
        except RuntimeError:
            return _mix([(tensor, tag)], name)
        planes.append(replace(plane, ids=ids))
    return replace(tag, planes=tuple(planes))


def _extend(plane: Plane, step: Callable[[Tensor], Tensor] | None) -> tuple[Callable[[Tensor], Tensor], ...] | None:
    return None if plane.replay is None or step is None else (*plane.replay, step)


def _move(func: Any, name: str, args: tuple, kwargs: dict, source: Tag, num_outputs: int) -> list[Tag]:
    """Apply the very operation that moved the data to the labels."""
    if name in SAME_SHAPE_MOVES:
        return [source]
    results: list[list[Plane]] = [[] for _ in range(num_outputs)]
    for plane in source.planes:
        if name in ("view", "_unsafe_view", "reshape"):
            moved: Any = plane.ids.reshape(args[1])  # labels are expanded tensors, which view() may refuse
        else:
            moved = func(plane.ids, *args[1:], **kwargs)
        for result, ids in zip(results, tensors_in(moved), strict=True):
            result.append(replace(plane, ids=ids, replay=None))
    return [replace(source, planes=tuple(planes)) for planes in results]


def _join(func: Any, args: tuple, kwargs: dict, operands: list[tuple[Tensor, Tag]]) -> Tag:
    """Concatenate the labels of each operand with nothing in the place of the others."""
    parts = list(args[0])
    planes: list[Plane] = []
    for position, (_, tag) in enumerate(operands[: len(parts)]):
        for plane in tag.planes:
            blank = [torch.full_like(t, NOTHING, dtype=torch.int64) for t in parts]
            blank[position] = plane.ids
            planes.append(replace(plane, ids=func(blank, *args[1:], **kwargs), replay=None))
    rest = _mix([(t, replace(tag, planes=())) for t, tag in operands], "cat")
    return replace(rest, planes=tuple(planes))


def _glu(source: Tag, args: tuple, kwargs: dict) -> Tag:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    halves = [
        replace(plane, ids=ids, product=True, replay=None)
        for plane in source.planes
        for ids in plane.ids.chunk(2, dim)
    ]
    return replace(source, planes=tuple(halves))


def _normalise(source: Tag, name: str) -> Tag:
    if name in SOFTMAX:
        return _map(source, lambda p: replace(p, activation=p.activation or "softmax", replay=None))
    if name == "native_dropout":
        return source
    return _map(source, lambda p: replace(p, renormalised=p.renormalised or p.activation is not None, replay=None))


def _argument(func: Any, args: tuple, kwargs: dict, name: str) -> Any:
    """Return the argument called ``name`` of an operation, wherever it was passed; None where it has none."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if name in kwargs:
                return kwargs[name]
            return args[position] if position < len(args) else argument.default_value
    return None


def _reduce(func: Any, name: str, args: tuple, kwargs: dict, source: Tag) -> Tag:
    """Keep the labels if every reduced element carries the same neuron: a mean over time or space."""
    dim = _argument(func, args, kwargs, "dim")
    keepdim = bool(_argument(func, args, kwargs, "keepdim"))
    if dim is None or dim == []:
        return _mix([(args[0], source)], name, statistic=True)
    planes = []
    for plane in source.planes:
        lowest = plane.ids.amin(dim, keepdim)
        if not torch.equal(lowest, plane.ids.amax(dim, keepdim)):
            return _mix([(args[0], source)], name, statistic=True)
        planes.append(replace(plane, ids=lowest, replay=None))
    return replace(source, planes=tuple(planes))


def _pool(source: Tag, output: Tensor, num_spatial: int) -> Tag:
    """Keep the channel's label where all positions carry it, at the new spatial size."""
    planes = []
    for plane in source.planes:
        spatial = tuple(range(plane.ids.dim() - num_spatial, plane.ids.dim()))
        lowest = plane.ids.amin(spatial, keepdim=True)
        if not torch.equal(lowest, plane.ids.amax(spatial, keepdim=True)):
            raise ValueError("positions carry different neurons")
        planes.append(replace(plane, ids=lowest.expand(output.shape), replay=None))
    return replace(source, planes=tuple(planes))


def _weighted_sum(name: str, operands: list[tuple[Tensor, Tag]], output: Tensor) -> Tag:
    """Keep the labels of the values that attention weights average over; mix the rest."""
    if name.startswith(ATTENTION):
        value_at, mixed_at = 2, [0, 1]
    else:
        value_at, mixed_at = len(operands) - 1, list(range(len(operands) - 1))
    value = operands[value_at][1]
    rest = _mix([operands[i] for i in mixed_at], name)
    planes = []
    for plane in value.planes:
        lowest = plane.ids.amin(-2, keepdim=True)
        if not torch.equal(lowest, plane.ids.amax(-2, keepdim=True)):
            return _mix(operands, name)
        planes.append(replace(plane, ids=lowest.expand(output.shape), replay=None))
    return Tag(tuple(planes), {**rest.mixed, **value.mixed}, external=rest.external or value.external)


def _absorb_statistics(live: list[tuple[Tensor, Tag]]) -> tuple[list[tuple[Tensor, Tag]], bool]:
    """Drop operands that are mere statistics of the others: ``x - x.mean()`` is a normalisation, not a sum."""
    calls = set().union(*(tag.calls for _, tag in live))
    kept = [(t, tag) for t, tag in live if not (tag.statistic and set(tag.mixed) <= calls)]
    return (kept, True) if kept and len(kept) < len(live) else (live, False)


def _pointwise(
    func: Any, name: str, args: tuple, kwargs: dict, operands: list[tuple[Tensor, Tag]], output: Tensor
) -> Tag:
    live = [(t, tag) for t, tag in operands if tag and (t.is_floating_point() or t.is_complex())]
    live, normalised = _absorb_statistics(live)
    same = _same_neurons(live, output.shape)
    step = None
    if len(operands) == 1 and args and isinstance(args[0], Tensor):
        # As an out-of-place operation on a copy: the tensor it will be replayed on belongs to the model.
        step = partial(_replay, func, args[1:], kwargs)
    others_live = len(live) > 1 and not same
    planes: list[Plane] = []
    for _, tag in live:
        for plane in tag.planes:
            neurons_beside = others_live and any(other is not tag and (other.planes or other.mixed) for _, other in live)
            activation = plane.activation
            if activation is None and (name not in LINEAR or (same and len(live) > 1 and name in PRODUCTS | {"where"})):
                activation = name
            planes.append(
                replace(
                    plane,
                    activation=activation,
                    renormalised=plane.renormalised or (normalised and activation is not None),
                    summed=plane.summed or (others_live and name not in PRODUCTS),
                    product=plane.product or (neurons_beside and name in PRODUCTS),
                    replay=_extend(plane, step if len(live) == 1 else None),
                    ids=plane.ids.broadcast_to(output.shape),
                )
            )
    if same and len(live) > 1:
        planes = [_merge(planes)]
    rest = _mix([(t, replace(tag, planes=())) for t, tag in live], name)
    statistic = all(tag.statistic for _, tag in live)
    return replace(rest, planes=tuple(planes), statistic=statistic)


def _replay(func: Any, args: tuple, kwargs: dict, x: Tensor) -> Tensor:
    return func(x.clone(), *args, **kwargs)


def _same_neurons(live: list[tuple[Tensor, Tag]], shape: torch.Size) -> bool:
    """Return whether all operands carry one plane each with the same neurons, as in ``x * sigmoid(x)``."""
    if any(len(tag.planes) != 1 or tag.mixed for _, tag in live):
        return False
    ids = [tag.planes[0].ids.broadcast_to(shape) for _, tag in live]
    return all(i is ids[0] or torch.equal(i, ids[0]) for i in ids[1:])


def _merge(planes: list[Plane]) -> Plane:
    return replace(
        planes[0],
        activation=next((p.activation for p in planes if p.activation), None),
        renormalised=any(p.renormalised for p in planes),
        summed=any(p.summed for p in planes),
        product=any(p.product for p in planes),
        replay=None,
    )
