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

from .compiled import Loss, Precision, Reads, compile_gradients
from .updates import gradient_step

Compile = Literal["auto", "on", "off"]

# Updates before "auto" compiles: about what compiling costs, so that a run that ends earlier never pays for it. Counted
# and not timed, so that runs are reproducible, also when they are resumed.
COMPILE_AFTER = 2_000
MAX_GRAPHS = 16  # a loop that replaces modules again and again would compile for ever


class Ride(Protocol):
    """Who observes a network through hooks, and can do so on a compiled graph: found as `hook.ride`."""

    model: nn.Module

    def key(self) -> Hashable | None:
        """Return what the graph depends on; None while it has yet to see an eager pass."""

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
        self.loss, self.networks, self.optimizers, self.name = loss, networks, optimizers, name
        self.max_norm, self.compile, self.precision = max_norm, compile, precision
        self._layout: Layout | None = None
        self._graphs: dict[Hashable, Graph] = {}

    def __call__(self, *inputs: Any, updates: int) -> dict[str, Tensor]:
        """Take the step and return the metrics.

        `inputs`: tensors, and dataclasses of tensors such as a batch, where None stays None. `updates`: of the agent so
        far, which decides when to compile.
        """
        if self.compile == "on" or (self.compile == "auto" and updates >= COMPILE_AFTER):
            graph = self._graph(inputs)
            if graph is not None:
                return graph.step(self.optimizers[self.name], inputs)
        loss, metrics = self.loss(*inputs)
        norm = gradient_step(self.optimizers[self.name], loss, self.max_norm)
        metrics = {name: value.detach() for name, value in metrics.items()}
        return metrics if norm is None else {**metrics, "grad_norm": norm}

    def _graph(self, inputs: Sequence[Any]) -> Graph | None:
        """The graph for what is there now; None where this step has to be eager."""
        networks = [network for mapping in self.networks for network in mapping.values()]
        if self._layout is None or not self._layout.holds(networks, self.optimizers[self.name]):
            self._layout = Layout(networks, self.optimizers[self.name])
            self._graphs.clear()
        rides = self._layout.rides()
        if rides is None:
            return None
        if any(ride.key() is None for ride in rides):
            self.loss(*inputs)  # they look at the networks once, and count no pass without a gradient
        key = (signature(inputs), *((id(ride), ride.key()) for ride in rides))
        if key not in self._graphs and (graph := self._compile(inputs, rides)) is not None:
            self._graphs[key] = graph
        return self._graphs.get(key)

    def _compile(self, inputs: Sequence[Any], rides: Sequence[Ride]) -> Graph | None:
        assert self._layout is not None
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's about itself: nothing that a user could do
                return Graph(self.loss, self._layout, inputs, self.max_norm, self.precision, rides)
        except Exception as error:
            if self.compile == "on":
                raise
            self.compile = "off"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"going on without compiled updates: {reason}", RuntimeWarning, stacklevel=4)
            return None


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
        self.trained = trained_by(optimizer)
        owned = {id(p) for p in self.trained}
        self.own = [network for network in networks if any(id(p) in owned for p in network.parameters())]
        hooks = (module.__dict__[name] for module in modules for name in MODULE_HOOKS)
        self.hooks = list({id(one): one for one in hooks}.values())
        self.all_parameters = list({id(p): p for network in networks for p in network.parameters()}.values())

    def holds(self, networks: Sequence[nn.Module], optimizer: Optimizer) -> bool:
        """Whether nothing has changed since."""
        return (
            len(networks) == len(self.networks)
            and all(a is b for a, b in zip(networks, self.networks, strict=True))
            and all(len(now) == n and all(map(is_same, now.values(), then)) for now, n, then in self.slots)
            and len(trained := trained_by(optimizer)) == len(self.trained)
            and all(map(is_same, trained, self.trained))
        )

    def rides(self) -> list[Ride] | None:
        """Who rides on the hooks of all modules, in order; None where some hook does not ride."""
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.all_parameters):
            return None
        if not any(self.hooks):
            return []
        found: dict[int, Ride] = {}
        for hook in (hook for hooks in self.hooks for hook in hooks.values()):
            ride = getattr(hook, "ride", None)
            if ride is None:
                return None
            found[id(ride)] = ride
        return list(found.values())


MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


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
        rides: Sequence[Ride],
    ) -> None:
        self.trained = layout.trained
        reads = Reads(lambda *tensors: loss(*filled(inputs, tensors)), layout.networks)
        with ExitStack() as stack:
            recordings = []
            for ride in rides:
                if any(ride.model is network for network in layout.own):
                    recordings.append((ride, *stack.enter_context(ride.recording())))
                else:  # this loss is not the one that trains its network
                    stack.enter_context(ride.paused())

            def seen() -> list[Tensor]:
                return [tensor for _, tensors, _ in recordings for tensor in tensors]

            self.call, self.tensors, self.names = compile_gradients(
                reads, self.trained, tensors_of(inputs), max_norm, precision, seen
            )
        self.aboard = [(ride, plan, len(tensors)) for ride, tensors, plan in recordings]
        self.on_cpu = inputs_device(inputs).type == "cpu"
        self.run(inputs)  # a graph changes nothing: what fails, fails here, where going on eagerly is still possible

    def run(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Return gradients, metrics and what riders see, for these inputs and the weights of now."""
        with torch.no_grad():
            outputs = self.call(*self.tensors, *tensors_of(inputs))
            # CUDA graphs write into the same memory every time: what is handed out has to be a copy.
            return list(outputs) if self.on_cpu else [output.clone() for output in outputs]

    def step(self, optimizer: Optimizer, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """Compute the gradients, let the optimizer step, and return the metrics."""
        outputs = iter(self.run(inputs))
        for parameter in self.trained:
            parameter.grad = next(outputs)
        metrics = {name: next(outputs) for name in self.names}
        for ride, plan, count in self.aboard:
            ride.deliver(plan, [next(outputs) for _ in range(count)])
        optimizer.step()
        return metrics


# --- inputs: tensors, and dataclasses of tensors or None ---


def tensors_of(inputs: Sequence[Any]) -> list[Tensor]:
    """Return all tensors in order, contiguous, as graphs expect them."""
    found: list[Tensor] = []
    for one in inputs:
        if isinstance(one, Tensor):
            found.append(one)
        else:
            found += [value for value in vars(one).values() if value is not None]
    return [tensor.contiguous() for tensor in found]


def inputs_device(inputs: Sequence[Any]) -> torch.device:
    """Return where the inputs are."""
    return tensors_of(inputs)[0].device


def signature(inputs: Sequence[Any]) -> Hashable:
    """Return what a graph depends on: which tensors there are, their shapes and types."""
    fields = (tuple(vars(one).items()) if not isinstance(one, Tensor) else (("", one),) for one in inputs)
    return tuple((name, x.shape, x.dtype) for one in fields for name, x in one if x is not None)


def filled(inputs: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Return what `inputs` look like with other `tensors` in them."""
    rest = iter(tensors)
    return [
        next(rest)
        if isinstance(one, Tensor)
        else type(one)(**{name: None if value is None else next(rest) for name, value in vars(one).items()})
        for one in inputs
    ]
