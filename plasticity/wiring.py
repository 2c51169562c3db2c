"""Which layer feeds which: every Linear and convolution's consumers, activations and norms, traced from a real pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .isolation import undisturbed, unwrap
from .tracing import NOTHING, STRIDE, Plane, Tracer, feature_vector, tensors_in

CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def neuron_axis(module: nn.Module) -> int | None:
    """Return the axis, counted from the end, along which a weight layer's neurons lie; None for other modules."""
    if isinstance(module, nn.Linear):
        return -1
    return next((-1 - dims for kind, dims in CONVOLUTIONS.items() if isinstance(module, kind)), None)


def by_neuron(tensor: Tensor, axis: int, columns: Tensor | None = None) -> Tensor:
    """Return ``tensor`` as (samples, neurons): positions in time or space count as samples.

    ``columns`` (neurons, copies) picks where each neuron lies along ``axis``; copies count as samples too.
    """
    rows = tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])
    if columns is None:
        return rows
    num, copies = columns.shape
    return rows[:, columns.to(rows.device)].transpose(1, 2).reshape(len(rows) * copies, num)


@dataclass(frozen=True)
class Consumer:
    """A weight layer that receives the neurons of another."""

    layer: str
    columns: Tensor
    """(input features or channels of the consumer,) the index of the neuron each one carries, or -1."""
    summed: bool
    """Whether the columns carry a residual stream: other layers, or the input, are added in."""
    product: bool
    """Whether the columns carry the neurons multiplied with others: a gate."""


@dataclass(frozen=True)
class Norm:
    """A normalisation that the neurons of a layer pass through; ``entries`` is like :attr:`Consumer.columns`."""

    module: str
    entries: Tensor


@dataclass(frozen=True)
class Site:
    """Where the activations of one call of a layer can be observed: an input or output of some module."""

    module: str
    side: Literal["input", "output"]
    key: int | str
    """Position or name of the argument; position in the output, where that is a sequence."""
    call: int
    """Which call of that module in a forward pass, from 0."""
    axis: int
    size: int
    """The length of that axis when traced."""
    columns: Tensor | None = None
    replay: tuple[Callable[[Tensor], Tensor], ...] = ()
    """Operations to repeat on the observed tensor, where the model applies its activation out of every module's sight."""

    def read(self, tensor: Tensor) -> Tensor:
        """Return the activations in ``tensor`` as (samples, neurons)."""
        for step in self.replay:
            tensor = step(tensor)
        return by_neuron(tensor, self.axis, self.columns)


@dataclass
class Layer:
    """One Linear or convolution and what becomes of its neurons (a neuron of a convolution is a channel)."""

    name: str
    module: nn.Module
    axis: int
    num_neurons: int
    num_calls: int = 0
    consumers: list[Consumer] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    sites: dict[int, Site] = field(default_factory=dict)
    """Call number -> where its activations are observed."""
    activation: str | None = None
    """The first non-linear operation on the neurons; None where there is none."""
    is_output: bool = False
    """Whether the neurons are what the model returns and no weight layer consumes them."""
    writes_to_stream: bool = False
    """Whether the neurons are added to something: then they have no columns of their own."""
    unresolved: list[str] = field(default_factory=list)
    """What could not be followed, in words."""

    @property
    def is_hidden(self) -> bool:
        """Whether the layer was called and is not an output layer."""
        return self.num_calls > 0 and not self.is_output


@dataclass
class Wiring:
    """The weight layers of a model by name, in the order in which they were first called."""

    layers: dict[str, Layer]

    @property
    def hidden(self) -> list[Layer]:
        """The layers whose neurons are hidden units."""
        return [layer for layer in self.layers.values() if layer.is_hidden]

    def producers(self, consumer: str) -> list[tuple[Layer, Consumer]]:
        """Return the layers that feed ``consumer``, with the columns they feed."""
        return [(p, c) for p in self.layers.values() for c in p.consumers if c.layer == consumer]

    def __str__(self) -> str:
        rows = [("layer", "neurons", "activation", "feeds", "remarks")]
        for layer in self.layers.values():
            feeds = ", ".join(dict.fromkeys(c.layer for c in layer.consumers)) or "-"
            rows.append((layer.name, str(layer.num_neurons), layer.activation or "-", feeds, "; ".join(_remarks(layer))))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def wiring(model: nn.Module, *args: Any, **kwargs: Any) -> Wiring:
    """Run ``model(*args, **kwargs)`` once, leaving no trace, and return how its weight layers are connected.

    The pass is an extra one in evaluation mode: outputs, gradients, random states, buffers and train flags of the model
    are untouched. Raises ValueError for a model without Linear or convolution layers.
    """
    model = unwrap(model)
    modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
    layers = {
        name: Layer(name, module, axis, _num_neurons(module))
        for name, module in modules.items()
        if (axis := neuron_axis(module)) is not None
    }
    if not layers:
        raise ValueError(f"wiring needs a model with Linear or Conv layers; {type(model).__name__} has none")
    trace = _Trace(modules, layers)
    with undisturbed(model, owner=trace), torch.no_grad(), trace.watch(), trace.tracer:
        trace.tracer.mark_external(tensors_in((args, kwargs)))
        output = model(*args, **kwargs)
    return trace.finish(output)


def _num_neurons(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0))


def _remarks(layer: Layer) -> list[str]:
    flags = {
        "never called": layer.num_calls == 0,
        "output": layer.is_output,
        "writes to a residual stream": layer.writes_to_stream,
        f"called {layer.num_calls} times": layer.num_calls > 1,
    }
    return [text for text, holds in flags.items() if holds] + layer.unresolved


class _Trace:
    """The module hooks that tell a tracer where layers begin and end, and what they saw."""

    def __init__(self, modules: dict[str, nn.Module], layers: dict[str, Layer]) -> None:
        self.modules, self.layers = modules, layers
        self.tracer = Tracer()
        self.counts: Counter[str] = Counter()
        self.running: defaultdict[str, list[int]] = defaultdict(list)
        self.sites: dict[int, Site] = {}
        self.order: list[str] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Hook every module for the duration of the block."""
        handles = []
        try:
            for name, module in self.modules.items():
                handles.append(module.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True))
                handles.append(module.register_forward_hook(partial(self.leave, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        call = self.counts[name]
        self.counts[name] += 1
        self.running[name].append(call)
        inputs = [*enumerate(args), *kwargs.items()]
        for key, value in inputs:
            if isinstance(value, Tensor):
                self._look_for_sites(name, "input", key, call, value)
        first = next((value for _, value in inputs if isinstance(value, Tensor)), None)
        if first is None:
            return
        if name in self.layers:
            self._consume(name, first)
        elif isinstance(module, NORMS):
            self._pass_norm(name, module, first)

    def leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        call = self.running[name].pop()
        if name in self.layers and isinstance(output, Tensor):
            layer = self.layers[name]
            self.tracer.label(name, layer.num_calls, output, layer.axis)
            layer.num_calls += 1
            if name not in self.order:
                self.order.append(name)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            self.tracer.mark_external(tensors_in(output))
        else:
            outputs = enumerate(output) if isinstance(output, (tuple, list)) else [(0, output)]
            for key, value in outputs:
                if isinstance(value, Tensor):
                    self._look_for_sites(name, "output", key, call, value)

    def _look_for_sites(
        self, module: str, side: Literal["input", "output"], key: int | str, call: int, tensor: Tensor
    ) -> None:
        """Remember the first place where all activations of a layer's call can be seen."""
        for plane in self.tracer.tag(tensor).planes:
            for number in plane.calls if plane.clean else ():
                if number in self.sites:
                    continue
                place = _place(plane.ids, number, self.tracer.calls[number].num_neurons)
                if place is not None:
                    self.sites[number] = Site(module, side, key, call, *place)

    def _consume(self, name: str, tensor: Tensor) -> None:
        tag = self.tracer.tag(tensor)
        axis = self.layers[name].axis
        for plane in tag.planes:
            for layer, columns in self._columns(plane, axis):
                if columns is None:
                    _note(layer, f"reaches {name} with its neurons in changing places")
                    continue
                layer.writes_to_stream |= plane.summed
                consumer = Consumer(name, columns, plane.summed, plane.product)
                if not any(_same_consumer(consumer, c) for c in layer.consumers):
                    layer.consumers.append(consumer)
        for number, operation in tag.mixed.items():
            _note(self.layers[self.tracer.calls[number].layer], f"mixed by {operation} before {name}")

    def _pass_norm(self, name: str, module: nn.Module, tensor: Tensor) -> None:
        """Record the entries of a norm's gain and bias that belong to single neurons."""
        axis = -1 if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else 1 - tensor.dim()
        for plane in self.tracer.tag(tensor).planes:
            if plane.summed or plane.product:
                continue
            for layer, entries in self._columns(plane, axis):
                if entries is not None and not any(n.module == name for n in layer.norms):
                    layer.norms.append(Norm(name, entries))

    def _columns(self, plane: Plane, axis: int) -> Iterator[tuple[Layer, Tensor | None]]:
        vector = feature_vector(plane.ids, axis)
        for number in sorted(plane.calls):
            layer = self.layers[self.tracer.calls[number].layer]
            if vector is None:
                yield layer, None
                continue
            mine = vector // STRIDE == number
            if mine.any():
                yield layer, torch.where(mine, vector % STRIDE, NOTHING).cpu()

    def finish(self, output: Any) -> Wiring:
        for tensor in tensors_in(output):
            tag = self.tracer.tag(tensor)
            for number in tag.calls | set(tag.mixed):
                layer = self.layers[self.tracer.calls[number].layer]
                layer.is_output |= not (layer.consumers or layer.unresolved)
                layer.writes_to_stream |= any(p.summed and number in p.calls for p in tag.planes)
        for number, call in enumerate(self.tracer.calls):
            self._settle_site(number, self.layers[call.layer], call.index)
        names = self.order + [name for name in self.layers if name not in self.order]
        return Wiring({name: self.layers[name] for name in names})

    def _settle_site(self, number: int, layer: Layer, call: int) -> None:
        """Fall back on the layer's own output where no module sees the activation."""
        first = self.tracer.activations.get(number)
        layer.activation = layer.activation or (first.activation if first else None)
        site = self.sites.get(number)
        if site is None and (first is None or first.replay):
            site = Site(layer.name, "output", 0, call, layer.axis, layer.num_neurons, replay=first.replay if first else ())
        if site is not None:
            layer.sites[call] = site
        elif layer.num_neurons:
            _note(layer, f"no module sees its neurons after {first.activation}" if first else "")


def _place(ids: Tensor, number: int, num_neurons: int) -> tuple[int, int, Tensor | None] | None:
    """Return (axis, size, columns) where one call's neurons lie in a tensor; None unless all of them lie on one axis."""
    for axis in range(-1, -ids.dim() - 1, -1):
        vector = feature_vector(ids, axis)
        if vector is None:
            continue
        mine = vector // STRIDE == number
        neurons = vector[mine] % STRIDE
        counts = torch.bincount(neurons, minlength=num_neurons)
        copies = int(counts.max()) if len(neurons) else 0
        if copies == 0 or not bool((counts == copies).all()):
            return None
        if copies == 1 and len(vector) == num_neurons and bool((neurons == torch.arange(num_neurons)).all()):
            return axis, len(vector), None
        where = mine.nonzero().flatten()
        columns = where[torch.argsort(neurons, stable=True)].view(num_neurons, copies)
        return axis, len(vector), columns.cpu()
    return None


def _same_consumer(a: Consumer, b: Consumer) -> bool:
    return (a.layer, a.summed, a.product) == (b.layer, b.summed, b.product) and torch.equal(a.columns, b.columns)


def _note(layer: Layer, text: str) -> None:
    if text and text not in layer.unresolved:
        layer.unresolved.append(text)
