"""Which layer feeds which: every Linear and convolution's consumers, activations and norms, traced from a real pass."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plasticity.isolation import map_tensors, named_modules, undisturbed, unwrap

from .labels import NOTHING, STRIDE, Plane, Tag, feature_vector, tensors_in
from .layers import LAST_AXIS_NORMS, NORMS, Consumer, Layer, Norm, Site, Wiring, by_neuron, neuron_axis
from .tracing import Tracer


def wiring(model: nn.Module, *args: Any, **kwargs: Any) -> Wiring:
    """Run ``model(*args, **kwargs)`` once, leaving no trace, and return how its weight layers are connected.

    The pass is an extra one in evaluation mode: outputs, gradients, random states, buffers and train flags of the model
    are untouched. Raises ValueError for a model without Linear or convolution layers.
    """
    model = unwrap(model)
    modules = named_modules(model)
    layers = {
        name: Layer(name, module, axis, _num_neurons(module))
        for name, module in modules.items()
        if (axis := neuron_axis(module)) is not None
    }
    if not layers:
        raise ValueError(f"wiring needs a model with Linear or Conv layers; {type(model).__name__} has none")
    trace = _Trace(modules, layers)
    # Without gradients, or checkpointing around the model would miss what this pass saves. What the model warns of, it
    # says again in the caller's own passes.
    with warnings.catch_warnings(), undisturbed(model, trace), torch.no_grad(), trace.watch(), trace.tracer:
        warnings.simplefilter("ignore")
        args, kwargs = map_tensors((args, kwargs), torch.clone)  # the model may work in place on its inputs
        trace.tracer.mark_external(tensors_in((args, kwargs)))
        output = model(*args, **kwargs)
    return trace.finish(output)


def _num_neurons(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0))


class _Trace:
    """The module hooks that tell a tracer where layers begin and end, and what they saw."""

    def __init__(self, modules: dict[str, nn.Module], layers: dict[str, Layer]) -> None:
        self.modules, self.layers = modules, layers
        self.tracer = Tracer(parameter for module in modules.values() for parameter in module.parameters(recurse=False))
        self.counts: Counter[str] = Counter()
        self.running: list[tuple[int, Tag]] = []
        """Of the modules now running, innermost last: the number of the call, and what the first input carried."""
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
        inputs = {key: v for key, v in [*enumerate(args), *kwargs.items()] if isinstance(v, Tensor)}
        for key, value in inputs.items():
            self._look_for_sites(name, "input", key, call, value)
        first = next(iter(inputs.values()), None)
        tag = Tag() if first is None else self.tracer.tag(first)
        self.running.append((call, tag))
        if name in self.layers:
            self.tracer.inside += 1
            self._consume(name, tag)
        elif isinstance(module, NORMS):
            self.tracer.paused += 1
            if first is not None:
                self._pass_norm(name, tag, -1 if isinstance(module, LAST_AXIS_NORMS) else 1 - first.dim())

    def leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        call, tag = self.running.pop()
        if name in self.layers:
            self.tracer.inside -= 1
            if isinstance(output, Tensor):
                self._produce(name, output)
            return
        if isinstance(module, NORMS):
            self.tracer.paused -= 1
            self.tracer.tags[output] = tag.normalised()
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            self.tracer.mark_external(tensors_in(output))
        for key, value in enumerate(output if isinstance(output, (tuple, list)) else [output]):
            if isinstance(value, Tensor):
                self._look_for_sites(name, "output", key, call, value)

    def _produce(self, name: str, output: Tensor) -> None:
        layer = self.layers[name]
        self.tracer.label(name, layer.num_calls, output, layer.axis)
        layer.num_calls += 1
        if name not in self.order:
            self.order.append(name)

    def _look_for_sites(
        self, module: str, side: Literal["input", "output"], key: int | str, call: int, tensor: Tensor
    ) -> None:
        """Remember the first place where all activations of a layer's call can be seen."""
        planes = [plane for plane in self.tracer.tag(tensor).planes if plane.clean]
        for number in set().union(*(plane.calls for plane in planes)) - self.sites.keys():
            place = _place([plane.ids for plane in planes if number in plane.calls], number, self._layer(number))
            if place is not None:
                self.sites[number] = Site(module, side, key, call, *place)

    def _consume(self, name: str, tag: Tag) -> None:
        for plane in tag.planes:
            for layer, columns in self._columns(plane, self.layers[name].axis):
                if columns is None:
                    layer.note(f"reaches {name} with its neurons in changing places")
                    continue
                layer.writes_to_stream |= plane.summed
                consumer = Consumer(name, columns, plane.summed, plane.product)
                if not any(_same_consumer(consumer, c) for c in layer.consumers):
                    layer.consumers.append(consumer)
        for number, operation in tag.mixed.items():
            self._layer(number).note(f"mixed by {operation} before {name}")

    def _pass_norm(self, name: str, tag: Tag, axis: int) -> None:
        """Record the entries of a norm's gain and bias that belong to single neurons."""
        for plane in tag.planes:
            if plane.summed or plane.product:
                continue
            for layer, entries in self._columns(plane, axis):
                if entries is not None and not any(n.module == name for n in layer.norms):
                    layer.norms.append(Norm(name, entries))

    def _layer(self, number: int) -> Layer:
        return self.layers[self.tracer.calls[number].layer]

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
        for number, operation in self.tracer.absorbed.items():
            self._layer(number).note(f"feeds {operation} with a parameter of no Linear or Conv layer")
        for tensor in tensors_in(output):
            tag = self.tracer.tag(tensor)
            for number in tag.calls | set(tag.mixed):
                layer = self._layer(number)
                layer.is_output |= not (layer.consumers or layer.unresolved)
                layer.writes_to_stream |= any(p.summed and number in p.calls for p in tag.planes)
        for number, call in enumerate(self.tracer.calls):
            self._settle_site(number, self.layers[call.layer], call.index)
        names = self.order + [name for name in self.layers if name not in self.order]
        return Wiring({name: self.layers[name] for name in names}, self.modules)

    def _settle_site(self, number: int, layer: Layer, call: int) -> None:
        """Fall back on the layer's own output where no module sees the activation."""
        first = self.tracer.activated(number)
        layer.activation = layer.activation or (first.activation if first else None)
        if number in self.sites:
            layer.sites[call] = self.sites[number]
        elif first is None:
            layer.sites[call] = Site(layer.name, "output", 0, call, layer.axis, layer.num_neurons)
        elif first.replay:
            site = Site(layer.name, "output", 0, call, layer.axis, layer.num_neurons, replay=first.replay)
            layer.sites[call] = site
        else:
            layer.note(f"no module sees its neurons after {first.activation}")


def _place(planes: list[Tensor], number: int, layer: Layer) -> tuple[int, int, Tensor | None] | None:
    """Return (axis, size, columns) where a call's neurons lie in a tensor; None unless all of them lie on one axis.

    ``planes``: labels, of which several apply to one tensor where a neuron was used twice, as in CReLU.
    """
    axes = range(-1, -planes[0].dim() - 1, -1)
    for axis in sorted(axes, key=lambda a: a != layer.axis):  # its own first: an axis of length 1 tells nothing
        vectors = [feature_vector(ids, axis) for ids in planes]
        found = [_columns(vector, number, layer.num_neurons) for vector in vectors if vector is not None]
        columns = [c for c in found if c is not None]
        if len(columns) != len(planes):
            continue
        size = planes[0].shape[axis]
        joined = torch.cat(columns, 1)
        trivial = torch.equal(joined, torch.arange(size, device=joined.device)[:, None])
        return axis, size, None if trivial else joined
    return None


def _columns(vector: Tensor, number: int, num_neurons: int) -> Tensor | None:
    """Return (neurons, copies) where each neuron of a call lies in a vector of labels; None if not all are equal."""
    where = (vector // STRIDE == number).nonzero().flatten()
    neurons = vector[where] % STRIDE
    counts = torch.bincount(neurons, minlength=num_neurons)
    copies = int(counts.max())
    if copies == 0 or not bool((counts == copies).all()):
        return None
    return where[torch.argsort(neurons, stable=True)].view(num_neurons, copies).cpu()


def _same_consumer(a: Consumer, b: Consumer) -> bool:
    return (a.layer, a.summed, a.product) == (b.layer, b.summed, b.product) and torch.equal(a.columns, b.columns)


__all__ = ["Consumer", "Layer", "Norm", "Site", "Wiring", "by_neuron", "neuron_axis", "wiring"]
