"""The base of penalties on features and outputs: a number that depends on a batch is added to the loss."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules, unseen, unwrap

from .every_step import EveryStep
from .layer_depths import KnowsDepths, LayerDepths
from .weight_penalty import Added

Run = Callable[[nn.Module, Any], Tensor]
"""``run(module, batch)``: how an agent runs a network, a copy or a target of it, on a batch."""


@dataclass
class FeaturePenalty(KnowsDepths, EveryStep):
    """A penalty on what a network computes: :meth:`penalty` is times ``coef`` a term of the loss that trains it.

    It takes a forward pass of its own, which observers do not count. The term is part of compiled updates, clipped with
    the loss, and logged as ``losses/<method>_<network>``. Needs an agent that lends gradient steps and ``forward``.
    """

    KIND: ClassVar[str] = "penalty"
    NEEDS: ClassVar[tuple[str, ...]] = ("networks", "optimizers", "steps", "forward")

    coef: float = 1e-2
    """Weight of the penalty; 0 switches it off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.run: Mapping[str, Run] = {}
        self._modules: dict[str, list[int]] = {}

    def rules(self) -> dict[str, bool]:
        """Return the rule that every penalty has."""
        return {"coef >= 0": self.coef >= 0}

    def on_train_start(self, ctx: Context) -> None:
        """Add the term of every network; ValueError for a run that lends no gradient steps, or no way to run them."""
        self.run = ctx.forward
        super().on_train_start(ctx)

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Add the term to the step that trains the network."""
        self.find_depths(name, network)
        self._modules[name] = [id(module) for module in network.modules()]
        self.begin(ctx, name, network)
        if self.coef:
            self.add(ctx, name)

    def add(self, ctx: Context, name: str) -> None:
        """Add the term of a network, in place of the one that it has."""
        step, label = ctx.step_of(name), self.label(name)
        step.terms.pop(label, None)
        step.add(label, partial(self._term, name), reads=self.reads(ctx, name), draw=self.draw(ctx, name))
        self.hook(Added(step.terms, label))

    def on_update_start(self, ctx: Context) -> None:
        """Begin anew with a network whose modules were replaced, such as by a plasticity injection."""
        super().on_update_start(ctx)
        for name, network in self.chosen.items():
            modules = [id(module) for module in network.modules()]
            if modules != self._modules[name]:
                self._modules[name] = modules
                self.begin(ctx, name, network)
                if self.label(name) in ctx.step_of(name).terms:
                    self.add(ctx, name)

    def label(self, name: str) -> str:
        """Return the name of a network's term."""
        return f"{self.NAME}_{name}"

    def begin(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Remember what the penalty needs of a network at the start."""

    def reads(self, ctx: Context, name: str) -> dict[str, nn.Module] | None:
        """Return further modules that the term of a network reads, by name."""
        return None

    def draw(self, ctx: Context, name: str) -> Callable[[], Any] | None:
        """Return what draws a second batch for the term of a network."""
        return None

    def penalty(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        """Return the penalty, 0-D, of a network on a batch, and on what was drawn."""
        raise NotImplementedError

    def weight(self, name: str) -> Tensor | float:
        """Return the coefficient of a network's penalty."""
        return self.coef

    def features(self, name: str, network: nn.Module, batch: Any, depths: LayerDepths | None = None) -> Tensor:
        """Return the inputs of the output layers, (batch, features), side by side where these differ."""
        with captured(network, inputs=(depths or self.depths[name]).outputs) as found:
            self.run[name](network, batch)
        return torch.cat([one.flatten(1) for one in distinct(found.values())], -1)

    def _term(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        with unseen():
            return self.weight(name) * self.penalty(name, networks, batch, *drawn)

    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return the penalty of every network in the last update, not multiplied by its coefficient."""
        terms = {name: metrics.get(self.label(name)) for name in self.chosen}
        return {f"{n}/penalty": float(term / self.weight(n)) for n, term in terms.items() if term is not None}


@contextmanager
def captured(
    network: nn.Module, inputs: Collection[str] = (), outputs: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """Within, note what modules of a network, by name, are given first, or return, in its next pass."""
    modules, found, handles = named_modules(unwrap(network)), dict[str, Any](), []
    if parts := [name for name in (*inputs, *outputs) if name not in modules]:
        raise ValueError(f"features of {', '.join(parts)} cannot be penalised: these are parts of a parameter")
    for name in inputs:
        handles.append(modules[name].register_forward_pre_hook(lambda _, args, n=name: found.update({n: args[0]})))
    for name in outputs:
        handles.append(modules[name].register_forward_hook(lambda _, args, out, n=name: found.update({n: out})))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return each tensor once: two output layers on the same features have the same input."""
    return list({id(tensor): tensor for tensor in tensors}.values())
