"""The wiring of a model: every Linear and convolution's consumers, activations and norms, traced from a real pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from plasticity.isolation import call_of, is_scripted, map_tensors, named_modules, note_written, undisturbed, unwrap

from .conduct import is_torchs, strays
from .functional import FunctionCalls, Taken, Weights, shown, slices_of
from .joint import ALONE, CallNumbers, Summations
from .labels import NOTHING, STRIDE, Label, Plane, Replay, feature_vector, mix, tensors_in
from .layers import (
    LAST_AXIS_NORMS,
    NORM_MODULES,
    RETURNED,
    Consumer,
    Layer,
    Norm,
    Untraced,
    neuron_axis,
    num_inputs,
    num_neurons,
    weight_layers_of,
)
from .sites import Event, Site
from .slices import Slice
from .tracing import Tracer
from .wirings import Way, Wiring

LOOSE_WEIGHTS = "weights of no Linear or Conv layer"
""""Consumers that are no module: parameters that an operation takes up, or weights that the model computes."""


def wiring(model: nn.Module, *args: Any, **kwargs: Any) -> Wiring:
    """Run ``model(*args, **kwargs)`` once, leaving no trace, and return how its weight layers are connected.

    The pass is an extra one in evaluation mode: outputs, gradients, random states, buffers and train flags of the model
    are untouched. A model that goes several ways (heads by task, skipped layers) shows one of them: see
    :meth:`Wiring.joined`. Raises ValueError for a model without Linear or convolution layers, and for an empty batch.
    """
    return trace(model, args, kwargs)


def trace(
    model: nn.Module,
    args: tuple,
    kwargs: dict,
    evaluate: bool = True,
    before: Callable[[], None] | None = None,
    method: str = "forward",
) -> Wiring:
    """Return the wiring that one extra pass shows, in evaluation mode or in the mode that the model is in.

    ``before``: called before the pass, where random states are restored afterwards: it may set them.
    """
    model = unwrap(model)
    modules = named_modules(model)
    layers = {
        name: Layer(name, module, cast(int, neuron_axis(module)), num_neurons(module), module is not modules[name])
        for name, module in weight_layers_of(modules).items()
    }
    if lazy := [name for name, module in modules.items() if any(map(is_lazy, module.parameters(recurse=False)))]:
        raise ValueError(f"{', '.join(lazy)}: lazy, without weights before the first pass; call the model once before")
    if any(parameter.is_meta for module in modules.values() for parameter in module.parameters(recurse=False)):
        raise ValueError(f"{type(model).__name__} has no numbers: its device is meta; call to_empty() and set them")
    if not (layers or slices_of(modules)):
        raise ValueError(f"wiring needs a model with Linear or Conv layers; {type(model).__name__} has none")
    traced = _Trace(modules, layers)
    # Without gradients, or checkpointing around the model would miss what this pass saves. What the model warns of, it
    # says again in the caller's own passes.
    with (
        warnings.catch_warnings(),
        undisturbed(model, traced, evaluate),
        torch.no_grad(),
        traced.watch(),
        traced.tracer,
        FunctionCalls(traced.weights, traced.take, traced.give, traced.drop),
    ):
        warnings.simplefilter("ignore")
        if before is not None:
            before()
        args, kwargs = map_tensors((args, kwargs), torch.clone)  # the model may work in place on its inputs
        traced.tracer.mark_external(tensors_in((args, kwargs)))
        output = call_of(model, method)(*args, **kwargs)
    return traced.finish(output)


def is_empty(values: Iterable[Any]) -> bool:
    """Return whether the first tensor among ``values`` has no elements: such a call is none."""
    first = next((value for value in values if isinstance(value, Tensor)), None)
    return first is not None and not first.numel()


class _Trace:
    """The module hooks that tell a tracer where layers begin and end, and what they saw."""

    def __init__(self, modules: dict[str, nn.Module], layers: dict[str, Layer]) -> None:
        self.modules, self.layers = modules, layers
        # A scripted module is one piece: its parts are not called in sight.
        self.tracer = Tracer({name: m.named_parameters(recurse=is_scripted(m)) for name, m in modules.items()})
        self.weights = Weights(modules)
        self.hosts: set[str] = set()
        self.places: set[str] = set()
        self.names = [""]
        """The modules now running, innermost last."""
        self.running: list[Label] = []
        """Tags of the first inputs of the modules now running, innermost last."""
        self.events: list[Event] = []
        self.produced: list[int] = []
        """Number of a layer call -> the position of its end among the events."""
        self.keys: list[int] = []
        """Number of a layer call -> its position in what that event shows."""
        self.sites: dict[tuple[int, CallNumbers], Site] = {}
        """Number of a layer call, and calls that it is joined with -> where its activations are seen."""
        self.condensed: dict[tuple[int, CallNumbers], Replay | None] = {}
        """Those of which that site shows no more than sums, pools or a selection of the samples, or changed values, and
        the operations that lead to where all are seen as they were."""
        self.products: dict[int, Site] = {}
        """Number of a layer call -> where the gated units are seen of which its neurons are factors."""
        self.alone: set[int] = set()
        """Numbers of layer calls whose neurons a layer takes up outside any product, too."""
        self.inputs: dict[tuple[int, int, CallNumbers], Site] = {}
        """Number of a layer call, and of norms and sums over samples passed, and calls that it is joined with -> where
        its neurons are seen then, before any activation."""
        self.sums = Summations()
        self.consumed: list[tuple[int, Consumer, Plane]] = []
        """Number of a layer call, what consumes it, and what it consumes."""
        self.normed: list[tuple[int, Norm, CallNumbers]] = []
        """The same for norms."""
        self.tracer.used.add("")  # by forward, or by another method
        self.checking = False
        """True while a layer runs once more, to see how it conducts itself."""
        self.raw: dict[str, tuple[Tensor, int]] = {}
        """Layer -> what it has written, and how often that had been written to, where hooks see it next."""
        self.order: list[str] = []
        self.empty: dict[str, str] = {}
        """The layers that were called without samples, and the shape of their output."""

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Hook every module for the duration of the block."""
        handles = []
        try:
            for name, module in ((n, m) for n, m in self.modules.items() if not is_scripted(m)):
                handles.append(module.register_forward_pre_hook(partial(self.enter, name), with_kwargs=True))
                handles.append(module.register_forward_hook(partial(self.leave, name), with_kwargs=True))
                if name in self.layers and len(module._forward_hooks) > 1:
                    handles.append(module.register_forward_hook(partial(self.written, name), prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, key in self.tracer.put_back():
                note_written(self.modules[name], key)

    def enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.checking:
            return
        inputs = {key: v for key, v in [*enumerate(args), *kwargs.items()] if isinstance(v, Tensor)}
        first = next(iter(inputs.values()), None)
        tag = Label() if first is None else self.tracer.tag(first)
        self.running.append(tag)
        self.names.append(name)
        empty = is_empty(inputs.values())
        if not empty:
            self.tracer.used.add(name)
            self.events.append((name, "input"))
            for key, value in inputs.items():
                self._look_for_sites(key, value)
        if name in self.layers or isinstance(module, (Untraced, *NORM_MODULES)):
            self.tracer.note_inputs(inputs.values(), name)
        if name in self.layers:
            # What is computed from other parameters cannot be edited anyway, nor can adapters.
            is_known = "weight" in module._parameters and not self.layers[name].adapter
            self.tracer.running.append(name if is_known else None)
            if not empty:
                self._consume(name, tag)
        elif isinstance(module, Untraced):
            self.tracer.paused += 1
        elif isinstance(module, NORM_MODULES):
            self.tracer.paused += 1
            if first is not None:
                self._pass_norm(name, tag, -1 if isinstance(module, LAST_AXIS_NORMS) else 1 - first.dim())

    def written(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Remember what a layer has written, before other hooks see it."""
        if not self.checking and isinstance(output, Tensor):
            self.raw[name] = (output, output._version)

    def leave(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self.checking:
            return
        tag = self.running.pop()
        self.names.pop()
        outputs = output if isinstance(output, (tuple, list)) else [output]
        empty = is_empty(outputs)
        if not empty:
            self.events.append((name, "output"))
        if name in self.layers:
            if self.tracer.running[-1] is not None and not empty and isinstance(output, Tensor):
                self._check_conduct(name, module, args, kwargs, output)
            self.tracer.running.pop()
            if empty:
                self.empty[name] = f"the output of {name} has shape {tuple(outputs[0].shape)}"
            elif isinstance(output, Tensor):
                self._produce(name, output)
            return
        if isinstance(module, Untraced):
            self.tracer.paused -= 1
            self.tracer.tags[output] = tag
        elif isinstance(module, NORM_MODULES):
            self.tracer.paused -= 1
            self.tracer.tags[output] = tag.normalised().map(Plane.seen_anew)
        elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            self.tracer.mark_external(tensors_in(output))
        for key, value in enumerate(outputs if not empty else ()):
            if isinstance(value, Tensor):
                self._look_for_sites(key, value)

    def _check_conduct(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        """Note what a layer of the user's own, or a hook on it, does besides the product with its weight."""
        written, version = self.raw.pop(name, (output, output._version))
        if output is not written or output._version != version:
            self.tracer.besides.setdefault(name, "a hook that changes its output")
        if is_torchs(module) or name in self.tracer.besides:
            return
        self.checking, self.tracer.paused = True, self.tracer.paused + 1
        try:
            if found := strays(module, args, kwargs, output):
                self.tracer.besides[name] = found
        finally:
            self.checking, self.tracer.paused = False, self.tracer.paused - 1

    def _produce(self, name: str, output: Tensor) -> None:
        layer = self.layers[name]
        self.tracer.label(name, layer.num_calls, output, layer.axis)
        if output.shape[layer.axis] != layer.num_neurons:
            self.tracer.tags[output] = mix([self.tracer.tag(output)], f"{name} itself")
        self._count(layer, 0)

    def _count(self, layer: Layer, key: int) -> None:
        self.produced.append(len(self.events) - 1)
        self.keys.append(key)
        layer.num_calls += 1
        if layer.name not in self.order:
            self.order.append(layer.name)

    # -- layers whose weights functions take up ------------------------------------------------------------------------

    def take(self, taken: Taken) -> None:
        """Begin the call of a function, unless it is that of a layer's own forward."""
        self.tracer.running.append(self.tracer.running[-1] if self.tracer.running else None)
        if len(self.tracer.running) > 1:
            return
        self.hosts.add(self.names[-1])
        for found in self.weights.slices.values():
            self.places.update(found)
            for name, module in found.items():
                self.layers.setdefault(name, Layer(name, module, -1, num_neurons(module)))
        if not taken.layers:
            return
        self.places.add(taken.place)
        self.tracer.used.update(taken.layers.values())
        self.events.append((taken.place, "input"))
        for key, value in taken.inputs.items():
            piece = shown(value)
            self.tracer.note_inputs([piece], taken.layers[key])
            self._look_for_sites(key, piece)
            self._consume(taken.layers[key], self.tracer.tag(piece))

    def give(self, taken: Taken, output: Tensor) -> None:
        """End the call of a function: what it returns are the neurons of the layers."""
        self.tracer.running.pop()
        if self.tracer.running or not taken.layers:
            return
        self.events.append((taken.place, "output"))
        layers = [self.layers[name] for name in taken.layers.values()]
        calls = [(layer.name, layer.num_calls) for layer in layers]
        self.tracer.label_parts(calls, [taken.indices[key] for key in taken.layers], output, layers[0].axis)
        for key, layer in zip(taken.layers, layers, strict=True):
            self._count(layer, key)

    def drop(self, call: Callable[[], Tensor], x: Any) -> Tensor:
        """Run a dropout: in training, other activations come out."""
        tag = self.tracer.tag(x) if isinstance(x, Tensor) else Label()
        output = call()
        if tag.planes:
            self.tracer.tags[output] = tag.map(lambda plane: plane.condense(plane.ids))
        return output

    def _look_for_sites(self, key: int | str, tensor: Tensor) -> None:
        """Remember the first place where all neurons of a layer's call can be seen: activated, and behind each norm."""
        planes = self.tracer.tag(tensor).planes if tensor.dtype != torch.bool else ()
        gated = [plane for plane in planes if plane.gated and not (plane.renormalised or plane.summed)]
        for number in set().union(*(plane.calls for plane in gated)) - self.products.keys():
            if site := self._site(number, key, [plane.ids for plane in gated if number in plane.calls]):
                self.products[number] = site
        clean = [plane for plane in planes if plane.clean]
        for place in {(number, plane.joined) for plane in clean for number in plane.calls} - self.sites.keys():
            ids = [plane.ids for plane in clean if place[0] in plane.calls and plane.joined == place[1]]
            if site := self._site(place[0], key, ids):
                self.sites[place] = site
                mine = [plane for plane in clean if place[0] in plane.calls and plane.joined == place[1]]
                if any(plane.condensed for plane in mine):
                    self.condensed[place] = mine[0].whole if len(mine) == 1 else None
        for plane in planes:
            steps = plane.norms + plane.averaged
            if (steps or plane.joined) and not (plane.activation or plane.summed or plane.product):
                for before in {(number, steps, plane.joined) for number in plane.calls} - self.inputs.keys():
                    if site := self._site(before[0], key, [plane.ids]):
                        self.inputs[before] = site

    def _site(self, number: int, key: int | str, planes: list[Tensor]) -> Site | None:
        since, layer = tuple(self.events[self.produced[number] :]), self._layer(number)
        if (place := _place(planes, number, layer)) is not None:
            return Site(since, key, *place)
        if not isinstance(layer.module, Slice) or (member := _member(planes[0], number)) is None:
            return None
        place = _place([ids.select(*member) for ids in planes], number, layer)
        return None if place is None else Site(since, key, *place, member=member)

    def _consume(self, name: str, tag: Label) -> None:
        for plane in tag.planes:
            self.sums.note(plane)
            if not (plane.product or plane.multiplied):
                self.alone |= plane.calls
            for number, columns in self._columns(plane, self.layers[name].axis):
                if columns is None:
                    self._layer(number).note(f"reaches {name} with its neurons in changing places")
                    continue
                if len(columns) != num_inputs(self.layers[name].module):
                    self._layer(number).note(f"reaches {name}, which has another number of inputs")
                    continue
                consumer = Consumer(name, columns, plane.summed, plane.product, bool(plane.joined))
                self.consumed.append((number, consumer, plane))
        for number, operation in tag.mixed.items():
            self._layer(number).note(f"mixed by {operation} before {name}")

    def _pass_norm(self, name: str, tag: Label, axis: int) -> None:
        """Record the entries of a norm's gain and bias that belong to single neurons."""
        for plane in tag.planes:
            if plane.summed or plane.product:
                continue
            for number, entries in self._columns(plane, axis):
                if entries is not None:
                    self.normed.append((number, Norm(name, entries, plane.activation is None), plane.joined))

    def _layer(self, number: int) -> Layer:
        return self.layers[self.tracer.calls[number].layer]

    def _columns(self, plane: Plane, axis: int) -> Iterator[tuple[int, Tensor | None]]:
        vector = feature_vector(plane.ids, axis)
        for number in sorted(plane.calls):
            if vector is None:
                yield number, None
                continue
            mine = vector // STRIDE == number
            if mine.any():
                yield number, torch.where(mine, vector % STRIDE, NOTHING).cpu()

    def _settle_sums(self, outputs: list[Label]) -> None:
        """Tell joint units from residual streams, and wire the layers accordingly."""
        for plane in (plane for tag in outputs for plane in tag.planes):
            self.sums.note(plane)
        self.sums.settle(lambda number, joined: self.tracer.activated(number, joined) is not None)
        for number, consumer, plane in self.consumed:
            if not self.sums.holds(number, plane.joined):
                summed, product = consumer.summed or plane.added, consumer.product or plane.multiplied
                consumer = replace(consumer, summed=summed, product=product, joined=False)
            self._layer(number).writes_to_stream |= consumer.summed
            self._layer(number).add_consumer(consumer)
        for number, norm, joined in self.normed:
            if self.sums.holds(number, joined):
                self._layer(number).add_norm(norm)

    def finish(self, output: Any) -> Wiring:
        """Return the wiring, given the output of the pass; ValueError if no layer saw a sample."""
        if not self.layers:
            raise ValueError(
                f"wiring needs a model with Linear or Conv layers; {type(self.modules['']).__name__} has none"
            )
        if self.empty and not self.order:
            raise ValueError(f"cannot trace an empty batch: {next(iter(self.empty.values()))}")
        tags = [tag for tensor in tensors_in(output) if (tag := self.tracer.tag(tensor))]
        self._settle_sums(tags)
        for layer in self.layers.values():
            users = (op for name, op in self.tracer.borrowed.items() if self.modules.get(name) is layer.module)
            layer.borrowed_by, layer.besides = next(users, ""), self.tracer.besides.get(layer.name, "")
        for number, operation in self.tracer.absorbed.items():
            self._layer(number).note(f"feeds {operation} with {LOOSE_WEIGHTS}")
        for tag in tags:
            for number in tag.weighed:
                self._layer(number).note(f"feeds {tag.mixed[number]} with {LOOSE_WEIGHTS}")
        for tag in tags:
            for number in tag.calls | set(tag.mixed):
                layer = self._layer(number)
                layer.is_output |= not (layer.consumers or layer.unresolved)
                layer.writes_to_stream |= any(p.summed and number in p.calls for p in tag.planes)
                if not layer.is_output and any(number in p.calls and not p.summed for p in tag.planes):
                    layer.note(RETURNED)
        for number, call in enumerate(self.tracer.calls):
            self._settle_sites(number, self.layers[call.layer])
        self._divide()
        for parameter, slices in self.weights.slices.items():
            self._wire_alike([self.layers[name] for name in slices], parameter)
        names = self.order + [name for name in self.layers if name not in self.order]
        layers = {name: self.layers[name] for name in names}
        used, hosts, places = map(frozenset, (self.tracer.used, self.hosts, self.places))
        way = Way(tuple(self.events), layers, used, frozenset(self.empty), hosts, places)
        return Wiring.of((way,), self.modules)

    def _divide(self) -> None:
        """Give the parts of fused projections to their layers, where all calls were divided alike."""
        divisions: dict[str, list[list[Tensor]]] = {}
        for number, call in enumerate(self.tracer.calls):
            divisions.setdefault(call.layer, []).append(self.tracer.fused.of(number))
        for name, of_calls in divisions.items():
            layer, first = self.layers[name], of_calls[0]
            alike = all(list(map(torch.Tensor.tolist, d)) == list(map(torch.Tensor.tolist, first)) for d in of_calls)
            if first and alike and not layer.has_units and not layer.is_output and not isinstance(layer.module, Slice):
                layer.parts = layer.divided(first)

    def _wire_alike(self, slices: list[Layer], parameter: str) -> None:
        """Wire slices without samples as one that had some, where one function serves all of them: experts."""
        known = next((layer for layer in slices if layer.own and layer.own.module == parameter), None)
        for layer in slices:
            if known is not None and not layer.num_calls:
                self.layers[layer.name] = self._alike(known, layer)
                self.order.append(layer.name)

    def _alike(self, known: Layer, layer: Layer) -> Layer:
        before, after = cast(Slice, known.module).index, cast(Slice, layer.module).index

        def moved(site: Site) -> Site:
            if site.member is not None and site.member[1] == before:
                return replace(site, member=(site.member[0], after))
            return replace(site, key=after) if site.key == before else site

        def renamed(consumer: Consumer) -> Consumer:
            place, _, index = consumer.layer.rpartition(".")
            mine = place in self.weights.slices and index == str(before)
            return replace(consumer, layer=f"{place}.{after}") if mine else consumer

        return replace(
            known,
            name=layer.name,
            module=layer.module,
            own=moved(cast(Site, known.own)),
            sites=list(map(moved, known.sites)),
            inputs=list(map(moved, known.inputs)),
            consumers=list(map(renamed, known.consumers)),
            norms=[*known.norms],
            unresolved=[*known.unresolved],
        )

    def _settle_sites(self, number: int, layer: Layer) -> None:
        """Choose where a call is observed; the layer's own output where no module sees the activation."""
        joined = self.sums.of(number)
        first = self.tracer.activated(number, joined)
        layer.activation = layer.activation or (first.activation if first else None)
        layer.own = own = Site((self.events[self.produced[number]],), self.keys[number], layer.axis, layer.num_neurons)
        steps = 0 if first is None else first.norms + first.averaged
        # What comes out of a norm gets the gradient of the sum that it is added to.
        seen = self.inputs.get((number, steps, joined)) or (self.inputs.get((number, steps, ALONE)) if joined else None)
        start = seen if steps else own
        gated = number in self.products and number not in self.alone  # a shut gate does not silence what is heard alone
        layer.gated |= gated
        if gated:
            layer.sites.append(self.products[number])
        elif (number, joined) in self.sites and not (start and self.condensed.get((number, joined))):
            layer.sites.append(self.sites[number, joined])
            layer.condensed |= (number, joined) in self.condensed
        elif first is None:
            layer.sites.append(own)
        elif start and (replay := self.condensed.get((number, joined)) or first.replay):
            layer.sites.append(replace(start, replay=replay))
        else:
            layer.note(f"no module sees its neurons after {first.activation}")
        if seen is not None:
            layer.inputs.append(seen)
        elif first is None or not first.norms:
            layer.inputs.append(own)


def _place(planes: list[Tensor], number: int, layer: Layer) -> tuple[int, int, Tensor | None] | None:
    """Return (axis, size, columns) where a call's neurons lie in a tensor; None unless all of them lie on one axis.

    ``planes``: labels, of which several apply to one tensor where a neuron was used twice, as in CReLU, or where parts
    of the neurons are multiplied with each other, as in GLU.
    """
    axes = range(-1, -planes[0].dim() - 1, -1)
    for axis in sorted(axes, key=lambda a: a != layer.axis):  # its own first: an axis of length 1 tells nothing
        vectors = [vector for ids in planes if (vector := feature_vector(ids, axis)) is not None]
        if len(vectors) == len(planes) and (columns := _columns(vectors, number, layer.num_neurons)) is not None:
            size = planes[0].shape[axis]
            trivial = torch.equal(columns, torch.arange(size, device=columns.device)[:, None])
            return axis, size, None if trivial else columns
    return None


def _member(ids: Tensor, number: int) -> tuple[int, int] | None:
    """Return (axis, index) where all labels of one call lie in a tensor that holds several members of an ensemble."""
    mine = ids // STRIDE == number
    for axis in range(-3, -ids.dim() - 1, -1):
        others = [dim for dim in range(ids.dim()) if dim != axis % ids.dim()]
        found = mine.amax(others).nonzero().flatten()
        if len(found) == 1:
            return axis, int(found)
    return None


def _columns(vectors: list[Tensor], number: int, num: int) -> Tensor | None:
    """Return (neurons, copies) where each neuron of a call lies in vectors of labels; None if not all are equal."""
    found = [(vector // STRIDE == number).nonzero().flatten() for vector in vectors]
    neurons = torch.cat([vector[where] % STRIDE for vector, where in zip(vectors, found, strict=True)])
    counts = torch.bincount(neurons, minlength=num)
    copies = int(counts.max())
    if copies == 0 or not bool((counts == copies).all()):
        return None
    return torch.cat(found)[torch.argsort(neurons, stable=True)].view(num, copies).cpu()


__all__ = ["is_empty", "trace", "wiring"]
