"""Plasticity injection: freeze a network's head, and learn a correction to it with fresh weights.

Nikishin et al. 2023, *Deep Reinforcement Learning with Plasticity Injection*, arXiv 2305.15555.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.isolation import unwrap
from plasticity.structure.layers import NORM_MODULES, neuron_axis
from plasticity.surgery.optimizer_state import forget_
from plasticity.surgery.origin import Origin, Origins, fresh_values

from .intervention import numbers_in
from .reset import require_alike, restart_norm_
from .scheduled import Scheduled


class Injected(nn.Module):
    """``h_frozen(x) + h_new(x) - h_copy(x)``: at first exactly ``h_frozen(x)``; only ``h_new`` is trained."""

    def __init__(self, head: nn.Module, fresh: nn.Module, span: bool) -> None:
        super().__init__()
        self.frozen = head.requires_grad_(False)
        self.new = fresh
        self.copy = copy.deepcopy(fresh).requires_grad_(False)
        self.span = span
        """True if the head was the last modules of an ``nn.Sequential``, not one module."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run all three; gradients reach the inputs through each of them."""
        outputs = [head(*args, **kwargs) for head in (self.frozen, self.new, self.copy)]
        return _combine(*outputs)

    def original_name(self, path: str, name: str) -> str:
        """Return what a parameter of the new head was called before the injection."""
        inside = name[len(path) + 1 :].split(".", 1)[1]
        before = path.rpartition(".")[0] if self.span else path
        return f"{before}.{inside}" if before else inside

    def cancel_(self) -> None:
        """Let the new head stand alone: the frozen one becomes equal to the copy that is subtracted."""
        self.frozen.load_state_dict(self.copy.state_dict())


def _combine(frozen: Any, new: Any, twin: Any) -> Any:
    """Return frozen + (new - twin), also inside tuples, lists and dictionaries."""
    if isinstance(frozen, Tensor):
        return frozen + (new - twin)  # in this order new - twin is exactly 0 at first
    if isinstance(frozen, Mapping):
        return {key: _combine(frozen[key], new[key], twin[key]) for key in frozen}
    if isinstance(frozen, (tuple, list)):
        parts = [_combine(*each) for each in zip(frozen, new, twin, strict=True)]
        return type(frozen)(*parts) if hasattr(frozen, "_fields") else type(frozen)(parts)
    raise TypeError(f"the head of a plasticity injection must return tensors, got {type(frozen).__name__}")


@dataclass(frozen=True)
class Head:
    """The modules that an injection takes over: ``names`` inside the module ``parent``."""

    parent: str
    names: tuple[str, ...]
    span: bool
    """True if they are the end of an ``nn.Sequential``."""

    @property
    def path(self) -> str:
        """The place of the injected module."""
        return f"{self.parent}.{self.names[0]}" if self.parent else self.names[0]

    def __str__(self) -> str:
        return f"{self.path}:" if self.span else self.path


def find_heads(network: nn.Module, head: str | None = None) -> list[Head]:
    """Return the modules that match the glob ``head``, outermost first found; by default the last two weight layers.

    The paper's head is what follows the convolutions of a Q-network: a hidden layer and the output layer. Here it is
    looked for in the last child that has weight layers, down to an ``nn.Sequential`` that has two of them, which is cut
    in front of the last but one. An empty list says that there is no such child. A single linear layer would not do:
    the sum of three linear layers, one of them trained, learns what that one would have learned.
    """
    if head is not None:
        names = [name for name, _ in network.named_modules() if name and fnmatchcase(name, head)]
        outer = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
        return [Head(n.rpartition(".")[0], (n.rpartition(".")[2],), span=False) for n in outer]
    found = _last_two(network, "")
    return [] if found is None else [found]


def _last_two(module: nn.Module, path: str) -> Head | None:
    children = list(module.named_children())
    counts = [sum(neuron_axis(m) is not None for m in child.modules()) for _, child in children]
    if not any(counts):
        return None
    last = max(i for i, count in enumerate(counts) if count)
    if counts[last] >= 2:
        name, child = children[last]
        return _last_two(child, f"{path}.{name}" if path else name) or Head(path, (name,), span=False)
    if type(module).forward is not nn.Sequential.forward or sum(counts) < 2:
        return None
    first = max(i for i, count in enumerate(counts) if count and i < last)
    return Head(path, tuple(name for name, _ in children[first:]), span=True)


def inject_(network: nn.Module, head: Head) -> Injected:
    """Put a plasticity injection in the place of ``head``; the new weights are still copies of the old ones.

    Raises the ValueError of :func:`require_injectable`.
    """
    require_injectable(network, head)
    parent = network.get_submodule(head.parent)
    members = OrderedDict((name, parent.get_submodule(name)) for name in head.names)
    module = nn.Sequential(members) if head.span else members[head.names[0]]
    injected = Injected(module, copy.deepcopy(module), head.span)
    parent._modules[head.names[0]] = injected
    for name in head.names[1:]:
        del parent._modules[name]
    return injected


def require_injectable(network: nn.Module, head: Head) -> None:
    """Raise ValueError for a head that holds an injection already, as a second one would nest, or that has dropout.

    With dropout the new head and its copy would draw different masks, and no longer cancel. Refused are also structures
    that would not be kept: containers that the network indexes, and heads that write to a cache of keys and values,
    which all three copies would write to.
    """
    parent = network.get_submodule(head.parent)
    parts = [
        (f"{name}.{n}".rstrip("."), m) for name in head.names for n, m in parent.get_submodule(name).named_modules()
    ]
    around = [network.get_submodule(head.parent[:i]) for i, c in enumerate(head.parent + ".") if c == "."]
    if any(isinstance(m, Injected) for m in [*around, *(m for _, m in parts)]):
        raise ValueError(f"{head} has been injected already: a second plasticity injection would nest inside the first")
    for name in head.names:
        if type(parent.get_submodule(name)).forward is nn.Module.forward:
            kind = type(parent.get_submodule(name)).__name__
            raise ValueError(f"{head} is a {kind}, whose parts are called one by one; choose one of them as the head")
    if cached := [n for n, m in parts if _takes_cache(m)]:
        raise ValueError(
            f"{head} writes to a cache ({', '.join(cached)}), as its copies would too; choose another head"
        )
    dropout = [n for n, m in parts if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    if dropout:
        raise ValueError(
            f"{head} has dropout ({', '.join(dropout)}): the injected heads would not cancel; choose another head"
        )


def _takes_cache(module: nn.Module) -> bool:
    """Return whether a module is given a cache of keys and values to write to."""
    parameters = inspect.signature(module.forward).parameters
    return any("cache" in name or name.startswith("past_key") for name in parameters)


@torch.no_grad()
def freshen_(network: nn.Module, head: Head, origin: Origin, generator: torch.Generator) -> None:
    """Draw the new head from its layers' own initialisers, and the copy equal to it."""
    injected = network.get_submodule(head.path)
    assert isinstance(injected, Injected)
    parameters = dict(network.named_parameters())
    fresh = fresh_values(network, origin, generator, lambda name, _: name.startswith(f"{head.path}.new."))
    for name, value in fresh.items():
        parameters[name].copy_(value)
    for module in injected.new.modules():
        if isinstance(module, NORM_MODULES):
            restart_norm_(module)
    injected.copy.load_state_dict(injected.new.state_dict())


def exchange_(optimizers: Iterable[Optimizer], injected: Injected) -> None:
    """Put each new parameter in the place of the frozen one in its optimizer group, with a fresh optimizer state.

    In place and in order, so that saved optimizer states still fit. What was frozen before stays out of the optimizer.
    """
    optimizers = list(optimizers)
    for old, new in zip(injected.frozen.parameters(), injected.new.parameters(), strict=True):
        old.grad = new.grad = None
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for place, parameter in enumerate(group["params"]):
                    if parameter is old:
                        group["params"][place] = new
            if old in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(old)
        forget_(optimizers, new)


def restructure_(network: nn.Module, names: Iterable[str], optimizers: Iterable[Optimizer] = ()) -> list[str]:
    """Give a fresh network the injections of a saved one, whose state has the keys ``names``; return their places.

    For loading checkpoints: run it before ``load_state_dict``. The weights of the new heads wait to be loaded.
    """
    names, places = list(names), []
    for path in dict.fromkeys(n.split(".frozen.")[0] for n in names if ".frozen." in n):
        if not any(n.startswith(f"{path}.new.") for n in names) or isinstance(_get(network, path), Injected):
            continue
        inside = {n[len(path) + 8 :] for n in names if n.startswith(f"{path}.frozen.")}
        parent, _, name = path.rpartition(".")
        siblings = [child for child, _ in network.get_submodule(parent).named_children()]
        span = inside != set(network.get_submodule(path).state_dict())
        head = Head(parent, tuple(siblings[siblings.index(name) :]) if span else (name,), span)
        exchange_(optimizers, inject_(network, head))
        places.append(path)
    return places


def _get(network: nn.Module, path: str) -> nn.Module | None:
    return dict(network.named_modules()).get(path)


@dataclass
class PlasticityInjection(Scheduled):
    """Freeze the head, train a fresh one beside it: the outputs stay.

    h(x) + h_new(x) - h_copy(x) takes the place of the head h, once.

    ``paper``: at 500 000 environment steps, half of a run of a million; set ``at`` for other lengths, or ``stalled``
    for the plateau. The rest of the network keeps its weights and its optimizer state, as clearing it hurt in the
    paper's ablation. Target networks are injected alike.
    Networks in which no head with a hidden layer is found, such as SAC's actor, are left as they are, and an event says
    so; naming them in ``networks`` makes it an error. A second injection is refused, so that heads never nest.
    """

    NAME: ClassVar[str] = "plasticity_injection"
    KIND: ClassVar[str] = "architecture"
    PRESETS: ClassVar = {"paper": {"at": (500_000,), "clock": "env_steps"}}

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None."""
    head: str | None = None
    """Glob of the modules to inject, such as "q" or "*_head"; None: the last two weight layers of the last
    nn.Sequential."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every is not None or len(self.at or ()) > 1:
            raise ValueError(
                "PlasticityInjection is applied once: pass at=(N,), when or stalled, not every or several steps"
            )
        self.origins = Origins()
        self._heads: dict[str, list[Head]] = {}
        self._refused = False
        self._at = -1
        """Environment step of the injection, -1 before it."""

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        """Give the networks of a saved run its injected heads; a new run begins without."""
        for name, keys in (state or {}).get("injected", {}).items():
            restructure_(unwrap(ctx.networks[name]), keys, ctx.optimizers.values())
            if name in ctx.targets:
                restructure_(unwrap(ctx.targets[name]), keys)

    def on_train_start(self, ctx: Context) -> None:
        """Find the heads; ValueError where there is none, and for targets that do not match."""
        super().on_train_start(ctx)
        self._refused, self._at = False, -1
        self.origins = Origins.of(self._networks)
        self._heads = {name: self._find(ctx, name, network) for name, network in self._networks.items()}
        if not any(self._heads.values()):
            raise ValueError(f"PlasticityInjection finds no head in {', '.join(self._networks)}: {self._advice()}")
        missing = {name: self._advice() for name, heads in self._heads.items() if not heads}
        if missing and not ctx.step:  # a resumed run has said so
            ctx.event(f"{self.NAME}_skipped", missing)

    def _find(self, ctx: Context, name: str, network: nn.Module) -> list[Head]:
        if any(isinstance(m, Injected) for m in network.modules()):
            return [Head(path, ("injected",), False) for path, m in network.named_modules() if isinstance(m, Injected)]
        if name in ctx.targets:
            require_alike(name, network, unwrap(ctx.targets[name]))
        heads = find_heads(network, self.head)
        if not heads and self.networks:
            raise ValueError(f"PlasticityInjection finds no head in {name}: {self._advice(network)}")
        for head in heads:
            require_injectable(network, head)
        shared = self._shared(ctx, network, heads)
        if shared:
            raise ValueError(
                f"PlasticityInjection: {shared} of {name} is also used outside the head; pass another head"
            )
        return heads

    def _advice(self, network: nn.Module | None = None) -> str:
        if self.head is None:
            return "there is no nn.Sequential at its end with two weight layers; pass head= or put one there"
        return f"no module matches {self.head!r}" + (
            f"; it has {[n for n, _ in network.named_modules()][1:]}" if network else ""
        )

    def _shared(self, ctx: Context, network: nn.Module, heads: list[Head]) -> str:
        """Return the name of a parameter of a head that something else holds too."""
        prefixes = tuple(f"{h.parent}.{n}.".lstrip(".") for h in heads for n in h.names)
        every = list(network.named_parameters(remove_duplicate=False))
        inside = {id(p): n for n, p in every if n.startswith(prefixes)} if prefixes else {}
        outside = {id(p) for n, p in every if id(p) in inside and not n.startswith(prefixes)}
        for other in ctx.networks.values():
            outside |= {id(p) for p in other.parameters() if unwrap(other) is not network}
        return next((n for i, n in inside.items() if i in outside), "")

    def apply(self, ctx: Context) -> None:
        """Inject every network, and its target."""
        done = [n for n, net in self._networks.items() if any(isinstance(m, Injected) for m in net.modules())]
        if done:
            if not self._refused:
                ctx.event(f"{self.NAME}_refused", {**self.occasion(), "injected before": done})
            self._refused = True
            return
        self._at = ctx.step
        details: dict[str, Any] = {}
        for name, network in self._networks.items():
            if heads := self._heads[name]:
                _, moved = self.alter(ctx, name, partial(self._inject, ctx, name, network, heads))
                details[name] = {"heads": list(map(str, heads)), "function_change": moved}
        self.report(
            ctx, {**self.occasion(), "networks": details}, applications=1, heads=sum(map(len, self._heads.values()))
        )

    def _inject(self, ctx: Context, name: str, network: nn.Module, heads: list[Head]) -> None:
        target = unwrap(ctx.targets[name]) if name in ctx.targets else None
        for head in heads:
            injected = inject_(network, head)
            freshen_(network, head, self.origins[name], self.generator)
            exchange_(list(ctx.optimizers.values()), injected)
            if target is not None:
                twin = inject_(target, head)
                twin.new.load_state_dict(injected.new.state_dict())
                twin.copy.load_state_dict(injected.new.state_dict())

    def parameters_added(self) -> int:
        """Return how many weights the frozen heads and frozen copies have that stand beside the new heads."""
        modules = [m for network in self._networks.values() for m in network.modules() if isinstance(m, Injected)]
        return numbers_in([(m.frozen, m.copy) for m in modules])

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, how the parameters began, and where injections are."""
        names = {
            name: [key for key in network.state_dict() if any(key.startswith(f"{path}.") for path in _places(network))]
            for name, network in self._networks.items()
        }
        own = {
            "origins": self.origins.state_dict(),
            "injected": names,
            "restructured_at": self._at,
            "refused": self._refused,
        }
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the injected heads are rebuilt by :meth:`restructure`."""
        super().load_state_dict(state)
        self.origins.load_state_dict(state["origins"])
        self._refused, self._at = state["refused"], state.get("restructured_at", -1)


def _places(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if isinstance(module, Injected)]
