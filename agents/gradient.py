"""One gradient step of an optimizer on a loss: eagerly, or with a compiled graph for the loss and its gradients.

Only the gradients are compiled. Modules, parameters, `.grad` and the optimizer are what they are without, and the step
is the optimizer's own, so its state, its hooks and edits of weights work as ever. What a graph cannot know of makes
that one step eager (a hook on a module or a weight) or the graph new (modules replaced, weights frozen, other shapes).
A hook that can ride on a graph says so (`Ride`); then the graph hands it what it would have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import adam
from .compiled import Loss, Precision, Reads, bf16_is_emulated, compile_gradients
from .inputs import filled, signature, tensors_of
from .updates import gradient_step

Compile = Literal["auto", "on", "off"]

# Updates before "auto" compiles: about what compiling costs, so that a run that ends earlier never pays for it. Counted
# and not timed, so that runs are reproducible, also when they are resumed.
COMPILE_AFTER = 2_000
SLOW_BF16 = "precision 'bf16' is slower than 'float32' on this processor, which has no units for bfloat16"
MAX_GRAPHS = 16  # a loop that replaces modules again and again would compile for ever


class Ride(Protocol):
    """Who observes a network through hooks, and can do so on a compiled graph: found as `hook.ride`.

    It sees the loss that trains its network. While another loss runs through the network, as an actor's does through
    critics, it is paused.
    """

    model: nn.Module | None

    def key(self) -> Hashable | None:
        """Return what the graph depends on, which holds while hooks and modules stay; None before an eager pass."""

    def recording(self) -> AbstractContextManager[tuple[list[Tensor], Any]]:
        """Within, keep what hooks see of a traced pass as tensors and a plan, instead of taking it in."""

    def paused(self) -> AbstractContextManager[None]:
        """Within, see nothing."""

    def deliver(self, plan: Any, tensors: Sequence[Tensor]) -> None:
        """Take in what a graph computed for the plan."""


class GradientStep:
    """Steps `optimizers[name]` on `loss(*inputs)`; `networks`: mappings of all networks that the loss reads.

    The mappings are looked at in every step: what is put in place of an optimizer or a network is used from then on.
    """

    def __init__(
        self,
        loss: Loss,
        networks: Sequence[Mapping[str, nn.Module]],
        optimizers: Mapping[str, Optimizer],
        name: str,
        *,
        max_norm: float | None = None,
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision is 'float32' or 'bf16', got {precision!r}")
        if compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is 'auto', 'on' or 'off', got {compile!r}")
        if precision == "bf16" and compile == "off":
            raise ValueError("precision 'bf16' is of compiled updates: leave compile at 'auto', or 'on'")
        self.loss, self.networks, self.optimizers, self.name = loss, networks, optimizers, name
        self.max_norm, self.compile, self.precision = max_norm, compile, precision
        self._layout: Layout | None = None
        self._graphs: dict[Hashable, Graph] = {}
        self._takes_riders = True

    def __call__(self, *inputs: Any, updates: int) -> dict[str, Tensor]:
        """Take the step and return the metrics.

        `inputs`: tensors, and dataclasses of tensors such as a batch, where None stays None. `updates`: of the agent so
        far, which decides when to compile.
        """
        layout = self._look()
        rides = layout.rides()
        if rides.all_ride and (self.compile == "on" or (self.compile == "auto" and updates >= COMPILE_AFTER)):
            graph = self._graph(layout, inputs, rides)
            if graph is not None:
                return graph.step(self.optimizers[self.name], inputs)
        with ExitStack() as stack:
            for ride in rides.others:
                stack.enter_context(ride.paused())
            loss, metrics = self.loss(*inputs)
        norm = gradient_step(self.optimizers[self.name], loss, self.max_norm)
        metrics = {name: value.detach() for name, value in metrics.items()}
        return metrics if norm is None else {**metrics, "grad_norm": norm}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layout": None, "_graphs": {}}  # a copy has networks of its own

    def _look(self) -> Layout:
        """What there is now."""
        networks = [network for mapping in self.networks for network in mapping.values()]
        if self._layout is None or not self._layout.holds(networks, self.optimizers[self.name]):
            self._layout = Layout(networks, self.optimizers[self.name])
            self._graphs.clear()
            self.optimizers[self.name].zero_grad()  # graphs leave old gradients of a frozen weight alone, Adam does not
        return self._layout

    def _graph(self, layout: Layout, inputs: Sequence[Any], rides: Rides) -> Graph | None:
        """The graph for what is there now; None where this step has to be eager."""
        if rides.aboard and not self._takes_riders:
            return None
        if rides.key is None:
            self.loss(*inputs)  # they look at the networks once, and count no pass without a gradient
            rides = layout.rides()
            if rides.key is None:
                return None
        key = (signature(inputs), rides.key)
        if key not in self._graphs and (graph := self._compile(layout, inputs, rides)) is not None:
            self._graphs[key] = graph
        return self._graphs.get(key)

    def _compile(self, layout: Layout, inputs: Sequence[Any], rides: Rides) -> Graph | None:
        if self.precision == "bf16" and layout.trained[0].device.type == "cpu" and bf16_is_emulated():
            warnings.warn(SLOW_BF16, RuntimeWarning, stacklevel=5)
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's about itself: nothing that a user could do
                return Graph(self.loss, layout, inputs, self.max_norm, self.precision, rides)
        except Exception as error:
            if rides.aboard:
                self._takes_riders = False
                warn("going on without compiling the updates that are measured", error)
                return None
            if self.compile == "on":
                raise
            self.compile = "off"
            warn("going on without compiled updates", error)
            return None


def warn(what: str, error: Exception) -> None:
    """Warn, with the first line of the reason."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(f"{what}: {reason}", RuntimeWarning, stacklevel=5)


class Layout:
    """What graphs are made for: the modules, their tensors, which of them are trained, and where hooks would be."""

    def __init__(self, networks: Sequence[nn.Module], optimizer: Optimizer) -> None:
        self.networks = list(networks)
        modules = [module for network in networks for module in network.modules()]
        self.slots = [
            (slots, len(slots), list(slots.values()))
            for module in modules
            for slots in (module._modules, module._parameters, module._buffers)
            if slots
        ]
        self.ways = [(vars(module), way_of(vars(module))) for module in modules]
        self.trained = trained_by(optimizer)
        owned = {id(p) for p in self.trained}
        self._owned, self._hooks, self._rides = owned, list[Any](), Rides([], [], True)
        hooks = (module.__dict__[name] for module in modules for name in MODULE_HOOKS)
        self.hooks = list({id(one): one for one in hooks}.values())
        self.all_parameters = list({id(p): p for network in networks for p in network.parameters()}.values())

    def holds(self, networks: Sequence[nn.Module], optimizer: Optimizer) -> bool:
        """Whether nothing has changed since."""
        return (
            len(networks) == len(self.networks)
            and all(a is b for a, b in zip(networks, self.networks, strict=True))
            and all(len(now) == n and all(map(is_same, now.values(), then)) for now, n, then in self.slots)
            and all(way_of(module) == then for module, then in self.ways)
            and len(trained := trained_by(optimizer)) == len(self.trained)
            and all(map(is_same, trained, self.trained))
        )

    def rides(self) -> Rides:
        """Who rides on the hooks of all modules and weights."""
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
        found = {id(ride): ride for hook in hooks if (ride := getattr(hook, "ride", None)) is not None}
        aboard, others = [], []
        for ride in found.values():
            parameters = () if ride.model is None else ride.model.parameters()
            (aboard if any(id(p) in self._owned for p in parameters) else others).append(ride)
        return Rides(aboard, others, all(getattr(hook, "ride", None) is not None for hook in hooks))


class Rides:
    """Who rides on the hooks of all modules and weights, in order."""

    def __init__(self, aboard: list[Ride], others: list[Ride], all_ride: bool) -> None:
        self.aboard, self.others, self.all_ride = aboard, others, all_ride
        """Those who observe what the step trains, the others, and whether there are no other hooks."""
        keys = [(id(ride), ride.key()) for ride in aboard]
        self.key = None if any(key is None for _, key in keys) else tuple(keys)


MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def way_of(module: Mapping[str, Any]) -> tuple[bool, Any]:
    """Return what decides how a module computes, of what is in its `vars`: its mode, and a `forward` of its own.

    Other attributes, such as a slope, are constants of a graph: whoever changes one puts a new module in place.
    """
    return module["training"], module.get("forward")


def trained_by(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters that a step moves: those that nobody froze."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def is_same(a: Any, b: Any) -> bool:
    """Return whether both are one object."""
    return a is b


class Graph:
    """A compiled loss with its gradients, for one layout, one set of shapes and those who ride."""

    def __init__(
        self,
        loss: Loss,
        layout: Layout,
        inputs: Sequence[Any],
        max_norm: float | None,
        precision: Precision,
        rides: Rides,
    ) -> None:
        self.trained = layout.trained
        given: list[Tensor] = []

        def traced(*tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            given[:] = tensors
            return loss(*filled(inputs, tensors))

        reads = Reads(traced, layout.networks)
        with ExitStack() as stack:
            for ride in rides.others:
                stack.enter_context(ride.paused())
            recordings = [(ride, *stack.enter_context(ride.recording())) for ride in rides.aboard]

            def seen() -> list[Tensor]:
                known = set(map(id, given))  # what is an input need not be an output
                return [t for _, tensors, _ in recordings for t in tensors if id(t) not in known]

            self.call, self.tensors, self.names = compile_gradients(
                reads, self.trained, tensors_of(inputs), max_norm, precision, seen
            )
        first = len(self.trained) + len(self.names)
        outputs = {id(tensor): first + i for i, tensor in enumerate(seen())}
        places = outputs | {id(tensor): first + len(outputs) + i for i, tensor in enumerate(given)}
        self.aboard = [(ride, plan, [places[id(t)] for t in tensors]) for ride, tensors, plan in recordings]
        self.on_cpu = tensors_of(inputs)[0].device.type == "cpu"
        # A graph changes nothing: what fails, fails here, where going on eagerly is still possible.
        self.run(tensors_of(inputs))

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return gradients, metrics and what riders see, for these inputs and the weights of now."""
        with torch.no_grad():
            outputs = self.call(*self.tensors, *inputs)
            # CUDA graphs write into the same memory every time: what is handed out has to be a copy.
            return list(outputs) if self.on_cpu else [output.clone() for output in outputs]

    def step(self, optimizer: Optimizer, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """Compute the gradients, let the optimizer step, and return the metrics."""
        tensors = tensors_of(inputs)
        outputs = self.run(tensors)
        for parameter, gradient in zip(self.trained, outputs, strict=False):
            parameter.grad = gradient
        metrics = dict(zip(self.names, outputs[len(self.trained) :], strict=False))
        if self.aboard:
            outputs += tensors
            for ride, plan, places in self.aboard:
                ride.deliver(plan, [outputs[i] for i in places])
        adam.step(optimizer, self.trained)
        return metrics
