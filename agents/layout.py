"""The state of modules that compiled graphs are made for, and the observers that ride on them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Protocol

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer

from .attributes import Attributes
from .flat import Flat
from .native import items_of, places_of, values_are


class Ride(Protocol):
    """An observer of a network that works through hooks, or on a compiled graph: found as `hook.ride`.

    It sees the loss that trains its network. While another loss runs through the network, as an actor's does through
    critics, it is paused.
    """

    model: nn.Module | None
    share: float
    """Share of the steps, in [0, 1], that it observes: decides whether a graph of its own pays."""

    def key(self) -> Hashable | None:
        """Return a key of what is observed, valid while hooks and modules stay; None before an eager pass."""

    def recording(self) -> AbstractContextManager[Any]:
        """Within, record what hooks see in a traced pass.

        `tensors()` of the result, the plan, returns what a graph is to compute, from the end of that pass on, and
        `deliver(tensors)` takes it in, once for every step. Before, the graph adds `sums()` to `totals()` in place.
        """

    def paused(self) -> AbstractContextManager[None]:
        """Within, ignore all passes."""


def modules_of(networks: Iterable[nn.Module]) -> list[nn.Module]:
    """Return all modules of networks; TypeError for those of TorchScript, whose state is not Python's."""
    modules = [module for network in networks for module in network.modules()]
    if scripted := [module.original_name for module in modules if isinstance(module, ScriptModule)]:
        raise TypeError(f"agents need modules of Python, got TorchScript's {scripted[0]}: give what it was made of")
    return modules


class Held:
    """The modules, parameters and buffers of networks, to notice what is replaced."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.modules = modules_of(networks)
        self.slots = [s for m in self.modules for s in (m._modules, m._parameters, m._buffers) if s]
        self._networks, self._objects = list(networks), [*chain.from_iterable(map(dict.values, self.slots))]
        self.tensors = [one for one in self._objects if isinstance(one, Tensor)]

    def holds(self, networks: Sequence[nn.Module]) -> bool:
        """Return whether nothing was replaced."""
        return (
            len(networks) == len(self._networks)
            and all(map(is_, networks, self._networks))
            and values_are(self.slots, self._objects)
        )


class Layout:
    """The modules and tensors that graphs are made for, the trained ones among them, and the places of hooks."""

    def __init__(self, networks: Sequence[nn.Module], optimizer: Optimizer) -> None:
        self.networks, self._held = list(networks), Held(networks)
        self.modules = [vars(module) for module in self._held.modules]
        self.slots = self._held.slots
        self._ways = ways_of(self.modules)
        self.attributes = Attributes(self._held.modules)
        self.trained = trained_by(optimizer)
        self._trained = [*map(id, self.trained)]
        self._flat: Flat | None = None
        self._places, self._forms = None, ()
        owned = {id(p) for p in self.trained}
        self._owned, self._hooks, self._rides = owned, list[Any](), Rides([], [], True)
        self.hooks = list({id(one): one for one in hooks_of(self.modules, MODULE_HOOKS)}.values())
        self.all_parameters = list({id(p): p for network in networks for p in network.parameters()}.values())

    def holds(self, networks: Sequence[nn.Module], optimizer: Optimizer) -> bool:
        """Return whether nothing has changed since."""
        return (
            self._held.holds(networks)
            and ways_of(self.modules) == self._ways
            and [*map(id, trained_by(optimizer))] == self._trained
        )

    @property
    def flat(self) -> Flat:
        """The trained parameters as one vector; made anew where one of them was given other memory."""
        if self._flat is None or not self._flat.holds():
            self._flat = Flat(self.trained)
        return self._flat

    @property
    def forms(self) -> Hashable:
        """The shapes, strides and types of all tensors, which graphs are made for; looked up where one has moved."""
        if (places := places_of(self._held.tensors)) != self._places:
            self._places, self._forms = places, tuple((t.shape, t.stride(), t.dtype) for t in self._held.tensors)
        return self._forms

    def rides(self) -> Rides:
        """Return the observers behind the hooks of all modules and weights."""
        hooks = [hook for hooks in self.hooks if hooks for hook in hooks.values()]
        for p in self.all_parameters:
            if p._backward_hooks:
                hooks += p._backward_hooks.values()
            if p._post_accumulate_grad_hooks:
                hooks += p._post_accumulate_grad_hooks.values()
        if hooks != self._hooks or self._rides.key is None:
            self._hooks, self._rides = hooks, self._find(hooks)
        return self._rides

    def _find(self, hooks: Sequence[Any]) -> Rides:
        rides = [getattr(hook, "ride", None) for hook in hooks]
        found = {id(ride): ride for ride in rides if ride is not None}
        aboard, others = [], []
        for ride in found.values():
            parameters = () if ride.model is None else ride.model.parameters()
            (aboard if any(id(p) in self._owned for p in parameters) else others).append(ride)
        return Rides(aboard, others, all(ride is not None for ride in rides))


class Snapshot:
    """The objects that a step was prepared for, to find out by one comparison whether all are in place.

    These are the attributes of modules, parameters, buffers, modes and hooks among them, hooks of what is trained, the
    values of dicts and the items of lists in `parts`, and what `more()` returns.
    """

    def __init__(self, layout: Layout, parts: Sequence[Any], more: Callable[[], list[Any]]) -> None:
        self._trained, self._more = layout.trained, more
        self._parts = [*layout.modules, *layout.slots, *layout.hooks, *parts]
        self._values = items_of(self._parts + self._now())

    def holds(self) -> bool:
        """Return whether nothing was replaced, added or taken away."""
        return values_are(self._parts + self._now(), self._values)

    def _now(self) -> list[Any]:
        """Return what has to be looked up anew every time, the hooks of what is trained among it."""
        hooks = chain(map(BACKWARD_HOOKS, self._trained), map(AFTER_HOOKS, self._trained))
        return [*filter(None, hooks), self._more()]


BACKWARD_HOOKS, AFTER_HOOKS = attrgetter("_backward_hooks"), attrgetter("_post_accumulate_grad_hooks")


class Rides:
    """The observers behind the hooks of all modules and weights, in order.

    `aboard`: those of networks that the step trains. `others`: of networks that it only reads; they are paused.
    `all_ride`: whether there are no hooks besides.
    """

    def __init__(self, aboard: list[Ride], others: list[Ride], all_ride: bool) -> None:
        self.aboard, self.others, self.all_ride = aboard, others, all_ride
        self.share = min((ride.share for ride in aboard), default=1.0)
        """Bound of the share of steps in which all of them observe."""
        keys = [(id(ride), ride.key()) for ride in aboard]
        self.key = None if any(key is None for _, key in keys) else tuple(keys)

    def without(self) -> Rides:
        """Return the same with nobody aboard: all are paused."""
        return Rides([], [*self.aboard, *self.others], self.all_ride)


MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def hooks_of(modules: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[Any]:
    """Return the dicts of hooks of some kinds: those on all modules there are, and of each module, from its `vars`."""
    shared = [vars(torch_module)[f"_global{kind}"] for kind in kinds]
    return [*shared, *(module[kind] for module in modules for kind in kinds)]


def ways_of(modules: Sequence[Mapping[str, Any]]) -> list[tuple[bool, Any]]:
    """Return the mode of modules and a `forward` of their own, from their `vars`: both decide how they compute."""
    return [(module.get("training"), module.get("forward")) for module in modules]


def trained_by(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters that a step moves: those that nobody froze."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
