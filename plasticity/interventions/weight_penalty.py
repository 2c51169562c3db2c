"""The base of penalties on weights: a number that depends on the weights alone is added to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.isolation import named_parameters
from plasticity.structure.optimizers import all_parameters

from .every_step import EveryStep


@dataclass
class WeightPenalty(EveryStep):
    """A penalty on the weights of every network: :meth:`penalty` is times ``coef`` a term of the loss that trains it.

    The term is part of compiled updates, clipped with the loss, and logged as ``losses/<method>_<network>``. A loop
    without gradient steps of agents gets the penalty's gradient right before the optimizer steps, after what it clips.
    """

    KIND: ClassVar[str] = "penalty"

    coef: float = 1e-2
    """Weight of the penalty; 0 switches it off."""

    def rules(self) -> dict[str, bool]:
        """Return the rule that every penalty has."""
        return {"coef >= 0": self.coef >= 0}

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Add the term to the step that trains the network."""
        self.begin(name, network)
        if not self.coef:
            return
        if not ctx.steps:
            held = set(map(id, trained(network).values()))
            for optimizer in {id(one): one for one in ctx.optimizers.values()}.values():
                if held & set(map(id, all_parameters(optimizer))):
                    self.hook(optimizer.register_step_pre_hook(self.named(partial(self._add_gradient, name))))
            return
        step, label = ctx.step_of(name), f"{self.NAME}_{name}"
        step.add(label, partial(self._term, name))
        self.hook(Added(step.terms, label))

    def begin(self, name: str, network: nn.Module) -> None:
        """Remember what the penalty needs of a network at the start."""

    def penalty(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the penalty, 0-D, of a network whose trained parameters are given by name."""
        raise NotImplementedError

    def ready(self, name: str) -> bool:
        """Return whether the penalty of a network can be computed between updates already."""
        return True

    def _term(self, name: str, networks: Mapping[str, nn.Module], batch: Any) -> Tensor:
        return self.coef * self.penalty(name, trained(networks[name]))

    @torch.enable_grad()
    def _add_gradient(self, name: str, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        own = self._own(name, optimizer)
        value = self.coef * self.penalty(name, trained(self.chosen[name]))
        if not own or not value.requires_grad:  # nothing of it is trained here
            return
        found = torch.autograd.grad(value, own, allow_unused=True)
        for parameter, gradient in zip(own, found, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _own(self, name: str, optimizer: Optimizer) -> list[Tensor]:
        """Return what a network's term moves in a step of ``optimizer``: a layer that networks share counts once."""
        held = set(map(id, all_parameters(optimizer)))
        for other, network in self.chosen.items():
            if other == name:
                break
            held -= set(map(id, trained(network).values()))
        return [parameter for parameter in trained(self.chosen[name]).values() if id(parameter) in held]

    @torch.no_grad()
    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return the present penalty of every network, not multiplied by ``coef``."""
        ready = {name: network for name, network in self.chosen.items() if self.ready(name)}
        return {f"{name}/penalty": float(self.penalty(name, trained(network))) for name, network in ready.items()}


class Added:
    """A term in a step's terms, as a handle that takes it off again."""

    def __init__(self, terms: dict[str, Any], label: str) -> None:
        self._terms, self._label = terms, label

    def remove(self) -> None:
        """Take the term off."""
        self._terms.pop(self._label, None)


def trained(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters by name that nobody froze."""
    return {name: parameter for name, parameter in named_parameters(network).items() if parameter.requires_grad}


def total(values: list[Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of 0-D tensors; 0 on the parameters' device where there is none."""
    return torch.stack(values).sum() if values else next(iter(parameters.values())).new_zeros(())
