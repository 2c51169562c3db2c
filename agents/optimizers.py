"""Optimizers by name. `OPTIMIZERS` is a plain dict: users add their own before the config is made."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from .bodies import Architecture
from .borrowed import kron, schedule_free
from .choices import OneOf, pick
from .muon import MuonAdamW
from .trac import TRAC
from .upgd import UPGD, AdaptiveUPGD

AS_IT_IS = "__dynamo_disable"  # an attribute of a method: what torch calls in its place (torch._compile)
FUSED = ("cpu", "cuda")  # devices with one kernel for all parameters


def fused(kind: Callable[..., Optimizer], params: Iterable[Any], **settings: Any) -> Optimizer:
    """Return an optimizer that steps all parameters in one kernel where the device has it; elsewhere torch chooses."""
    with without_dynamo():
        made = kind(params, **settings)
        if not all(p.device.type in FUSED for group in made.param_groups for p in group["params"]):
            return made
        return kind([{**group, "fused": True} for group in made.param_groups], fused=True, **settings)


@contextmanager
def without_dynamo() -> Iterator[None]:
    """Within, optimizers do not import `torch._dynamo`, which takes a second, only to ask it to leave them alone."""
    names = () if "torch._dynamo" in sys.modules else ("add_param_group", "state_dict", "load_state_dict")
    methods = [getattr(getattr(Optimizer, name), "__wrapped__", None) for name in names]
    for method in filter(None, methods):
        setattr(method, AS_IT_IS, method)
    try:
        yield
    finally:
        for method in filter(None, methods):
            delattr(method, AS_IT_IS)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adam": partial(fused, Adam),
    "adamw": partial(fused, AdamW),
    "sgd": partial(fused, SGD),
    "rmsprop": RMSprop,
    "upgd": UPGD,
    "adaptive_upgd": AdaptiveUPGD,
    "trac": partial(fused, TRAC),
    "muon": MuonAdamW,
    "kron": kron,
    "schedule_free": schedule_free,
}
"""Name -> `make(params, lr=..., weight_decay=..., eps=...)`; entries may leave out the last two. A class will do."""


@dataclass(frozen=True)
class AgentConfig(Architecture):
    """The options every agent has for its networks and their optimizers: a base of its config."""

    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "adam"
    """Optimizer of the networks."""
    weight_decay: float = 0.0
    """Weight decay per optimizer step: this share of a weight is added to its gradient (adam, sgd, rmsprop, trac) or,
    times the learning rate, taken off it (the others)."""
    betas: tuple[float, float] | None = None
    """Decay rates of the optimizer's running means of gradients and of their squares; None: the optimizer's own. Equal
    ones, such as 0.99 0.99, keep steps bounded when the scale of gradients jumps."""
    eps: float | None = None
    """Number that is added to the root of the mean square before dividing by it; None: the agent's or optimizer's."""

    def rules(self) -> dict[str, bool]:
        return {
            "weight_decay >= 0": self.weight_decay >= 0,
            "betas in [0, 1)": self.betas is None or all(0 <= beta < 1 for beta in self.betas),
            "eps > 0": self.eps is None or self.eps > 0,
        }

    def make_optimizer(self, params: Iterable[Tensor], lr: float, **defaults: Any) -> Optimizer:
        """Return the optimizer of these parameters.

        `defaults`: the agent's own choices, such as Adam's eps, for optimizers that take them. Raises ValueError for a
        rate, weight decay, betas or eps that the optimizer does not take, and where :func:`require_optimizer` does.
        """
        make = pick(OPTIMIZERS, self.optimizer, "optimizer")
        chosen = {n: value for n in ("betas", "eps") if (value := getattr(self, n)) is not None}
        settings = {"lr": lr, "weight_decay": self.weight_decay, **defaults, **chosen}
        taken = accepted(make, set(settings))
        for name in ("lr", "weight_decay", *chosen):
            if settings[name] and name not in taken:
                raise ValueError(f"the optimizer {self.optimizer!r} takes no {name}; got {settings[name]}")
        made = make(params, **{name: value for name, value in settings.items() if name in taken})
        require_optimizer(self.optimizer, made)
        return made


def accepted(make: Callable[..., Any], names: set[str]) -> set[str]:
    """Return those of `names` that `make` has as parameters; a partial of `fused` is asked for its optimizer."""
    target = make.args[0] if isinstance(make, partial) and make.func is fused else make
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return names if takes_any else names & parameters.keys()


def require_optimizer(name: str, made: Any) -> None:
    """Raise ValueError for what is no optimizer, or one that steps with a closure only, as LBFGS does."""
    if not isinstance(made, Optimizer):
        raise ValueError(f"OPTIMIZERS[{name!r}] must return a torch.optim.Optimizer, got {type(made).__name__}")
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(f"the optimizer {name!r} ({type(made).__name__}) needs a closure, and agents step without one")


def load_optimizer_(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a saved state, each tensor in the type that it had: torch casts all to the type of their parameter."""
    with without_dynamo():
        optimizer.load_state_dict(copy.deepcopy(dict(saved)))
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in saved["state"]:
            optimizer.state[parameter] = _typed(optimizer.state[parameter], saved["state"][number])


def _typed(loaded: Any, saved: Any) -> Any:
    """Return what was loaded, with what was saved in place of a tensor of another type, or a text; also inside."""
    if isinstance(saved, str):  # torch takes it apart as it does a list
        return saved
    if isinstance(loaded, Tensor) and isinstance(saved, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, Mapping):
        return {key: _typed(value, saved.get(key)) for key, value in loaded.items()}
    if type(loaded) in (list, tuple) and type(saved) is type(loaded) and len(loaded) == len(saved):
        return type(loaded)(map(_typed, loaded, saved))
    return loaded
