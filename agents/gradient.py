"""One gradient step of an optimizer on a loss: eagerly, or as one compiled graph.

The graph gathers the batch and has the loss with its terms, gradients, clipping and a plain Adam; another optimizer, or
hooks before its step, leave that to `optimizer.step()`. Modules, parameters, `.grad` and the optimizer's state are what
they are without, so hooks after the step and edits of weights work as ever. What a graph cannot know of makes that one
step eager (a hook on a module or a weight) or the graph new (modules replaced, weights frozen, other shapes, another
loss, term, limit or precision). An observer whose hooks can ride on a graph (`layout.Ride`) gets from it what they
would have seen, where that pays; otherwise it watches an eager pass whose gradients are not used.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import adam, native
from .aside import untouched
from .attributes import Attributes
from .compiled import Loss
from .constants import objects_read, reader_of
from .graph import Graph
from .inputs import Inputs, gathered
from .layout import Layout, Rides, Snapshot, modules_of
from .objective import Objective, Split, blamed
from .products import Precision, bf16_is_emulated
from .terms import LossTerm, Projection, Term, as_term
from .updates import gradient_step

Compile = Literal["auto", "on", "off"]

# Updates before "auto" compiles: about what compiling costs, so that a run that ends earlier never pays for it. Counted
# and not timed, so that runs are reproducible, also when they are resumed. A graph with probes is worth as much for
# each update that is measured: it is compiled once `share of measured updates * updates` is as large.
COMPILE_AFTER = 2_000
SLOW_BF16 = "precision 'bf16' is slower than 'float32' on this processor, which has no units for bfloat16"
IS_TRAINED = attrgetter("requires_grad")
MAX_GRAPHS = 16  # of one layout
COMPILING = threading.Lock()  # torch traces one function at a time
CHANGING = (
    f"its inputs, or numbers that its loss, terms or modules read, were different {MAX_GRAPHS} times: a number that "
    "changes has to be a tensor of no dimensions"
)
BY_TORCH = "updates are compiled here, so a network that torch.compile wraps cannot be part of them: give what it wraps"
OF_ITS_OWN = (
    "the forward of a module changes what it reads from its attribute {}, which no graph does: keep a tensor there "
    "that changes in place, or change it outside of forward"
)

CLEAN: dict[str, Any] = {"_layout": None, "_graphs": {}, "_snapshot": None, "_ready": {}, "_latest": None}


class GradientStep:
    """Steps `optimizers[name]` on `loss(batch, *more)`; `networks`: mappings of all networks that the loss reads.

    The mappings are looked at in every step: what is put in place of an optimizer or a network is used from then on. So
    are `loss`, `terms`, `projections`, `max_norm`, `compile` and `precision`.

    `terms`: name -> `term(networks, batch)`, added to the loss and logged under its name; `networks` is the first
    mapping. `add` makes one that reads further modules or a batch of its own. Tensors that a loss or a term closes over
    are read anew in every step, also by a compiled graph; numbers are constants of a graph: a changed one makes it new.

    `projections`: name -> `project(networks)`, run in order without gradients after every step of the optimizer.
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
        self.networks, self.optimizers, self.name = networks, optimizers, name
        self.max_norm, self.compile, self.precision = max_norm, compile, precision
        self.terms: dict[str, Term] = {}
        self.projections: dict[str, Projection] = {}
        self.loss = loss
        self.split: Split | None = None
        """Returns the parts of the loss by name, of the inputs of the loss; None where it has one part."""
        self._require_settings()
        self._layout: Layout | None = None
        self._graphs: dict[Hashable, tuple[Graph, Any]] = {}
        self._snapshot: Snapshot | None = None
        self._ready: dict[Hashable, tuple[Objective, Graph]] = {}
        """Graphs by their inputs, good while the snapshot holds."""
        self._takes_riders = True
        self._latest: tuple[Objective, Inputs] | None = None
        self._look({})

    def again(self) -> Tensor:
        """Return the loss of the last step, with its terms and inputs, at the present weights; RuntimeError before."""
        if self._latest is None:
            raise RuntimeError(f"the step {self.name!r} was not taken yet")
        objective, inputs = self._latest
        return objective(*inputs.gathered())[0]

    def parts(self) -> dict[str, Tensor]:
        """Return the parts by name whose sum is :meth:`again`: those of the loss, and its terms."""
        if self._latest is None:
            raise RuntimeError(f"the step {self.name!r} was not taken yet")
        objective, inputs = self._latest
        return objective.parts(self.split, *inputs.gathered())

    @property
    def loss(self) -> Loss:
        """The loss without terms: `loss(batch, *more)` returns a 0-D tensor and metrics; a method is looked up anew."""
        return self._loss if self._method is None else getattr(*self._method)

    @loss.setter
    def loss(self, loss: Loss) -> None:
        owner, name = getattr(loss, "__self__", None), getattr(loss, "__name__", "")
        self._loss = loss
        self._method = (owner, name) if owner is not None and getattr(owner, name, None) == loss else None

    def add(
        self,
        name: str,
        term: Term,
        *,
        reads: Mapping[str, nn.Module] | None = None,
        draw: Callable[[], Any] | None = None,
    ) -> None:
        """Add a term to the loss: `term(networks, batch)`, or with `draw` `term(networks, batch, drawn)`.

        `reads`: further modules, found among `networks` by these names, such as a reference copy; their weights are
        inputs of the graph and may change in place. `draw`: returns a tensor or batch, called before every step, such
        as `lambda: agent.peek(64, generator)`. Raises ValueError for a name that is taken.
        """
        if name in self.terms:
            raise ValueError(f"the step {self.name!r} has a term {name!r} already; delete it from terms first")
        self.terms[name] = LossTerm(term, reads or {}, draw)

    def __call__(self, batch: Any, *more: Any, updates: int) -> dict[str, Tensor]:
        """Take the step and return the metrics.

        `batch` and `more`: tensors, and dataclasses of tensors, where None stays None. `updates`: of the agent so far,
        which decides when to compile. A term that fails raises RuntimeError with its name.
        """
        inputs = Inputs([batch, *more])
        known = self._snapshot is not None and not self.terms and self._snapshot.holds()
        ready = self._ready.get(inputs.key) if known else None
        objective, inputs, graph = (ready[0], inputs, ready[1]) if ready else self._prepare(inputs, updates)
        self._latest = objective, inputs
        assert self._layout is not None
        optimizer = self.optimizers[self.name]
        if graph is not None:
            metrics = graph.step(optimizer, self._layout.flat, inputs)
        else:
            with paused(self._layout.rides()):
                loss, metrics = objective(*inputs.gathered())
            norm = gradient_step(optimizer, loss, self.max_norm)
            metrics = {name: value.detach() for name, value in metrics.items()}
            metrics = metrics if norm is None else {**metrics, "grad_norm": norm}
        if self.projections:
            self._project()
        return metrics

    def settle(self) -> None:
        """Put the trained weights where the next step will have them."""
        self._look({})

    def evaluate(self, batch: Any, *more: Any) -> Tensor:
        """Return the loss without terms, 0-D and differentiable, eagerly: for what looks at it before the step."""
        return self.loss(*map(gathered, (batch, *more)))[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **CLEAN}  # a copy has networks of its own

    def _require_settings(self) -> None:
        """Raise ValueError for settings that there are not."""
        if self.precision not in ("float32", "bf16"):
            raise ValueError(f"precision is 'float32' or 'bf16', got {self.precision!r}")
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is 'auto', 'on' or 'off', got {self.compile!r}")
        if self.precision == "bf16" and self.compile == "off":
            raise ValueError("precision 'bf16' is of compiled updates: leave compile at 'auto', or 'on'")

    @torch.no_grad()
    def _project(self) -> None:
        for name, project in self.projections.items():
            with blamed(f"the projection {name!r} of the step {self.name!r}"):
                project(self.networks[0])

    def _prepare(self, inputs: Inputs, updates: int) -> tuple[Objective, Inputs, Graph | None]:
        """Return what is to be differentiated, of which inputs, and the graph for it, None where it has to be eager."""
        # By name: the last bit of a sum depends on the order, and after a resume terms are added in another one.
        terms = {name: as_term(term) for name, term in sorted(self.terms.items())}
        objective = Objective(self.loss, terms, self.networks[0], self.name, len(inputs.given))
        key, inputs = inputs.key, Inputs([*inputs.given, *objective.draw()]) if terms else inputs
        layout = self._look(terms)
        rides = layout.rides()
        graph = self._graph(layout, objective, inputs, rides, updates) if rides.all_ride else None
        if graph is not None and not terms and graph.riders == rides.key:
            if self._snapshot is None or not self._snapshot.holds():
                self._snapshot, self._ready = self._take_snapshot(layout), {}
            self._ready[key] = objective, graph
        return objective, inputs, graph

    def _take_snapshot(self, layout: Layout) -> Snapshot:
        """Return the objects on which it depends which graph is the right one, apart from the inputs."""
        optimizer = self.optimizers[self.name]
        groups, flat, read = optimizer.param_groups, layout.flat, reader_of(self.loss)
        of_groups = [group["params"] for group in groups]
        parts, parameters = [groups, *of_groups, *layout.attributes.records], [*chain.from_iterable(of_groups)]
        settings = [name for name in groups[0] if name != "lr"]
        if adam.is_plain(optimizer):
            parts += [vars(optimizer), optimizer.state, *optimizer.state.values(), *adam.hooks_before(optimizer)]

        def more() -> list[Any]:
            return [
                *(self._loss, getattr(self.loss, "__func__", None), self.max_norm, self.compile, self.precision),
                *(self.optimizers[self.name], layout is self._layout, layout.forms, flat.holds(), flat.is_even()),
                *chain.from_iterable([mapping.values() for mapping in self.networks]),
                *read(),
                *map(groups[0].get, settings),
                *[group["params"] for group in groups],
                *map(IS_TRAINED, parameters),
            ]

        return Snapshot(layout, parts, more)

    def _look(self, terms: Mapping[str, LossTerm]) -> Layout:
        """Return the present layout; graphs of another one are forgotten."""
        reads = [term.reads for term in terms.values() if term.reads]
        networks = [network for mapping in (*self.networks, *reads) for network in mapping.values()]
        if self._layout is None or not self._layout.holds(networks, self.optimizers[self.name]):
            self._layout = Layout(networks, self.optimizers[self.name])
            self._graphs.clear()
            if self.compile != "off":
                with suppress(ValueError):  # said where a graph would be made
                    _ = self._layout.flat  # early: who keeps memory of a parameter, keeps what will stay
            for group in self.optimizers[self.name].param_groups:
                for parameter in group["params"]:  # graphs leave old gradients of a frozen weight alone, Adam does not
                    parameter.grad = None
        return self._layout

    def _pays(self, share: float, updates: int) -> bool:
        """Return whether a graph for this share of the updates is worth being compiled."""
        return self.compile == "on" or (self.compile == "auto" and share * updates >= COMPILE_AFTER)

    def _graph(self, layout: Layout, objective: Objective, inputs: Inputs, rides: Rides, updates: int) -> Graph | None:
        """Return the graph for this step, None where it has to be eager; show observers what they cannot ride on."""
        if not self._pays(1.0, updates):
            return None
        if rides.aboard and self._takes_riders and self._pays(rides.share, updates):
            if rides.key is None:
                with untouched(layout.networks):
                    objective(*inputs.gathered())  # they look at the networks, and count no pass without a gradient
                rides = layout.rides()
            graph = None if rides.key is None else self._found(layout, objective, inputs, rides)
            if graph is not None:
                return graph
        graph = self._found(layout, objective, inputs, rides.without())
        if graph is not None and rides.aboard:
            show(objective, inputs, rides, layout)
        return graph

    def _found(self, layout: Layout, objective: Objective, inputs: Inputs, rides: Rides) -> Graph | None:
        """Return the graph for this loss, these shapes and riders: an old one, or a new one if it can be compiled."""
        read, move = objects_read(self.loss), self._move(layout)
        key = (
            inputs.key,
            rides.key,
            tuple(map(id, read)),
            objective.key() if objective.terms else (),
            self.max_norm,
            move,
            layout.forms,
            layout.attributes.key(),
            self.precision,
        )
        found = self._graphs.get(key)
        if found is None:
            graph = self._compile(layout, objective, inputs, move, rides)
            if graph is None:
                return None
            found = self._graphs[key] = graph, read  # which keeps the objects, and with them their ids
        return found[0]

    def _move(self, layout: Layout) -> adam.Move | None:
        """Return the step of the optimizer as a graph has it, None where that is left to the optimizer."""
        optimizer = self.optimizers[self.name]
        with suppress(ValueError):  # said where the graph is made
            flat = layout.flat
            if adam.is_plain(optimizer):
                adam.begin(optimizer, layout.trained)
                return adam.Move.of(optimizer) if flat.take_state(optimizer.state) else None
        return None

    def _compile(
        self, layout: Layout, objective: Objective, inputs: Inputs, move: adam.Move | None, rides: Rides
    ) -> Graph | None:
        self._require_settings()
        if self.precision == "bf16" and layout.trained[0].device.type == "cpu" and bf16_is_emulated():
            warnings.warn(SLOW_BF16, RuntimeWarning, stacklevel=6)
        try:
            if len(self._graphs) >= MAX_GRAPHS and not rides.aboard:
                raise RuntimeError(CHANGING)
            if any(map(compiled_by_torch, modules_of(layout.networks))):
                raise RuntimeError(BY_TORCH)
            with COMPILING, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's about itself: nothing that a user could do
                make = partial(Graph, objective, layout, inputs, self.max_norm, move, self.precision, rides)
                graph = steady(make, layout.attributes, partial(pass_through, objective, inputs, rides, layout))
                native.available()  # to look at its tensors before every step
                return graph
        except Exception as error:
            if rides.aboard:
                self._takes_riders = False
                warn("going on without compiling the updates that are measured", error)
                return None
            if self.compile == "on" and len(self._graphs) < MAX_GRAPHS:
                raise
            self.compile = "off"
            warn("going on without compiled updates", error)
            return None


def compiled_by_torch(module: nn.Module) -> bool:
    """Return whether this is a wrapper of `torch.compile`, or a module that was compiled in place."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def steady(make: Callable[[], Graph], attributes: Attributes, run: Callable[[], object]) -> Graph:
    """Return a graph; RuntimeError where forwards change what they read, as no call of the graph would."""
    with attributes.restored():
        with attributes.restored() as changed:
            graph = make()
        if changed:
            run()  # which may fill caches, such as of positions: in a trace they are filled with what is no number
            with attributes.restored() as changed:
                graph = make()
    if changed:
        raise RuntimeError(OF_ITS_OWN.format(" and ".join(map(repr, changed))))
    return graph


@contextmanager
def paused(rides: Rides) -> Iterator[None]:
    """Within, observers of networks that a step does not train see nothing."""
    with ExitStack() as stack:
        for ride in rides.others:
            stack.enter_context(ride.paused())
        yield


def show(objective: Objective, inputs: Inputs, rides: Rides, layout: Layout) -> None:
    """Run the loss eagerly for the hooks of observers aboard; gradients, buffers, random numbers stay as they were."""
    trained = layout.trained
    with untouched(layout.networks), paused(rides):
        loss, _ = objective(*inputs.gathered())
        for parameter in trained:
            parameter.grad = None
        loss.backward(inputs=list(trained))


def pass_through(objective: Objective, inputs: Inputs, rides: Rides, layout: Layout) -> None:
    """Run the loss eagerly, seen by nobody; buffers and random numbers stay as they were."""
    with untouched(layout.networks), paused(rides.without()), torch.no_grad():
        objective(*inputs.gathered())


def warn(what: str, error: Exception) -> None:
    """Warn, with the first line of the reason."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(f"{what}: {reason}", RuntimeWarning, stacklevel=6)
