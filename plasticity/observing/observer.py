"""See activations and gradients of a running model; the only file that puts hooks on modules and tensors to measure.

A layer's activations are read where the wiring found them (the output of an activation module, or the input of whatever
module receives them), so ``F.relu``, a shared ``nn.ReLU`` and in-place activations are all seen. Gradients come from
tensor hooks, because full backward hooks break on in-place operations. Hooks return nothing and reduce what they see at
once, so outputs, gradients and random states are the same bits with and without them.

A compiled gradient step runs the hooks once, while it traces the passes (:meth:`Observer.recording`); its graph then
computes what they saw along with the gradients, and hands it over (:meth:`Observer.deliver`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plasticity.isolation import map_tensors, named_modules
from plasticity.probes.probe import FORWARD, POST, PRE, PREACTIVATION, WEIGHT_GRADIENT
from plasticity.structure.labels import tensors_in
from plasticity.structure.layers import Layer, Site, by_neuron, fits, precise, weight_rows

from .gathering import Gathering
from .hooks import Entry, Hook, Pass, Recording, Seen, backward_pass, in_backward


class Observer:
    """Hand the activations and gradients of ``model`` to ``gathering``, layer by layer."""

    def __init__(
        self,
        model: nn.Module,
        gathering: Gathering,
        passes: Literal["all", "training"],
        owner: object | None,
        prepare: Callable[[tuple, dict], object | None],
    ) -> None:
        self.model, self.gathering, self.passes = model, gathering, passes
        self.owner = owner or self
        self.mask: Tensor | None = None
        self.mask_fitted = False
        """Whether some layer's output had the shape of the mask."""
        self.stale = False
        """Whether the next pass that counts replaces what is pending, or was gathered."""
        self.is_paused = False
        self.share = 1.0
        """Share of the steps, in [0, 1], that are observed: decides whether a compiled graph of their own pays."""
        self.seconds = 0.0
        """Wall-clock time spent here."""
        self._prepare = prepare
        self._inputs: tuple[tuple, dict] | None = None
        self._delivered: tuple[Recording, Sequence[Tensor]] | None = None
        self._recording: Recording | None = None
        self._layers: list[Layer] = []
        self._wirings = 0
        self._handles: list[Any] = []
        self._generation = 0
        self._pass: Pass | None = None
        self._latest: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without hooks, which stay with the original model."""
        left = dict.fromkeys(("_delivered", "_pass", "_latest", "_recording"))
        return {**self.__dict__, **left, "_inputs": self.inputs, "_handles": []}

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return bool(self._handles)

    @property
    def inputs(self) -> tuple[tuple, dict] | None:
        """Positional and named arguments of the last pass that counted, detached."""
        if self._delivered is not None:
            recording, tensors = self._delivered
            return recording.arguments(tensors)
        return self._inputs

    def attach(self) -> None:
        """Put the hooks on the model; those on its layers follow when the wiring is known."""
        self._generation += 1
        self._sites: defaultdict[tuple[str, str, int], list[tuple[Layer, Site]]] = defaultdict(list)
        self._measured: dict[str, Layer] = {}
        self._modules: dict[str, nn.Module] = {}
        self._structure: list[tuple[dict, list]] = []
        self._prepared: Hashable | None = None
        self._hooked_weights: set[str] = set()
        self._entered = {""}
        """The modules that are looked at, or counted, before their forward as well."""
        self._backward: dict[str, int] = {}
        self._handles.append(self.model.register_forward_pre_hook(Hook(self, "begin", ""), with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(Hook(self, "end", ""), always_call=True))

    def detach(self) -> None:
        """Take every hook off."""
        self._generation += 1
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pass = self._latest = None

    def reset(self) -> None:
        """Forget everything gathered."""
        self.gathering.reset()
        self.stale = False

    def attach_layers(self, layers: list[Layer]) -> None:
        """Hook each module that shows activations, and each layer whose gradients are wanted."""
        modules = named_modules(self.model)
        self._structure = [(m._modules, list(m._modules.values())) for m in self.model.modules()]
        self._wirings += any(a is not b for a, b in zip(layers, self._layers, strict=False))
        self._layers = layers
        self._prepared = (self._wirings, *(layer.name for layer in layers), "probes", *self.gathering.working)
        names = set()
        for layer in layers:
            self._measured[layer.name] = layer
            for site in layer.sites.values() if self.gathering.signals & {FORWARD, POST} else ():
                self._sites[site.module, site.side, site.call].append((layer, site))
                names.add(site.module)
                if site.side == "input":
                    self._entered.add(site.module)
            if self.gathering.signals & {PREACTIVATION, PRE, WEIGHT_GRADIENT}:
                names.add(layer.name)
        self._modules = {name: modules[name] for name in sorted(names)}
        for name in self._modules.keys() - {""}:  # the model's own hooks are on already
            module = self._modules[name]
            if module._modules or name in self._entered:
                self._entered.add(name)
                self._handles.append(module.register_forward_pre_hook(Hook(self, "enter", name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(Hook(self, "leave", name)))

    def _attach_weights(self) -> None:
        """Hook the weights that train; once more with every pass, because a loop may freeze a network in between."""
        recording = self._recording  # a traced pass has tensors of its own in the place of the weights
        hooked = self._hooked_weights if recording is None else recording.hooked_weights
        for layer in self._measured.values() if WEIGHT_GRADIENT in self.gathering.signals else ():
            weight = layer.module._parameters.get("weight")
            if weight is not None and weight.requires_grad and layer.name not in hooked:
                hooked.add(layer.name)
                handle = weight.register_hook(Hook(self, "weigh", layer.name))
                if recording is None:
                    self._handles.append(handle)

    def _restructured(self) -> bool:
        """Return whether modules were replaced since the layers were hooked."""
        return any(list(children.values()) != then for children, then in self._structure)

    # -- riding on a compiled graph, as `GradientStep` of the agents asks for it ---------------------------------------

    @property
    def can_ride(self) -> bool:
        """Whether a graph can compute what is measured: passes are told apart by their gradient, and have no mask."""
        return self.passes == "training" and self.mask is None

    def key(self) -> Hashable | None:
        """Return what is looked at, None while that is not known: before a pass of the model as it is now."""
        return None if self._restructured() else self._prepared

    @contextmanager
    def recording(self) -> Iterator[tuple[list[Tensor], Recording]]:
        """Within, note what a traced forward and backward pass shows; both results are filled by its end."""
        self._recording = recording = Recording()
        self._pass = self._latest = None
        try:
            yield recording.tensors, recording
            recording.finish()
        finally:
            self._generation += 1  # hooks on traced tensors are done with
            self._recording = self._pass = self._latest = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, see nothing."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def deliver(self, plan: Recording, tensors: Sequence[Tensor]) -> None:
        """Take in what a graph computed of a recorded pass."""
        start = perf_counter()
        if plan.num_passes:
            self._replace_stale()
            self._inputs, self._delivered = None, (plan, tensors)
            reduced = [tensors[i] for i in plan.reduced_at]
            rows = [(entry, tensors[i]) for entry, i in plan.rows_at]
            self.gathering.take_passes(plan.num_passes, plan.reduced, reduced, rows)
        self.seconds += perf_counter() - start

    # -- the forward pass ----------------------------------------------------------------------------------------------

    def begin(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Open a pass of the whole model, if it is one that may count."""
        if module is not self.model or (self.passes == "training" and not torch.is_grad_enabled()):
            return
        repeated = in_backward()
        if repeated and self._latest is not None and not self._latest.repeated:
            self._latest.calls.clear()  # checkpointing computes again what was already seen
            self._pass = self._latest
            return
        if self._restructured():
            # Modules were replaced: what was gathered, and where it is gathered, belongs to another network.
            self.detach()
            self.reset()
            self.attach()
        if self._prepared is None and self._prepare(args, kwargs) is None:
            return
        self._attach_weights()
        inputs = (args, kwargs) if self._recording is not None else map_tensors((args, kwargs), torch.detach)
        self._pass = self._latest = Pass(inputs, repeated)
        if self.passes == "all":
            self._count(self._pass)
        self.enter(name, module, args, kwargs)

    def end(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Close the pass."""
        if module is not self.model or self._pass is None:
            return
        self.leave(name, module, args, output)
        if self.passes == "training":
            for tensor in tensors_in(output):
                self._follow(tensor, lambda gradient: None)
        self._pass = None

    def enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Look at the inputs of a module."""
        if module is not self._modules.get(name) or self._pass is None:
            return
        call = self._pass.calls[name]
        self._pass.calls[name] += 1
        for layer, site in self._sites.get((name, "input", call), ()):
            self._see(layer, site, kwargs.get(site.key) if isinstance(site.key, str) else _item(args, site.key))

    def leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Look at the outputs of a module."""
        if module is not self._modules.get(name):
            return
        layer = self._measured.get(name)
        if layer is not None and isinstance(output, Tensor):
            self._follow_output(layer, output)
        if self._pass is None:
            return
        if layer is not None and PREACTIVATION in self.gathering.signals and isinstance(output, Tensor):
            self._see_preactivation(layer, output)
        if name not in self._entered:
            self._pass.calls[name] += 1
        for seen, site in self._sites.get((name, "output", self._pass.calls[name] - 1), ()):
            self._see(seen, site, output if isinstance(output, Tensor) else _item(output, site.key))

    def _see(self, layer: Layer, site: Site, value: Any) -> None:
        """Take the activations of a layer from the tensor that carries them."""
        if not isinstance(value, Tensor) or value.dim() < -site.axis or value.shape[site.axis] != site.size:
            return
        if POST in self.gathering.signals and not site.replay:
            self._follow(value, lambda gradient: self._feed(layer, POST, gradient, site.axis, site.columns))
        if FORWARD not in self.gathering.signals or self._is_repeated():
            return
        if self.mask is not None:
            self._note_mask(value, site.axis)
        tensor = precise(value.detach())
        if site.replay:
            with torch.no_grad():
                rows = site.read(tensor, self.mask)
        else:
            rows = self._rows(tensor, site.axis, site.columns)
        self._stage(self.gathering.look(layer.name, FORWARD, rows))

    def _see_preactivation(self, layer: Layer, output: Tensor) -> None:
        """Take the linear output of a layer."""
        if not self._is_repeated():
            if self.mask is not None:
                self._note_mask(output, layer.axis)
            rows = self._rows(precise(output.detach()), layer.axis, None)
            self._stage(self.gathering.look(layer.name, PREACTIVATION, rows))

    def _is_repeated(self) -> bool:
        """Return whether a forward pass computes again, for its backward pass, what was already seen."""
        return in_backward() and not (self._pass is not None and self._pass.repeated)

    def _stage(self, seen: Seen) -> None:
        """Take in what a forward pass shows, now or when it counts."""
        assert self._pass is not None
        if not self._pass.counted or self.gathering.deferred:
            seen = cloned(seen)  # rows may be overwritten in place before they are looked at
        if self._pass.counted:
            self._take(seen)
        else:
            self._pass.staged += seen

    # -- the backward pass ---------------------------------------------------------------------------------------------

    def _follow_output(self, layer: Layer, output: Tensor) -> None:
        def arrive(gradient: Tensor) -> None:
            self._backward[layer.name] = backward_pass()
            if PRE in self.gathering.signals:
                self._feed(layer, PRE, gradient, layer.axis)

        base, axis = output._base, layer.axis
        if base is not None and base.numel() == output.numel() and base.shape[axis:] == output.shape[axis:]:
            # An in-place activation on a view takes the view out of the graph, but not the tensor it looks at.
            output = base
        self._follow(output, arrive)

    def _follow(self, tensor: Tensor, arrive: Callable[[Tensor], None]) -> None:
        """Call ``arrive`` with the gradient of a tensor when the backward pass reaches it, and count its pass."""
        # A module that runs outside every pass is either checkpointed or none of ours.
        owner, generation = self._pass or (self._latest if in_backward() else None), self._generation
        if not tensor.requires_grad or owner is None:
            return

        def hook(gradient: Tensor) -> None:
            if generation == self._generation:
                start = perf_counter()
                self._count(owner)
                arrive(gradient)
                self.seconds += perf_counter() - start

        tensor.register_hook(hook)

    def _feed(self, layer: Layer, signal: str, gradient: Tensor, axis: int, columns: Tensor | None = None) -> None:
        if self.mask is not None:
            self._note_mask(gradient, axis)
        rows = self._rows(precise(gradient.detach()), axis, columns)
        self._take(self.gathering.look(layer.name, signal, rows))

    def _rows(self, tensor: Tensor, axis: int, columns: Tensor | None) -> Tensor:
        if axis == -1 and columns is None and self.mask is None and tensor.dim() == 2:
            return tensor  # already
        return by_neuron(tensor, axis, columns, self.mask)

    def _take(self, seen: Iterable[tuple[Entry, Tensor]]) -> None:
        (self.gathering if self._recording is None else self._recording).take(seen)

    def _note_mask(self, tensor: Tensor, axis: int) -> None:
        assert self.mask is not None
        self.mask_fitted |= fits(self.mask, tensor, axis)

    def weigh(self, name: str, gradient: Tensor) -> None:
        """Look at the gradient of a layer's weight."""
        # Only with the gradient of an output that was followed: other passes are not ours to count.
        if self._backward.get(name) == backward_pass():
            rows = weight_rows(self._measured[name].module, precise(gradient.detach()))
            seen = self.gathering.look(name, WEIGHT_GRADIENT, rows)
            # What is deferred is a copy: the gradient becomes `.grad`, which may be clipped in place.
            self._take(cloned(seen) if self.gathering.deferred else seen)

    def _count(self, owner: Pass) -> None:
        """Count a pass: hand over its activations."""
        if owner.counted:
            return
        owner.counted = True
        if self._recording is not None:
            self._recording.count(owner)
        else:
            self._replace_stale()
            self._inputs, self._delivered = owner.inputs, None
            self.gathering.count()
        self._take(owner.staged)
        owner.staged = []

    def _replace_stale(self) -> None:
        if self.stale and self.gathering.deferred:
            self.gathering.drop()
        elif self.stale:
            self.reset()
        self.stale = False


def cloned(seen: Seen) -> Seen:
    """Return what is seen with copies of rows."""
    return [(entry, tensor if entry.reduced else tensor.clone()) for entry, tensor in seen]


def _item(values: Any, key: int | str) -> Any:
    return values[key] if isinstance(values, (tuple, list)) and isinstance(key, int) and key < len(values) else None
