"""See activations and gradients of a running model.

A layer's neurons are read where the wiring found them (the output of an activation module, or the input of whatever
module receives them), so ``F.relu``, a shared ``nn.ReLU`` and in-place activations are all seen. A site holds where the
modules that run between the layer and it are those of a traced pass; a pass that goes another way is traced once more.
Gradients come from tensor hooks, because full backward hooks break on in-place operations. Hooks return nothing and
reduce what they see at once, so outputs, gradients and random states are the same bits with and without them.

A compiled gradient step runs the hooks once, while it traces the passes (:meth:`Observer.recording`); its graph then
computes what they saw along with the gradients, and hands it over (:meth:`Observer.deliver`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import note
from plasticity.isolation import map_tensors, named_modules
from plasticity.probes.probe import FORWARD, WEIGHT_GRADIENT
from plasticity.storage.randomness import random_state
from plasticity.structure.functional import FunctionCalls, Part, Taken, Value, Weights, shown
from plasticity.structure.labels import tensors_in
from plasticity.structure.layers import Layer
from plasticity.structure.sites import Event
from plasticity.structure.trace import is_empty
from plasticity.structure.wirings import Wiring

from .attachment import Attachment
from .entry_points import MOST_STACKS, calling_method, is_nested
from .gathering import Gathering
from .guide import Guide
from .hooks import Recording, in_backward, is_hidden
from .intake import Intake, undivided
from .passes import Kept, Mask, Pass, mask_for
from .sights import ACTIVATION, Sights, modules_at


class Observer:
    """Hand the activations and gradients of ``model`` to ``gathering``, layer by layer."""

    def __init__(
        self,
        model: nn.Module,
        gathering: Gathering,
        passes: Literal["all", "training"],
        owner: object | None,
        guide: Guide,
    ) -> None:
        self.model, self.gathering, self.passes, self.guide = model, gathering, passes, guide
        self.intake = Intake(gathering)
        self.owner = owner or self
        self.mask: Mask = None
        self.mask_error = ""
        """The error of a function that should have returned the mask of a pass."""
        self.calls: tuple[str, ...] = ()
        """Methods of the model that count as passes, beside ``forward``."""
        self.strays: dict[str, int] = {}
        """Methods that ran outside every pass, with how often."""
        self.stray_parts: list[str] = []
        """The parts of the model that ran outside every pass and every method, in order."""
        self._num_strays = 0
        self.was_hidden = False
        """True if a pass of the whole model ran where its values are wrapped."""
        self.is_paused = False
        self.share = 1.0
        """Share of the steps, in [0, 1], that are observed: decides whether a compiled graph of their own pays."""
        self.seconds = 0.0
        """Wall-clock time spent in hooks on modules and weights."""
        self._layers: list[Layer] = []
        self._wirings = 0
        self._hooks = Attachment(model)
        self._generation = 0
        self._pass: Pass | None = None
        self._depth = 0
        """Calls of the model within the pass now running."""
        self._latest: Pass | None = None
        self._sights: Sights | None = None
        self._modules: dict[Event, nn.Module] = {}
        self._with_parameters: list[nn.Module] = []
        self._functions: FunctionCalls | None = None
        self._places: frozenset[str] = frozenset()
        self._is_host = False
        """True if the model's own forward, or a method of it, takes up weights of layers."""
        self._hosts = 0
        """Modules now running in which functions take up weights of layers."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without hooks and passes, which stay with the original model."""
        return {**self.__dict__, "_pass": None, "_latest": None, "_functions": None}

    # -- life ----------------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """True if hooks are on the model."""
        return bool(self._hooks)

    def attach(self) -> None:
        """Put the hooks on the model; those on its layers follow when the wiring is known."""
        self._generation += 1
        self._measured: dict[str, Layer] = {}
        self._prepared: Hashable | None = None
        self._handled: BaseException | None = None
        """The exception that the caller of a pass is handling."""
        self._tried: set[tuple[tuple[Event, ...], bool]] = set()
        """The ways of passes for which a trace was tried, and whether with the random numbers of the pass."""
        self._depth = 0
        self._hooks.to_calls(self, self.calls)
        if found := self.guide.known():
            self.look_at(*found)
        else:
            self._hooks.to_strays(self)

    def detach(self) -> None:
        """Take every hook off."""
        self._generation += 1
        self._hooks.remove()
        self._pass = self._latest = None

    def look_at(self, wired: Wiring, layers: list[Layer]) -> None:
        """Hook each module that shows the layers, and those that tell the ways through the model apart."""
        self._wirings += any(a is not b for a, b in zip(layers, self._layers, strict=False))
        self._layers = layers
        self._measured = {layer.name: layer for layer in layers}
        self._prepared = (self._wirings, *self._measured, "probes", *self.gathering.working)
        modules = wired.modules or named_modules(self.model)
        known = self._sights is not None and self._sights.are_of(wired, layers, self.gathering.signals)
        if not known or not wired.modules:  # a wiring that names no modules may be of others now
            self._sights = Sights(wired, layers, self.gathering.signals)
            self._modules = modules_at(self._sights.hooked, modules)
            self._with_parameters = [m for m in self.model.modules() if len(m._parameters)]
        self.gathering.begin(layers)
        self._hooks.to_modules(self, self._modules)
        self._places = wired.places
        if wired.hosts:
            self._functions = FunctionCalls(Weights(modules), self.take, self.give)
            self._hooks.to_hosts(self, {name: modules[name] for name in sorted(wired.hosts) if name})
        self._is_host = "" in wired.hosts

    # -- riding on a compiled graph, as `GradientStep` of the agents asks for it ---------------------------------------

    @property
    def can_ride(self) -> bool:
        """True if a graph can compute what is measured: passes are told apart by their gradient, and have no mask."""
        return self.passes == "training" and self.mask is None

    def key(self) -> Hashable | None:
        """Return what is looked at, None while that is not known: before a pass of the model as it is now."""
        return None if self._hooks.restructured() else self._prepared

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Within, note what a traced forward and backward pass shows."""
        self.intake.recording = recording = Recording(self.intake.deliver, self.gathering.total_of)
        self._pass = self._latest = None
        try:
            yield recording
            self.intake.flush()
            recording.finish()
        finally:
            self._generation += 1  # hooks on traced tensors are done with
            self.intake.recording = self._pass = self._latest = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore every pass that runs within."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    # -- a pass --------------------------------------------------------------------------------------------------------

    def begin(self, method: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Open a pass of the whole model, if it is one that may count."""
        if module is not self.model:
            return
        if self._pass is not None:
            if is_nested(self.model):
                self._depth += 1
                return
            self._abandon()
        if self.passes == "training" and not torch.is_grad_enabled():
            return
        if is_hidden():
            self.was_hidden = True
            return
        repeated = in_backward()
        if repeated and self._latest is not None and not self._latest.repeated:
            return  # checkpointing computes again what was already seen
        if self._hooks.restructured() or (self.guide.wiring is not None and self.guide.wiring.resized):
            # Modules were replaced or resized: what was gathered, and where it is gathered, belongs to another network.
            self.detach()
            self.intake.reset()
            self.attach()
        self._handled = sys.exc_info()[1]
        if self._prepared is None:
            found = self.guide.prepare(method, args, kwargs)
            if found is None:
                return
            self.look_at(*found)
        if WEIGHT_GRADIENT in self.gathering.signals:
            self._hooks.to_weights(self, self._measured.values(), self.intake.recording)
        inputs = (args, kwargs) if self.intake.recording is not None else map_tensors((args, kwargs), torch.detach)
        parameters = (p for m in self._with_parameters for p in m._parameters.values())
        trained: list[Tensor] = [
            parameter for parameter in parameters if parameter is not None and parameter.requires_grad
        ]
        random = random_state() if self.guide.random else None
        try:
            mask = mask_for(self.mask, args, kwargs)
        except Exception as error:
            self._fail_mask(error)
            return
        self._pass = self._latest = Pass(method, inputs, mask, trained, repeated, random)
        if self._is_host:
            self.enter_host("", module, args)
        if method == "forward":
            self._happen(("", "input"), module, args, kwargs)

    def _abandon(self) -> None:
        """Forget a pass that was interrupted: what is no ``Exception`` leaves a module without its hooks being run."""
        self._pass = self._latest = None
        self._depth = 0
        if self._hosts and self._functions is not None:
            self._functions.__exit__(None, None, None)
        self._hosts = 0

    def end(self, method: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Close the pass; one that raised shows nothing."""
        if module is not self.model:
            return
        if self._depth:
            self._depth -= 1
            return
        owner, raised = self._pass, sys.exc_info()[1] not in (None, self._handled)
        if owner is not None and self._is_host:
            self.leave_host("", module, args, output)
        if raised:
            self._pass = self._latest = None
        elif owner is not None:
            if method == "forward":
                self._happen(("", "output"), module, output)
            self._learn(owner)
            if self.passes == "all" or owner.counted:
                self.intake.count(owner)
            if self.passes == "training":
                for tensor in tensors_in(output):
                    self._follow(tensor, owner, lambda gradient: None)
            owner.kept = self._pass = None
        elif self._prepared is None and not is_hidden() and (self.passes == "all" or torch.is_grad_enabled()):
            self.guide.give_up()

    def enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Look at the inputs of a module."""
        self._happen((name, "input"), module, args, kwargs)

    def leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """Look at the outputs of a module."""
        self._happen((name, "output"), module, output)

    def enter_host(self, name: str, module: nn.Module, args: tuple) -> None:
        """Begin to look at functions."""
        if self._functions is not None and (self._hosts or self._owner()[0] is not None):
            self._hosts += 1
            if self._hosts == 1:
                self._functions.__enter__()

    def leave_host(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        """End it."""
        if self._functions is not None and self._hosts:
            self._hosts -= 1
            if not self._hosts:
                self._functions.__exit__(None, None, None)

    def take(self, taken: Taken) -> None:
        """Look at what a function takes up, unless a layer's own forward calls it."""
        owner, again = self._owner()
        events = [] if owner is None else owner.again if again else owner.events
        self._outside = events[-1:] != [(taken.place, "input")]
        if taken.layers and taken.place in self._places and self._outside:
            self._occur((taken.place, "input"), taken.inputs)

    def give(self, taken: Taken, output: Tensor) -> None:
        """Look at what a function returns."""
        if taken.layers and taken.place in self._places and self._outside:
            self._occur((taken.place, "output"), taken.outputs(output))

    def _owner(self) -> tuple[Pass | None, bool]:
        """Return the pass that runs now, and whether a backward pass computes it again."""
        # A module that runs outside every pass is either checkpointed or none of ours.
        return self._pass or (self._latest if in_backward() else None), self._pass is None

    def _fail_mask(self, error: Exception) -> None:
        """Say once that the mask cannot be found; passes without it are not measured."""
        if self.guide.strict:
            note(error, "raised by the function that returns the mask")
            raise error
        if not self.mask_error:
            warnings.warn(
                f"passes whose mask cannot be found are not measured: {error!r}", RuntimeWarning, stacklevel=4
            )
        self.mask_error = repr(error)

    @property
    def cannot_read(self) -> bool:
        """Return whether what ran shows that nothing can be read, if no pass counted."""
        return bool(self.strays or self.stray_parts or self.mask_error or self.was_hidden)

    def note_stray(self, name: str, module: nn.Module, args: tuple) -> None:
        """Note the method in which a module runs outside every pass."""
        counts = self._pass is None and (self.passes == "all" or torch.is_grad_enabled()) and not in_backward()
        if not counts or is_hidden() or self._num_strays >= MOST_STACKS:
            return
        self._num_strays += 1
        if method := calling_method(self.model):
            self.strays[method] = self.strays.get(method, 0) + 1
        elif not any(f"{name}.".startswith(f"{part}.") for part in self.stray_parts):
            self.stray_parts.append(name)

    def weigh(self, name: str, gradient: Tensor) -> None:
        """Look at the gradient of a layer's weight."""
        self.intake.weigh(self._measured[name], gradient)

    def _happen(self, event: Event, module: nn.Module, values: Any, named: Mapping[Any, Any] | None = None) -> None:
        """Look at what goes into a module or comes out of it."""
        if module is not self._modules.get(event):
            return
        items: dict[Any, Any] = dict(enumerate(values)) if isinstance(values, (tuple, list)) else {0: values}
        if named:
            items.update(named)
        if not is_empty(items.values()):
            self._occur(event, items)

    def _occur(self, event: Event, items: Mapping[Any, Any]) -> None:
        """Note an event of the pass, and look at what it shows."""
        owner, again = self._owner()
        if owner is None:
            return
        assert self._sights is not None
        events = owner.again if again else owner.events
        step = (events[-1] if events else None, event)
        events.append(event)
        hidden = is_hidden()
        if not (again or hidden) and (owner.kept is not None or step not in self._sights.steps):
            self._keep(owner, items)
        for sight, born in self._sights.seen(events):
            if hidden:
                self.gathering.hidden.add(sight.layer.name)
                continue
            value = shown(items.get(sight.site.key))
            if sight.site.fits(value) and (arrive := self.intake.see(owner, sight, born, value, again)):
                self._follow(items[sight.site.key], owner, arrive)

    def _follow(self, value: Value, owner: Pass, arrive: Callable[[Tensor], None]) -> None:
        """Let the gradient of what was seen arrive."""
        generation = self._generation
        whole = value.whole if isinstance(value, Part) else undivided(value)
        index, shape = (value.index, None) if isinstance(value, Part) else (None, value.shape)

        def arrive_at(gradient: Tensor) -> None:  # keeps no tensor: it would keep the graph
            arrive(gradient[index] if shape is None else gradient.reshape(shape))

        self.intake.follow(whole, owner, arrive_at, lambda: generation == self._generation)

    # -- ways that are not known yet -----------------------------------------------------------------------------------

    def _keep(self, owner: Pass, items: Mapping[int | str, Any]) -> None:
        """Keep what is seen from the first step on that no traced pass took."""
        if self.intake.recording is not None:
            return
        position, owner.kept = len(owner.events) - 1, owner.kept or Kept()
        for key, value in items.items():
            if isinstance(tensor := shown(value), Tensor):
                owner.kept.tensors.append((position, key, tensor.detach().clone()))
                arrivals = owner.kept.arrivals[position, key] = []
                self._follow(value, owner, partial(_arrive_at, arrivals))

    def _learn(self, owner: Pass) -> None:
        """Trace a pass whose way was not known, and look at what was kept of it."""
        assert self._sights is not None
        way = tuple(owner.events), owner.random is not None
        if (owner.kept is None and self._is_complete(owner)) or way in self._tried or self.intake.recording is not None:
            return
        self._tried.add(way)
        hooked = self._sights.hooked
        found = self.guide.learn(owner, hooked)
        self.look_at(*found)
        if owner.kept is None:
            return
        sights = Sights(*found, self.gathering.signals, hooked)
        for position, key, value in owner.kept.tensors:
            for sight, born in sights.seen(owner.events[: position + 1]):
                fits = sight.site.key == key and sight.site.fits(value)
                if fits and (arrive := self.intake.see(owner, sight, born, value, again=False)):
                    owner.kept.arrivals[position, key].append(arrive)

    def _is_complete(self, owner: Pass) -> bool:
        """Return whether the activations of every call of a layer were seen, of layers that show them anywhere."""
        if FORWARD not in self.gathering.signals:
            return True
        ended = [name for name, side in owner.events if side == "output" and name in self._measured]
        seen = [name for kind, name, *_ in owner.lengths if kind == ACTIVATION]
        parts = sum(self._measured[name].rows is not None for name in seen if name in self._measured)
        return len(seen) - parts >= sum(bool(self._measured[name].sites) for name in ended)


def _arrive_at(arrivals: list[Callable[[Tensor], None]], gradient: Tensor) -> None:
    for arrive in arrivals:
        arrive(gradient)
