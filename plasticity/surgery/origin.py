"""Where a network's parameters come from: recorded when training starts, drawn from whenever a method redraws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from plasticity.isolation import copied, named_modules, named_parameters
from plasticity.structure.slices import Slice
from plasticity.surgery.initialisers import Initialiser, bias_law, record_initialisers, weight_layers
from plasticity.surgery.laws import Law


@dataclass
class Origin:
    """Where a network's parameters come from: what a fresh draw of each is."""

    laws: dict[str, Law]
    """Weight or bias of a Linear or convolution -> its own initial distribution."""
    values: dict[str, Tensor]
    """Parameter of anything else (norms, embeddings, recurrent cores) -> its first value."""

    @classmethod
    def of(cls, network: nn.Module) -> Origin:
        """Record the origin of a network that has not been trained yet."""
        laws = {}
        for layer, initialiser in record_initialisers(network).items():
            for kind, law in (("weight", initialiser.weight_law), ("bias", initialiser.bias_law)):
                if law is not None:
                    laws[f"{layer}.{kind}" if layer else kind] = law
        laws |= _laws_of_biases(network)
        values = {n: p.detach().clone() for n, p in named_parameters(network).items() if n not in laws}
        return cls(laws, values)

    def draw(self, name: str, like: Tensor, generator: torch.Generator) -> Tensor:
        """Return a fresh value of the parameter ``name``, of the shape, dtype and device of ``like``.

        Weights and biases of Linear and convolution layers come from the layer's own initialiser. Vectors of anything
        else (gains and biases of norms) go back to their first value; matrices of anything else are their first values
        in a new order, which is a draw from the same distribution where entries are independent.
        """
        if name in self.laws:
            return self.laws[name].draw(like, generator)
        first = self.values[name].to(like.device, like.dtype)
        if first.dim() < 2:
            return first.clone()
        order = torch.randperm(first.numel(), generator=generator, device="cpu").to(like.device)
        return first.flatten()[order].view_as(first)

    def initialiser_of_slice(self, name: str, module: Slice) -> Initialiser:
        """Return the initialiser of a slice of a parameter, read off its first values."""
        host = name.removesuffix(f"{module.key}.{module.index}")
        first, bias = (self.values.get(f"{host}{key}") for key in (module.key, next(iter(module.bias_keys), "")))
        return Initialiser.of_values(
            module,
            module.weight if first is None else first[module.index],
            module.bias if bias is None else bias[module.index].flatten(),
        )

    def __contains__(self, name: str) -> bool:
        return name in self.laws or name in self.values


def _laws_of_biases(network: nn.Module) -> dict[str, Law]:
    """Return the laws of biases whose layer has a weight that is computed from others: weight norm, spectral norm."""
    laws = {}
    for layer, module in weight_layers(network):
        bias = module._parameters.get("bias")
        if bias is not None and "weight" not in module._parameters:
            laws[f"{layer}.bias".removeprefix(".")] = bias_law(module, bias)
    return laws


class Origins(dict[str, Origin]):
    """Network -> its origin, recorded when training starts; a resumed run loads the origins recorded then."""

    @classmethod
    def of(cls, networks: Mapping[str, nn.Module]) -> Origins:
        """Record the origins of networks that have not been trained yet, or whose origins are loaded next."""
        return cls({name: Origin.of(network) for name, network in networks.items()})

    def add(self, networks: Mapping[str, nn.Module]) -> None:
        """Record what methods have put into the networks since, before these are trained or loaded."""
        for name, network in networks.items():
            known, now = self[name], Origin.of(network)
            for new, before in original_names(network, known, [*now.laws, *now.values]).items():
                if before not in known:
                    known.laws |= {before: now.laws[new]} if new in now.laws else {}
                    known.values |= {before: now.values[new]} if new in now.values else {}

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain values and tensors."""
        return {
            name: {
                "laws": {n: (law.kind, law.parameters, law.values) for n, law in origin.laws.items()},
                "values": dict(origin.values),
            }
            for name, origin in self.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state_dict`."""
        for name, saved in state.items():
            laws = {n: Law(kind, tuple(parameters), values) for n, (kind, parameters, values) in saved["laws"].items()}
            self[name] = Origin(laws, dict(saved["values"]))


@runtime_checkable
class Moved(Protocol):
    """A module that layers were put into, which knows what they were called, and keeps parts of earlier ones."""

    def original_name(self, path: str, name: str) -> str:
        """Return what the parameter ``name`` was called when training began, given the module's own ``path``."""

    def cancel_(self) -> None:
        """Let the layers stand alone: what was kept of earlier ones no longer adds anything."""


@runtime_checkable
class Replacement(Moved, Protocol):
    """One that took the place of layers, as a plasticity injection does: they are frozen, and fresh ones are added."""

    frozen: nn.Module


def fresh_values(
    network: nn.Module, origin: Origin, generator: torch.Generator, chosen: Callable[[str, Tensor], bool]
) -> dict[str, Tensor]:
    """Return name -> fresh value of the trainable parameters for which ``chosen(name, parameter)`` holds."""
    parameters = {n: p for n, p in named_parameters(network).items() if p.requires_grad and chosen(n, p)}
    names = original_names(network, origin, parameters)
    return {name: origin.draw(names[name], parameter, generator) for name, parameter in parameters.items()}


def original_names(network: nn.Module, origin: Origin, names: Iterable[str]) -> dict[str, str]:
    """Return name -> what each of these parameters is called in the origin, whatever it was put into since."""
    moved = [(path, m) for path, m in named_modules(network).items() if isinstance(m, Moved)]
    return {name: _undone(name, [one for one in moved if name.startswith(f"{one[0]}.")], origin) for name in names}


def _undone(name: str, moved: list[tuple[str, Moved]], origin: Origin) -> str:
    """Return the name in the origin, which was recorded before or after any of the modules around it, outermost first.

    Where the origin has none, the name before all of them.
    """
    if name in origin or not moved:
        return name
    (path, module), inner = moved[0], moved[1:]
    paths = [module.original_name(path, f"{within}.weight").removesuffix(".weight") for within, _ in inner]
    before = _undone(module.original_name(path, name), [(p, m) for p, (_, m) in zip(paths, inner, strict=True)], origin)
    beside = _undone(name, inner, origin)
    return beside if beside in origin and before not in origin else before


def fresh_copy(network: nn.Module, origin: Origin, generator: torch.Generator) -> nn.Module:
    """Return a copy of the network with fresh trainable parameters, as they could have been when training began.

    Buffers, such as running statistics, and frozen parameters are copied as they are.
    """
    fresh = copied(network)
    parameters = named_parameters(fresh)
    with torch.no_grad():
        for name, value in fresh_values(fresh, origin, generator, lambda name, parameter: True).items():
            parameters[name].copy_(value)
    return fresh
