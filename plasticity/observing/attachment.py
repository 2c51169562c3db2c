"""The hooks of an observer: on a model, its methods, its modules and its weights; all of them come off together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from torch import nn

from plasticity.isolation import is_scripted, named_modules
from plasticity.structure.layers import Layer, weight_parameter
from plasticity.structure.sites import Event

from .entry_points import EntryPoint, runs_without_hooks
from .hooks import Hook, Recording


class Attachment:
    """Put hooks on ``model`` that call methods of an observer, each once; it does not keep the observer alive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: dict[Hashable, Any] = {}
        self._structure: list[tuple[dict, list]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without hooks, which stay with the original model."""
        return {**self.__dict__, "_handles": {}, "_structure": []}

    def __bool__(self) -> bool:
        return bool(self._handles)

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()
        self._structure = []

    def restructured(self) -> bool:
        """Return whether modules were replaced since the modules were hooked."""
        return any(list(children.values()) != then for children, then in self._structure)

    def to_calls(self, observer: Any, methods: Iterable[str]) -> None:
        """Hook the call of the model, and of methods that count as such."""
        begin, end = Hook(observer, "begin", "forward"), Hook(observer, "end", "forward")
        self._handles["begin"] = self._model.register_forward_pre_hook(begin, with_kwargs=True)
        self._handles["end"] = self._model.register_forward_hook(end, always_call=True)
        for method in methods:
            self._handles["call", method] = EntryPoint(observer, self._model, method)
        if runs_without_hooks(self._model) and "forward" not in methods:
            self._handles["call", "forward"] = EntryPoint(observer, self._model, "forward", "__call__")

    def to_strays(self, observer: Any) -> None:
        """Hook every module until some are chosen, to notice those that run outside every pass."""
        for name, module in named_modules(self._model).items():
            if name and not is_scripted(module):
                hook = Hook(observer, "note_stray", name)
                self._handles["stray", name] = module.register_forward_pre_hook(hook)

    def to_modules(self, observer: Any, modules: Mapping[Event, nn.Module]) -> None:
        """Hook the begin or end of modules, and remember what the model consists of."""
        self._structure = [(m._modules, list(m._modules.values())) for m in self._model.modules()]
        for place in [place for place in self._handles if isinstance(place, tuple) and place[0] == "stray"]:
            self._handles.pop(place).remove()
        for (name, side), module in modules.items():
            if not name or (name, side) in self._handles:  # the model's own hooks are on already
                continue
            if side == "input":
                handle: Any = module.register_forward_pre_hook(Hook(observer, "enter", name), with_kwargs=True)
            else:
                handle = module.register_forward_hook(Hook(observer, "leave", name))
            self._handles[name, side] = handle

    def to_hosts(self, observer: Any, hosts: Mapping[str, nn.Module]) -> None:
        """Hook the modules in which functions take up weights of layers."""
        for name, module in hosts.items():
            if ("host", name) not in self._handles:
                enter, leave = Hook(observer, "enter_host", name), Hook(observer, "leave_host", name)
                self._handles["host", name] = module.register_forward_pre_hook(enter)
                self._handles["host end", name] = module.register_forward_hook(leave, always_call=True)

    def to_weights(self, observer: Any, layers: Iterable[Layer], recording: Recording | None) -> None:
        """Hook the weights that train; once more with every pass, because a loop may freeze a network in between."""
        # A recorded pass has tensors of its own in the place of the weights.
        for layer in layers:
            weight, place = weight_parameter(layer.module), (layer.name, "weight")
            if weight is None or not weight.requires_grad:
                continue
            if recording is not None and layer.name not in recording.hooked_weights:
                recording.hooked_weights.add(layer.name)
                weight.register_hook(Hook(observer, "weigh", layer.name))
            elif recording is None and place not in self._handles:
                self._handles[place] = weight.register_hook(Hook(observer, "weigh", layer.name))
