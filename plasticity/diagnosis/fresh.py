"""Fresh twins: networks of the same structure as they could have been before training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from plasticity.isolation import copied, named_modules, named_parameters, unwrap
from plasticity.structure.layers import NORM_MODULES
from plasticity.surgery.computed import plain_copy, setters_of
from plasticity.surgery.derived import renew_derived_
from plasticity.surgery.initialisers import fresh_parameters
from plasticity.surgery.origin import Moved, Origin, Replacement, fresh_copy

from .trainee import seeded

Fresh = Callable[[torch.Generator], nn.Module]


def from_origin(model: nn.Module, origin: Origin) -> Fresh:
    """Return a maker of twins whose parameters are drawn from recorded laws; running statistics of norms start anew."""

    def make(generator: torch.Generator) -> nn.Module:
        bare = copied(unwrap(model))
        kept = {id(p) for m in bare.modules() if isinstance(m, Replacement) for p in m.parameters()}
        for parameter in bare.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(True)
        return _restarted(fresh_copy(bare, origin, generator))

    return make


def from_builder(build: Callable[[], nn.Module], model: nn.Module) -> Fresh:
    """Return a maker of twins that calls ``build()``; ValueError where its parameters are not those of the model."""
    shapes = {name: tuple(p.shape) for name, p in named_parameters(unwrap(model)).items()}
    place = next((p.device for p in model.parameters()), torch.device("cpu"))

    def make(generator: torch.Generator) -> nn.Module:
        with _globally(generator, place):
            twin = unwrap(build()).to(place)
        found = {name: tuple(p.shape) for name, p in named_parameters(twin).items()}
        if found != shapes:
            differing = sorted(set(found.items()) ^ set(shapes.items()))[:4]
            raise ValueError(f"fresh() must build the model with new weights; the two differ in {differing}")
        twin.train(unwrap(model).training)
        return twin

    return make


def from_defaults(model: nn.Module) -> Fresh:
    """Return a maker of twins by each module's own ``reset_parameters``, for models whose start is not known.

    Parameters of modules that have no such method stay as they are: give ``fresh`` where the model draws its weights by
    another law. :func:`undrawn` names them.
    """

    def make(generator: torch.Generator) -> nn.Module:
        twin = copied(unwrap(model))
        found = _with_parameters(twin).values()
        for module in sorted(found, key=lambda one: bool(setters_of(one))):  # what weights are computed with goes first
            if _can_redraw(module):
                _redraw_(module, generator)
        return _restarted(twin)

    return make


def undrawn(model: nn.Module) -> list[str]:
    """Return the names of modules with parameters of their own that cannot be drawn anew by default."""
    found = _with_parameters(unwrap(model))
    return [name for name, module in found.items() if not _can_redraw(module)]


def _with_parameters(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules with parameters of their own, or with tensors that are computed from such."""
    lists = {id(one) for one in model.modules() if isinstance(one, ParametrizationList)}
    return {
        name: module
        for name, module in named_modules(model).items()
        if (module._parameters or hasattr(module, "parametrizations")) and id(module) not in lists
    }


def _can_redraw(module: nn.Module) -> bool:
    """Return whether a module has a way to draw its parameters; where some are computed, this is tried on a copy."""
    if not (hasattr(module, "reset_parameters") or hasattr(module, "_reset_parameters")):
        return False
    try:
        if setters_of(module):
            _redraw_(copied(module), torch.Generator())
    except Exception:  # whatever an inverse of others raises
        return False
    return True


@torch.no_grad()
def _redraw_(module: nn.Module, generator: torch.Generator) -> None:
    """Give a module the parameters of its own ``reset_parameters``, in place."""
    setters, place = setters_of(module), next(module.parameters()).device
    values = fresh_parameters(plain_copy(module) if setters else module, generator)
    with _globally(generator, place) if setters else nullcontext():  # an inverse may draw what it needs
        for name, value in values.items():
            if value is not None:
                (setters.get(name) or getattr(module, name).copy_)(value.to(place))


def _globally(generator: torch.Generator, place: torch.device) -> AbstractContextManager[None]:
    """Return a context in which the global generators draw from a seed that another one draws."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return seeded(seed, [place] if place.type == "cuda" else [])


def _restarted(twin: nn.Module) -> nn.Module:
    for module in twin.modules():
        if isinstance(module, Moved):
            module.cancel_()
        if isinstance(module, NORM_MODULES) and hasattr(module, "reset_running_stats"):
            module.reset_running_stats()  # type: ignore[operator]
    renew_derived_(twin)
    return twin
