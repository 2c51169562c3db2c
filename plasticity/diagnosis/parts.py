"""Parts of a network and its training that are made fresh one at a time, to see where learning is lost.

``parts_of`` lists them from the least to the most invasive. The first one that makes the network learn as a fresh one
does is where it is lost: a smaller change explains as much as a larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plasticity.isolation import named_modules, named_parameters
from plasticity.monitor import Monitor
from plasticity.probes import Dormancy
from plasticity.structure.layers import NORM_MODULES
from plasticity.structure.trace import trace
from plasticity.structure.wirings import Wiring
from plasticity.surgery.initialisers import Initialiser, weight_layers
from plasticity.surgery.laws import Law
from plasticity.surgery.origin import Moved
from plasticity.surgery.permission import refusals
from plasticity.surgery.recycle import recycle_

from .trainee import Patient, Trainee, in_evaluation

Renew = Callable[[Trainee, nn.Module], None]
"""``renew(trainee, twin)`` makes a part of the trainee as it is in a fresh twin, in place."""


@dataclass(frozen=True)
class FreshPart:
    """A part that can be made fresh, and the cause that is named where that restores learning."""

    name: str
    cause: str
    renew: Renew


def parts_of(patient: Patient) -> list[FreshPart]:
    """Return the parts of a network that can be made fresh, the least invasive first."""
    trainee, wired = patient.aged(), wiring_of(patient)
    modules = named_modules(trainee.model)
    own = named_parameters(trainee.model)
    parts: list[FreshPart] = []
    if trainee.optimizer.state:
        parts.append(FreshPart("optimizer state", "optimizer state", lambda t, _: t.forget_()))
    if trainee.frozen():
        parts.append(FreshPart("frozen parameters", "frozen", lambda t, _: t.thaw_()))
    dead = dead_neurons(patient) if wired is not None else {}
    if any(mask.any() for mask in dead.values()):
        parts.append(FreshPart("dead neurons", "dead neurons", _recycle(patient, dead)))
    parts.append(FreshPart("scale of weights", "scale", _rescale))
    norms = [n for n in own if isinstance(modules[_owner(n)], NORM_MODULES)]
    layers = dict(weight_layers(trainee.model))
    biases = [n for n in own if _owner(n) in layers and n.endswith("bias")]
    last = _last(wired, list(layers))
    groups = {"norms": norms, "biases": biases, "last layer": _of_modules(own, last)}
    parts += [FreshPart(name, name, _take(names)) for name, names in groups.items() if names]
    hidden = [name for name in layers if name not in last]
    parts += [FreshPart(f"layer {n}", "layer", _take(names)) for n in hidden if (names := _of_modules(own, [n]))]
    return [*parts, FreshPart("everything", "weights", renew_all)]


def renew_all(trainee: Trainee, twin: nn.Module) -> None:
    """Make all fresh: parameters, buffers of norms, optimizer state, and what was frozen or kept of old layers."""
    trainee.thaw_()
    trainee.forget_()
    _take(named_parameters(trainee.model))(trainee, twin)
    for path, module in named_modules(trainee.model).items():
        if isinstance(module, (*NORM_MODULES, Moved)):
            module.load_state_dict(named_modules(twin)[path].state_dict())


def _take(names: Iterable[str]) -> Renew:
    chosen = list(names)

    def renew(trainee: Trainee, twin: nn.Module) -> None:
        fresh = named_parameters(twin)
        trainee.take_({name: fresh[name] for name in chosen if name in fresh})

    return renew


def _rescale(trainee: Trainee, twin: nn.Module) -> None:
    """Scale every weight of two dimensions or more to the norm that it has in the twin; the direction stays."""
    fresh, values = named_parameters(twin), {}
    for name, weight in named_parameters(trainee.model).items():
        if weight.dim() > 1 and name in fresh and (norm := weight.norm()) > 0:
            values[name] = weight * (fresh[name].norm() / norm)
    trainee.take_(values)


class _OfTwin(Initialiser):
    """An initialiser whose draws are the weights of a fresh twin."""

    def weight(self, generator: torch.Generator) -> Tensor:
        return self.module.weight.detach().clone()  # type: ignore[union-attr,operator]

    def bias(self, generator: torch.Generator) -> Tensor | None:
        bias = self.module.bias
        return bias.detach().clone() if isinstance(bias, Tensor) else None


def _recycle(patient: Patient, dead: dict[str, Tensor]) -> Renew:
    """Return what redraws the dead neurons: incoming weights from the twin, outgoing ones stay."""

    def renew(trainee: Trainee, twin: nn.Module) -> None:
        wired = wiring_of(patient, trainee.model)
        assert wired is not None
        zero = Law("constant", (0.0,))
        fresh = {name: _OfTwin(module, zero, zero) for name, module in weight_layers(twin)}
        masks = {n: mask for n, mask in dead.items() if n in fresh and mask.any()}
        masks = {n: mask for n, mask in masks.items() if refusals(wired, n, "keep") is None}
        generator = torch.Generator().manual_seed(0)
        recycle_(wired, masks, [trainee.optimizer], initialisers=fresh, generator=generator, outgoing="keep")

    return renew


def wiring_of(patient: Patient, model: nn.Module | None = None) -> Wiring | None:
    """Return how the layers of a copy of the patient are connected; None where they cannot be traced."""
    model = patient.aged().model if model is None else model
    seen: list[tuple[tuple, dict]] = []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with in_evaluation(model):
        patient.forward(model, patient.batches[0])
    handle.remove()
    try:
        return trace(model, *seen[0]) if seen else None
    except ValueError:
        return None


def dead_neurons(patient: Patient) -> dict[str, Tensor]:
    """Return hidden layer -> (neurons,) bool: those that never fire on any of the batches."""
    model = patient.aged().model
    with Monitor(model, {"dormancy": Dormancy()}) as monitor, in_evaluation(model):
        for batch in patient.batches:
            patient.forward(model, batch)
    scores = monitor.read().scores.get("dormancy", {})
    return {name: (score == 0).cpu() for name, score in scores.items()}


def output_parameters(patient: Patient) -> list[str]:
    """Return the names of the parameters of the output layers."""
    model = patient.aged().model
    return _of_modules(named_parameters(model), output_layers(patient, model))


def output_layers(patient: Patient, model: nn.Module) -> list[str]:
    """Return the names of the output layers of a copy of the patient."""
    return _last(wiring_of(patient), [name for name, _ in weight_layers(model)])


def _last(wired: Wiring | None, layers: list[str]) -> list[str]:
    """Return the output layers; the last one of all where the model cannot be traced."""
    found = [layer.name for layer in wired.layers.values() if layer.is_output] if wired is not None else []
    return found or layers[-1:]


def _of_modules(parameters: Iterable[str], modules: Iterable[str]) -> list[str]:
    chosen = set(modules)
    return [name for name in parameters if _owner(name) in chosen]


def _owner(name: str) -> str:
    """Return the module of a parameter; of one that a tensor is computed from, the module of that tensor."""
    owner, computed, _ = f".{name}".rpartition(".parametrizations.")
    return (owner if computed else name.rpartition(".")[0]).removeprefix(".")
