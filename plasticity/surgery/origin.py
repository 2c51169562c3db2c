"""Where a network's parameters come from: recorded when training starts, drawn from whenever a method redraws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        """Record what methods have put into the networks since, before these are trained or loaded.

        Modules into which layers were put are left to what these were before.
        """
        for name, network in networks.items():
            known, now = self[name], Origin.of(network)
            inside = tuple(f"{path}." for path, module in named_modules(network).items() if isinstance(module, Moved))
            new = {n for n in (*now.laws, *now.values) if n not in known and not n.startswith(inside)}
            known.laws |= {n: law for n, law in now.laws.items() if n in new}
            known.values |= {n: value for n, value in now.values.items() if n in new}

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
    moved = {path: m for path, m in named_modules(network).items() if isinstance(m, Moved)}
    found = {}
    for name, parameter in named_parameters(network).items():
        if parameter.requires_grad and chosen(name, parameter):
            origin_name = name
            for path, module in moved.items():
                if name.startswith(f"{path}.") and name not in origin:
                    origin_name = module.original_name(path, name)
            found[name] = origin.draw(origin_name, parameter, generator)
    return found


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
