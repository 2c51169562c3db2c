"""See activations and gradients of a running model; the only file that puts hooks on modules and tensors to measure.

A layer's activations are read where the wiring found them (the output of an activation module, or the input of whatever
module receives them), so ``F.relu``, a shared ``nn.ReLU`` and in-place activations are all seen. Gradients come from
tensor hooks, because full backward hooks break on in-place operations. Hooks return nothing and reduce what they see at
once, so outputs, gradients and random states are the same bits with and without them.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .gathering import Gathering
from .hooks import Hook, Pass, backward_pass, in_backward
from .isolation import map_tensors, named_modules
from .labels import tensors_in
from .layers import Layer, Site, by_neuron, fits, weight_rows
from .probes.probe import FORWARD, POST, PRE, WEIGHT


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
        self.inputs: tuple[tuple, dict] | None = None
        """Positional and named arguments of the last pass that counted."""
        self.num_passes = 0
        self.stale = False
        """Whether the next pass that counts replaces what was gathered."""
        self._prepare = prepare
        self._handles: list[Any] = []
        self._generation = 0
        self._pass: Pass | None = None
        self._latest: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without hooks, which stay with the original model."""
        return {**self.__dict__, "_handles": [], "_pass": None, "_latest": None}

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return bool(self._handles)

    def attach(self) -> None:
        """Put the hooks on; those on the layers follow with the first pass, when the wiring is known."""
        self._generation += 1
        self._sites: defaultdict[tuple[str, str, int], list[tuple[Layer, Site]]] = defaultdict(list)
        self._measured: dict[str, Layer] = {}
        self._modules: dict[str, nn.Module] = {}
        self._structure: list[nn.Module] = []
        self._hooked_weights: set[str] = set()
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
        self.num_passes, self.stale = 0, False

    def attach_layers(self, layers: list[Layer]) -> None:
        """Hook each module that shows activations, and each layer whose gradients are wanted."""
        modules = named_modules(self.model)
        self._structure = list(self.model.modules())
        names = set()
        for layer in layers:
            self._measured[layer.name] = layer
            for site in layer.sites.values() if self.gathering.signals & {FORWARD, POST} else ():
                self._sites[site.module, site.side, site.call].append((layer, site))
                names.add(site.module)
            if self.gathering.signals & {PRE, WEIGHT}:
                names.add(layer.name)
        self._modules = {name: modules[name] for name in sorted(names)}
        for name in self._modules.keys() - {""}:  # the model's own hooks are on already
            module = self._modules[name]
            self._handles.append(module.register_forward_pre_hook(Hook(self, "enter", name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(Hook(self, "leave", name)))

    def _attach_weights(self) -> None:
        """Hook the weights that train; once more with every pass, because a loop may freeze a network in between."""
        for layer in self._measured.values() if WEIGHT in self.gathering.signals else ():
            weight = layer.module._parameters.get("weight")
            if weight is not None and weight.requires_grad and layer.name not in self._hooked_weights:
                self._hooked_weights.add(layer.name)
                self._handles.append(weight.register_hook(self._on_weight_gradient(layer)))

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
        if self._modules and list(self.model.modules()) != self._structure:
            # Modules were replaced: what was gathered, and where it is gathered, belongs to another network.
            self.detach()
            self.reset()
            self.attach()
        if not self._modules and self._prepare(args, kwargs) is None:
            return
        self._attach_weights()
        self._pass = self._latest = Pass(map_tensors((args, kwargs), torch.detach), repeated)
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
        for seen, site in self._sites.get((name, "output", self._pass.calls[name] - 1), ()):
            self._see(seen, site, output if isinstance(output, Tensor) else _item(output, site.key))

    def _see(self, layer: Layer, site: Site, value: Any) -> None:
        """Take the activations of a layer from the tensor that carries them."""
        if not isinstance(value, Tensor) or value.dim() < -site.axis or value.shape[site.axis] != site.size:
            return
        if POST in self.gathering.signals and not site.replay:
            self._follow(value, lambda gradient: self._feed(layer, POST, gradient, site.axis, site.columns))
        assert self._pass is not None
        if FORWARD not in self.gathering.signals or (in_backward() and not self._pass.repeated):
            return
        self._note_mask(value, site.axis)
        with torch.no_grad():
            rows = site.read(_precise(value.detach()), self.mask)
        if self._pass.counted:
            self.gathering.feed(layer.name, FORWARD, rows)
        else:
            self._pass.staged.append((layer.name, rows.clone()))  # it may be overwritten in place later

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
                self._count(owner)
                arrive(gradient)

        tensor.register_hook(hook)

    def _feed(self, layer: Layer, signal: str, gradient: Tensor, axis: int, columns: Tensor | None = None) -> None:
        self._note_mask(gradient, axis)
        rows = by_neuron(_precise(gradient.detach()), axis, columns, self.mask)
        self.gathering.feed(layer.name, signal, rows)

    def _note_mask(self, tensor: Tensor, axis: int) -> None:
        self.mask_fitted |= self.mask is not None and fits(self.mask, tensor, axis)

    def _on_weight_gradient(self, layer: Layer) -> Callable[[Tensor], None]:
        observer = weakref.ref(self)

        def hook(gradient: Tensor) -> None:
            self = observer()
            # Only with the gradient of an output that was followed: other passes are not ours to count.
            if self is not None and self._backward.get(layer.name) == backward_pass():
                rows = weight_rows(layer.module, _precise(gradient.detach()))
                self.gathering.feed(layer.name, WEIGHT, rows)

        return hook

    def _count(self, owner: Pass) -> None:
        """Count a pass: hand over its activations."""
        if owner.counted:
            return
        if self.stale:
            self.reset()
        owner.counted = True
        self.inputs = owner.inputs
        self.num_passes += 1
        for name, rows in owner.staged:
            self.gathering.feed(name, FORWARD, rows)
        owner.staged.clear()


def _item(values: Any, key: int | str) -> Any:
    return values[key] if isinstance(values, (tuple, list)) and isinstance(key, int) and key < len(values) else None


def _precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision sums overflow and round."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
