"""Attach probes to a model's layers; the only file with module hooks.

A layer's activations are read where the wiring found them (the output of an activation module, or the input of whatever
module receives them), so ``F.relu``, a shared ``nn.ReLU`` and in-place activations are all seen. Gradients come from
tensor hooks, because full backward hooks break on in-place operations. Hooks return nothing and reduce what they see at
once, so outputs, gradients and random states are the same bits with and without a monitor.
"""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .isolation import foreign_pass, unwrap
from .probes import DEFAULT_PROBES, Probe, make_probes
from .reading import ALL, Coverage, Reading
from .wiring import Layer, Site, Wiring, by_neuron, wiring

FORWARD, PRE, POST, WEIGHT = "on_forward", "on_backward", "on_activation_gradient", "on_weight_gradient"


def weight_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight-shaped tensor of a Linear or convolution as (neurons, inputs)."""
    if not getattr(module, "transposed", False):
        return weight.flatten(1)
    groups: int = module.groups  # type: ignore[assignment]
    inputs, outputs = weight.shape[:2]
    rows = weight.reshape(groups, inputs // groups, outputs, -1).transpose(1, 2)
    return rows.reshape(groups * outputs, -1)


@dataclass
class _Pass:
    """One forward pass of the model: in training mode its activations wait here until its gradient arrives."""

    calls: Counter[str] = field(default_factory=Counter)
    staged: list[tuple[str, Tensor]] = field(default_factory=list)
    committed: bool = False


class _Hook:
    """A module hook that does not drag its monitor along: inert in a deep copy of the model and after unpickling."""

    def __init__(self, monitor: Monitor, method: str, name: str) -> None:
        self._monitor, self._method, self._name = weakref.ref(monitor), method, name

    def __call__(self, *args: Any) -> None:
        monitor = self._monitor()
        if monitor is not None:
            getattr(monitor, self._method)(self._name, *args)

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return _inert

    def __reduce__(self) -> tuple:
        return (_give_inert, ())


def _inert(*args: Any) -> None:
    """Do nothing: what a monitor's hook becomes in a copy of the model."""


def _give_inert() -> Callable[..., None]:
    return _inert


class Monitor:
    """Measure a model while the ``with`` block runs it.

    ``probes``: name -> probe, or names from ``PROBES``; each layer gets its own copies. ``layers``: globs of layer names
    (default: every hidden layer; output layers only when named). ``passes``: ``"all"`` counts every forward pass;
    ``"training"`` counts a pass once its gradient arrives, so acting, target and evaluation passes are left out.
    ``wiring``: of the model, if known; otherwise the first pass is traced. ``mask``: bool tensor of the leading shape of
    the layers' outputs, False for padded tokens; may be set between passes. ``strict``: raise when a probe fails instead
    of warning once and going on without it. ``owner``: whose private passes count too (see ``isolation``).

    Raises ValueError for a compiled model with ``passes="training"``, whose hooks would silently never fire.
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        *,
        layers: Sequence[str] | None = None,
        passes: Literal["all", "training"] = "all",
        wiring: Wiring | None = None,
        mask: Tensor | None = None,
        strict: bool = False,
        owner: object | None = None,
    ) -> None:
        if passes not in ("all", "training"):
            raise ValueError(f"passes is 'all' or 'training', got {passes!r}")
        self.model = unwrap(model)
        self.probes = dict(probes) if isinstance(probes, Mapping) else make_probes(probes)
        self.layers, self.passes, self.mask, self.strict = layers, passes, mask, strict
        self.wiring = wiring
        self._owner = owner or self
        self._compiled = model is not self.model and hasattr(model, "_orig_mod")
        if self.model._compiled_call_impl is not None or (self._compiled and passes == "training"):
            raise ValueError(
                "Monitor cannot see inside a compiled model: hooks added after compilation never run. Call the eager "
                "module for the steps to be measured, or use plasticity.measure(model, batch), which does."
            )
        self._handles: list[Any] = []
        self._pass: _Pass | None = None
        self._latest: _Pass | None = None
        self._generation = 0
        self._replace_on_commit = False
        self._failed: dict[str, str] = {}
        self._error: str | None = None
        self._modules: dict[str, nn.Module] = {}
        self.reset()

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Monitor:
        return self.attach()

    def __exit__(self, *exc: object) -> None:
        self.detach()

    @property
    def attached(self) -> bool:
        """Whether hooks are on the model."""
        return bool(self._handles)

    def attach(self) -> Monitor:
        """Put the hooks on; does nothing if they are. What was gathered before stays."""
        if not self.attached:
            self._generation += 1
            before, after = _Hook(self, "_begin", ""), _Hook(self, "_end", "")
            self._handles.append(self.model.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(self.model.register_forward_hook(after, always_call=True))
            if self.wiring is not None:
                self._attach_layers(self.wiring)
        return self

    def detach(self) -> None:
        """Take every hook off; does nothing if none are on. What was gathered stays readable."""
        self._generation += 1
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pass = self._latest = None

    def reset(self) -> None:
        """Forget everything gathered."""
        self._copies: dict[tuple[str, str], Probe] = {}
        self._metric_names: dict[str, tuple[str, ...]] = {}
        self._fed: Counter[tuple[str, str]] = Counter()
        self.num_passes = 0
        self._replace_on_commit = False

    def mark_stale(self) -> None:
        """Let the next pass that counts replace what was gathered: the passes so far belong to another loss."""
        self._replace_on_commit = True

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without hooks, which stay with the original model."""
        return {**self.__dict__, "_handles": [], "_pass": None, "_latest": None}

    # -- what is measured ----------------------------------------------------------------------------------------------

    def selected(self, wired: Wiring) -> list[Layer]:
        """Return the layers to measure: the hidden ones, or those whose names match the globs."""
        if self.layers is None:
            return wired.hidden
        chosen = [la for la in wired.layers.values() if any(fnmatchcase(la.name, glob) for glob in self.layers)]
        if not chosen:
            raise ValueError(f"no layer matches {', '.join(self.layers)}; there are {', '.join(wired.layers)}")
        return chosen

    def _signals(self) -> frozenset[str]:
        return frozenset().union(*(probe.signals for name, probe in self.probes.items() if name not in self._failed))

    def _attach_layers(self, wired: Wiring) -> None:
        """Hook each module that shows activations, and each layer whose gradients are wanted."""
        wanted = self._signals()
        self._modules = {n.replace("_orig_mod.", ""): m for n, m in self.model.named_modules()}
        self._sites: defaultdict[tuple[str, str, int], list[tuple[Layer, Site]]] = defaultdict(list)
        self._measured = {layer.name: layer for layer in self.selected(wired)}
        hooked = set()
        for layer in self._measured.values():
            if wanted & {FORWARD, POST}:
                for site in layer.sites.values():
                    self._sites[site.module, site.side, site.call].append((layer, site))
                    hooked.add(site.module)
            if PRE in wanted:
                hooked.add(layer.name)
            weight = layer.module._parameters.get("weight")
            if WEIGHT in wanted and weight is not None and weight.requires_grad:
                self._handles.append(weight.register_hook(self._on_weight_gradient(layer)))
        for name in sorted(hooked):
            module = self._modules[name]
            before, after = _Hook(self, "_enter", name), _Hook(self, "_leave", name)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after))

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if foreign_pass(self._owner) or module is not self.model or self._error:
            return
        if self.passes == "training" and not torch.is_grad_enabled():
            return
        if self.wiring is None:
            try:
                self.wiring = wiring(self.model, *args, **kwargs)
                self._attach_layers(self.wiring)
            except Exception as error:
                self._give_up(error)
                return
        self._pass = self._latest = _Pass()
        if self.passes == "all":
            self._commit(self._pass)

    def _end(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if module is self.model:
            self._pass = None

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is not self._modules.get(name) or self._pass is None:
            return
        call = self._pass.calls[name]
        self._pass.calls[name] += 1
        for layer, site in self._sites.get((name, "input", call), ()):
            value = kwargs.get(site.key) if isinstance(site.key, str) else _at(args, site.key)
            self._see(layer, site, value)

    def _leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if module is not self._modules.get(name):
            return
        layer = self._measured.get(name)
        if layer is not None and isinstance(output, Tensor) and PRE in self._signals():
            self._follow(output, layer, PRE, layer.axis, None)
        if self._pass is None:
            return
        call = self._pass.calls[name] - 1
        for layer, site in self._sites.get((name, "output", call), ()):
            self._see(layer, site, output if isinstance(output, Tensor) else _at(output, site.key))

    def _see(self, layer: Layer, site: Site, value: Any) -> None:
        """Take the activations of a layer from the tensor that carries them."""
        if not isinstance(value, Tensor) or value.dim() < -site.axis or value.shape[site.axis] != site.size:
            return
        wanted = self._signals()
        if POST in wanted and not site.replay:
            self._follow(value, layer, POST, site.axis, site.columns)
        if FORWARD in wanted and self._pass is not None and not _in_backward():
            with torch.no_grad():
                rows = self._unmasked(site.read(_precise(value.detach())))
            if self._pass.committed:
                self._feed(layer, FORWARD, rows)
            else:
                self._pass.staged.append((layer.name, rows.clone()))  # it may be overwritten in place later

    def _follow(self, tensor: Tensor, layer: Layer, signal: str, axis: int, columns: Tensor | None) -> None:
        """Take the gradient of a tensor when the backward pass reaches it."""
        owner, generation = self._pass or self._latest, self._generation
        if not tensor.requires_grad or owner is None or foreign_pass(self._owner):
            return
        base = tensor._base if tensor._is_view() else None
        if base is not None and base.numel() == tensor.numel() and base.shape[-1] == tensor.shape[-1] and axis == -1:
            # An in-place activation on a view takes the view out of the graph, but not the tensor it looks at.
            tensor = base

        def hook(gradient: Tensor) -> None:
            if generation == self._generation:
                self._commit(owner)
                self._feed(layer, signal, self._unmasked(by_neuron(_precise(gradient.detach()), axis, columns)))

        tensor.register_hook(hook)

    def _on_weight_gradient(self, layer: Layer) -> Callable[[Tensor], None]:
        generation, monitor = self._generation, weakref.ref(self)

        def hook(gradient: Tensor) -> None:
            self = monitor()
            if self is not None and generation == self._generation and not foreign_pass(self._owner) and self._latest:
                self._commit(self._latest)
                self._feed(layer, WEIGHT, weight_rows(layer.module, _precise(gradient.detach())))

        return hook

    def _unmasked(self, rows: Tensor) -> Tensor:
        if self.mask is not None and self.mask.numel() == len(rows):
            return rows[self.mask.flatten().to(rows.device)]
        return rows

    def _commit(self, owner: _Pass) -> None:
        """Count a pass: hand over its activations."""
        if owner.committed:
            return
        if self._replace_on_commit:
            self.reset()
        owner.committed = True
        self.num_passes += 1
        for name, rows in owner.staged:
            self._feed(self._measured[name], FORWARD, rows)
        owner.staged.clear()

    def _feed(self, layer: Layer, signal: str, tensor: Tensor) -> None:
        if not len(tensor):
            return
        for name, prototype in self.probes.items():
            if name in self._failed or signal not in prototype.signals:
                continue
            try:
                key = name, layer.name
                if key not in self._copies:
                    self._copies[key] = copy.deepcopy(prototype)
                    self._copies[key].reset()
                with torch.no_grad():
                    getattr(self._copies[key], signal)(tensor)
                self._fed[key] += 1
            except Exception as error:
                self._disable(name, error)

    def _disable(self, probe: str, error: Exception) -> None:
        if self.strict:
            raise error
        self._failed[probe] = f"the probe failed: {type(error).__name__}: {error}"
        warnings.warn(f"probe {probe!r} failed and is off from now on: {error!r}", RuntimeWarning, stacklevel=3)

    def _give_up(self, error: Exception) -> None:
        if self.strict:
            raise error
        self._error = f"the model could not be traced: {type(error).__name__}: {error}"
        warnings.warn(f"nothing is measured: {self._error}", RuntimeWarning, stacklevel=3)

    # -- results -------------------------------------------------------------------------------------------------------

    def read(self) -> Reading:
        """Return what was measured since the last :meth:`reset`; raise RuntimeError if nothing was."""
        if self._error or self.wiring is None or not self.num_passes:
            raise RuntimeError(f"no data: {self._error or self._why_nothing()}")
        layers = self.selected(self.wiring)
        results: dict[tuple[str, str], Tensor] = {}
        scores: dict[str, dict[str, Tensor]] = {n: {} for n, p in self.probes.items() if p.per_neuron}
        with torch.no_grad():
            for (name, layer), probe in self._copies.items():
                if name in self._failed:
                    continue
                try:
                    value = probe.compute()
                    parts = value if isinstance(value, dict) else {name: value}
                    results.update({(metric, layer): v for metric, v in parts.items()})
                    self._metric_names[name] = tuple(parts)
                    if probe.per_neuron:
                        scores[name][layer] = probe.scores().cpu()
                except Exception as error:
                    self._disable(name, error)
        values = self._tabulate(_to_host(results), layers)
        return Reading(
            values=values,
            scores={name: by_layer for name, by_layer in scores.items() if name not in self._failed},
            num_neurons={layer.name: layer.num_neurons for layer in layers},
            coverage=self._coverage(values),
            num_passes=self.num_passes,
        )

    def _tabulate(self, results: dict[tuple[str, str], float], layers: list[Layer]) -> dict[str, dict[str, float]]:
        """Arrange values by metric and layer, NaN where there is none, and add the value of the network."""
        values: dict[str, dict[str, float]] = {}
        for probe in self.probes:
            for metric in self._metrics(probe):
                found = {la.name: results.get((metric, la.name), torch.nan) for la in layers}
                measured = [la for la in layers if (probe, la.name) in self._fed]
                weights = [la.num_neurons if self.probes[probe].per_neuron else 1 for la in measured]
                total = sum(w * found[la.name] for w, la in zip(weights, measured, strict=True))
                values[metric] = {**found, ALL: total / sum(weights) if weights else torch.nan}
        return values

    def _metrics(self, probe: str) -> tuple[str, ...]:
        return self._metric_names.get(probe) or getattr(self.probes[probe], "metrics", (probe,))

    def coverage(self) -> list[Coverage]:
        """Return, for every weight layer and probe, whether there is a value and if not, why."""
        return self.read().coverage

    def _coverage(self, values: dict[str, dict[str, float]]) -> list[Coverage]:
        assert self.wiring is not None
        selected = {layer.name for layer in self.selected(self.wiring)}
        entries = []
        for layer in self.wiring.layers.values():
            for name, probe in self.probes.items():
                reason = self._why_not(layer, name, layer.name in selected)
                if not reason and any(v != v for v in (values[m][layer.name] for m in self._metrics(name))):
                    reason = probe.nan_reason
                entries.append(Coverage(layer.name, name, not reason, reason))
        return entries

    def _why_not(self, layer: Layer, probe: str, selected: bool) -> str:
        """Return why a probe has no data for a layer; empty if it has."""
        if layer.num_calls == 0:
            return "its forward was never called"
        if not selected:
            return "output layer" if layer.is_output and self.layers is None else "not selected"
        if probe in self._failed:
            return self._failed[probe]
        if (probe, layer.name) in self._fed:
            return ""
        signals = self.probes[probe].signals
        if signals & {FORWARD, POST} and not layer.sites:
            return "; ".join(layer.unresolved) or "its activations are out of every module's sight"
        if POST in signals and all(site.replay for site in layer.sites.values()):
            return "its activation is a tensor that no module sees"
        weight = layer.module._parameters.get("weight")
        if WEIGHT in signals and (weight is None or not weight.requires_grad):
            return "its weight is frozen" if weight is not None else "its weight is computed, not a parameter"
        return "no gradient reached it" if signals - {FORWARD} else "it was not called in the measured passes"

    def _why_nothing(self) -> str:
        if self._compiled:
            return "the compiled model runs without hooks; call the eager module, or use plasticity.measure(model, batch)"
        if self.passes == "training":
            return "no forward pass with gradients enabled was followed by a backward pass while attached"
        return f"{type(self.model).__name__} was not called while attached; monitor the module whose forward is called"


def _at(values: Any, key: int | str) -> Any:
    return values[key] if isinstance(values, (tuple, list)) and isinstance(key, int) and key < len(values) else None


def _precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision sums overflow and round."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _in_backward() -> bool:
    """Return whether a backward pass is running: activation checkpointing then recomputes what was already counted."""
    return torch._C._current_graph_task_id() != -1


def _to_host(results: dict[tuple[str, str], Tensor]) -> dict[tuple[str, str], float]:
    """Bring all results to the host with one copy per device."""
    by_device: defaultdict[torch.device, list[tuple[str, str]]] = defaultdict(list)
    for key, value in results.items():
        by_device[value.device].append(key)
    numbers: dict[tuple[str, str], float] = {}
    for keys in by_device.values():
        numbers.update(zip(keys, torch.stack([results[k].double() for k in keys]).tolist(), strict=True))
    return numbers
