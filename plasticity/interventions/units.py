"""The bases of methods on single neurons: what they see and remember of each, and how they recycle some of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules, unwrap
from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.structure.functional import sliced_parameters
from plasticity.structure.layers import weight_parameter, weight_rows
from plasticity.structure.partners import completed
from plasticity.structure.recycled import note_recycled
from plasticity.structure.slices import Slice
from plasticity.structure.wirings import Wiring
from plasticity.surgery.initialisers import Initialiser, default_initialiser, weight_layers
from plasticity.surgery.optimizer_state import state_refusal
from plasticity.surgery.origin import Origins, original_names
from plasticity.surgery.permission import refusals
from plasticity.surgery.recycle import recycle_
from plasticity.surgery.stores import store_of
from plasticity.value_types import require

from .intervention import Listener, numbers_in
from .published import published
from .trigger import beyond
from .watches import Watches

Units = dict[str, Tensor]
"""Name -> what is known of a layer's neurons: the last axis of every tensor are the neurons, float64 on the host."""


@dataclass
class UnitMethod(Watches):
    """Watch neurons on the training passes, after every step of the optimizer or after those that are due.

    A subclass names probes, and :meth:`take` gets their scores. What it remembers of neurons between steps stands in
    :attr:`units`, which is saved, and begins anew with neurons that are replaced, by this method or another. Compiled
    updates go on; probes that are sums (``MomentsProbe``) cost them least.
    """

    KEPT: ClassVar[frozenset[str]] = frozenset()
    """Names in :attr:`units` that outlast a neuron."""
    FRESH: ClassVar[Mapping[str, float]] = {}
    """Name in :attr:`units` -> its value for a new neuron, where that is not 0."""

    preset: Literal["paper", "official"] = "paper"
    """Defaults of the options that are None: as the paper says, or as the authors' code does."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to act on; empty for all."""
    init: Literal["own", "he_uniform", "he_normal", "xavier_uniform", "lecun_normal"] | None = None
    """Distribution of redrawn incoming weights: the layer's own initialiser, or one of released code."""
    start: int = 0
    """First gradient step at which to act."""
    stop: int | None = None
    """Last gradient step at which to act; None for no end."""
    seed: int = 0
    """Seed of the redraws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = 0 <= self.start <= (math.inf if self.stop is None else self.stop)
        require(type(self).__name__, {"0 <= start <= stop": ends}, self)
        self._origins = Origins()
        self.units: dict[str, dict[str, Units]] = {}
        """Network -> layer -> what is known of its neurons."""

    def probes(self) -> dict[str, Probe]:
        """Return name -> probe: the signals that the method looks at."""
        raise NotImplementedError

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Take in the scores of one network after gradient step ``step``, and act."""
        raise NotImplementedError

    def due(self) -> Callable[[str, int], bool] | None:
        """Return the function of (network, step) that says whether a step is looked at; None for every step."""
        return None

    def on_train_start(self, ctx: Context) -> None:
        """Remember how the layers were initialised and start to watch; ValueError for networks without layers."""
        chosen = self.choose(ctx, self.networks)
        ctx.require("optimizers", type(self).__name__)
        self._ctx, self._networks = ctx, chosen
        self._optimizers = list(ctx.optimizers.values())
        self._require_layers()
        self._origins = Origins.of({name: unwrap(network) for name, network in chosen.items()})
        self.units = {name: {} for name in chosen}
        self.hook(Listener(ctx.on_redraw, self._forget))
        self.watch(ctx, self.probes(), self._take, self.due())

    def _forget(self, entries: Mapping[Tensor, Tensor]) -> None:
        """Begin anew with what is known of neurons whose incoming weights were all replaced."""
        for network, layers in self.units.items():
            modules = named_modules(unwrap(self._networks[network]))
            if wired := self.monitor(network).wiring:
                modules |= {name: la.module for name, la in wired.layers.items() if isinstance(la.module, Slice)}
            for layer in layers.keys() & modules.keys():
                store = store_of(modules[layer], "weight")
                if store is None or store.parameter not in entries:
                    continue
                neurons = weight_rows(modules[layer], store.of(entries[store.parameter])).all(1).cpu()
                for name, known in layers[layer].items():
                    if name not in self.KEPT and known.shape[-1] == len(neurons):
                        known[..., neurons] = self.FRESH.get(name, 0.0)

    def _take(self, network: str, reading: Reading, step: int) -> None:
        if step >= self.start and (self.stop is None or step <= self.stop):
            self.take(network, reading, step)

    def earliest(self) -> int:
        """Return the first gradient step after which it can act."""
        return max(self.start, 1)

    def idle(self) -> str:
        """Return why it has never acted, where its first step lies beyond the end."""
        first, steps = self.earliest(), 0 if self._watcher is None else max(self._watcher.steps(), default=0)
        return beyond(first, "gradient steps") if first > steps else ""

    def parameters_added(self) -> int:
        """Return how many numbers are known of neurons."""
        return numbers_in(self.units)

    def wired(self, network: str) -> Wiring:
        """Return how the layers of a network feed each other, as its passes showed it."""
        return cast(Wiring, self.monitor(network).wiring)

    def _require_layers(self) -> None:
        for name, network in self._networks.items():
            if next(weight_layers(network), None) is None and not sliced_parameters(named_modules(unwrap(network))):
                kind = type(unwrap(network)).__name__
                raise ValueError(f"{type(self).__name__}: {name} ({kind}) has no Linear or convolution to recycle")

    def initialiser(self, network: str, layer: str, module: nn.Module) -> Initialiser:
        """Return what a layer's neurons are redrawn from.

        A layer that took the place of another, as the new head of a plasticity injection, begins as that one did; any
        other that was not there when training began, as its own ``reset_parameters`` would have it.
        """
        if self.init not in (None, "own"):
            return published(module, cast(str, self.init))
        if isinstance(module, Slice):
            return self._origins[network].initialiser_of_slice(layer, module)
        origin, name = self._origins[network], f"{layer}.weight".removeprefix(".")
        laws, name = origin.laws, original_names(unwrap(self._networks[network]), origin, [name])[name]
        if name not in laws:
            return default_initialiser(module)
        return Initialiser(module, laws[name], laws.get(f"{name.removesuffix('weight')}bias"))

    def state_dict(self) -> dict[str, Any]:
        """Return counters, generator, clocks, how the layers were initialised, and what is known of the neurons."""
        if self._watcher is None:  # never started
            return super().state_dict()
        known = {net: {layer: dict(units) for layer, units in layers.items()} for net, layers in self.units.items()}
        return {
            **super().state_dict(),
            "watcher": self._watcher.state_dict(),
            "origins": self._origins.state_dict(),
            "units": known,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        if self._watcher is None or "watcher" not in state:
            return  # of a method that was never started
        self._origins.load_state_dict(state["origins"])
        self._watcher.load_state_dict(state["watcher"])
        for network, layers in state.get("units", {}).items():
            self.units[network] = {layer: dict(units) for layer, units in layers.items()}


@dataclass
class UnitRecycling(UnitMethod):
    """A method on neurons that recycles some of them: fresh weights in, nothing out, no memory in the optimizer."""

    outgoing: Literal["zero", "keep", "small"] | None = None
    """Treatment of a recycled neuron's outgoing weights; small: random, 0.02 of the live columns' norm, so that the
    neuron gets a gradient at once."""
    moments: bool | None = None
    """Clear the optimizer's state of the affected weights."""
    adam_step: Literal["keep", "zero"] | None = None
    """Reset the step counter of the affected tensors, which also scales the step of their other weights."""
    norms: bool | None = None
    """Let norm-layer entries go back to gain 1 and bias 0 with their neuron."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._recycled: dict[str, dict[str, list[int]]] = {}
        """Network -> layer -> neurons of the last application."""
        self._skipped: set[tuple[str, ...]] = set()
        self.left_alone: set[tuple[str, str]] = set()
        """Network and layer of what cannot be recycled, where a method looks at every step."""

    def on_train_start(self, ctx: Context) -> None:
        """Start to watch; ValueError for optimizers whose state cannot be cut."""
        super().on_train_start(ctx)
        self._require_clearable()

    def _require_clearable(self) -> None:
        for name, network in self._networks.items() if self.moments else ():
            weights = {layer: module._parameters.get("weight") for layer, module in weight_layers(network)}
            for layer, weight in {**weights, **sliced_parameters(named_modules(unwrap(network)))}.items():
                if weight is not None and (reason := state_refusal(self._optimizers, weight)):
                    raise ValueError(f"{type(self).__name__}: {name}.{layer}: {reason}; moments=False leaves it alone")

    def before_recycling(self, network: str, masks: Mapping[str, Tensor]) -> None:
        """Run before the flagged neurons are redrawn, with their old weights still in place."""

    def recycle(
        self, network: str, masks: Mapping[str, Tensor], also: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, list[int]], float]:
        """Recycle the flagged neurons, and return them with the function change.

        ``masks``: as :meth:`permitted` returns them; ``also``: a further edit, measured with it.
        """

        def change() -> dict[str, list[int]]:
            self.before_recycling(network, masks)
            done = self._recycle_(network, masks)
            also()
            self._ctx.edited()
            return done

        recycled, moved = self.alter(self._ctx, network, change)
        self._recycled[network] = dict(recycled) or self._recycled.get(network, {})
        note_recycled(unwrap(self._networks[network]), self.NAME, self._recycled[network])
        return recycled, moved

    def permitted(self, network: str, flagged: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the masks of whole units that can be recycled; the reason of a refusal is an event, once."""
        wired, masks = self.wired(network), {}
        for layer, mask in flagged.items():
            if not mask.any():
                continue
            reason = refusals(wired, layer, self.outgoing or "zero") or self._consumed_elsewhere(network, wired, layer)
            if reason is None:
                masks[layer] = mask
            else:
                self._skip(network, layer, reason)
        return completed(wired, masks)

    def _consumed_elsewhere(self, network: str, wired: Wiring, layer: str) -> str | None:
        """Say which other network holds the layer too: its consumers there were not seen, and would not be cut."""
        if self.outgoing == "keep":
            return None
        weight, parts = weight_parameter(wired.layers[layer].module), set(wired.modules.values())
        for name, other in self._ctx.networks.items():
            outside = name != network and unwrap(other) not in parts
            if outside and any(p is weight for p in other.parameters()):
                return f'{layer} is also part of {name}, where it may feed other layers; outgoing="keep" can be done'
        return None

    def _skip(self, network: str, layer: str, reason: str) -> None:
        if (network, layer, reason) not in self._skipped:
            self._skipped.add((network, layer, reason))
            details = {"network": network, "layer": layer or "all", "reason": reason}
            self._ctx.event(f"{self.NAME}_skipped", details)

    def _recycle_(self, network: str, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
        wired = self.wired(network)
        return recycle_(
            wired,
            masks,
            self._optimizers,
            initialisers={name: self.initialiser(network, name, wired.layers[name].module) for name in masks},
            generator=self.generator,
            outgoing=self.outgoing or "zero",
            moments=bool(self.moments),
            step=self.adam_step or "keep",
            norms=bool(self.norms),
            connections=self._ctx.connections,
            announce=self._ctx.redrawn,
        )

    def tell(
        self, network: str, step: int, recycled: Mapping[str, list[int]], moved: float, details: Mapping[str, Any]
    ) -> None:
        """Log an application: its numbers, and the event."""
        self.log_numbers(network, recycled)
        self.log_event(network, step, recycled, moved, details)

    def log_numbers(
        self, network: str, recycled: Mapping[str, list[int]], more: Mapping[str, float] | None = None
    ) -> None:
        """Log how many neurons were recycled, and ``more`` numbers by name."""
        values = {"recycled": float(sum(map(len, recycled.values()))), **(more or {})}
        self.log(self._ctx, {f"{network}/{name}": value for name, value in values.items()})

    def log_event(
        self, network: str, step: int, recycled: Mapping[str, list[int]], moved: float, details: Mapping[str, Any]
    ) -> None:
        """Log which neurons of which layer were recycled, and the counters."""
        told = {"network": network, "gradient_step": step, "neurons": dict(recycled), **details}
        number = sum(map(len, recycled.values()))
        self.report(self._ctx, {**told, "function_change": moved}, recycled=number, applications=1)

    def state_dict(self) -> dict[str, Any]:
        """Return what the base does, the neurons of the last application, and refusals that were told."""
        if self._watcher is None:
            return super().state_dict()
        recycled = {name: dict(layers) for name, layers in self._recycled.items()}
        told = {"skipped": sorted(self._skipped), "left_alone": sorted(self.left_alone)}
        return {**super().state_dict(), "recycled": recycled, **told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._recycled = {name: dict(layers) for name, layers in state.get("recycled", {}).items()}
        for name, layers in self._recycled.items():
            note_recycled(unwrap(self._networks[name]), self.NAME, layers)
        self._skipped = {tuple(entry) for entry in state.get("skipped", ())}
        self.left_alone = {(network, layer) for network, layer in state.get("left_alone", ())}
