"""The base of methods that edit all weights of a network at once, when a trigger says so, each tensor once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.isolation import named_modules, named_parameters
from plasticity.structure.optimizers import all_parameters
from plasticity.surgery.derived import renew_derived_
from plasticity.surgery.optimizer_state import forget_
from plasticity.surgery.origin import Origins

from .reset import copy_to_target_, require_alike
from .scheduled import Scheduled

RESET_SCHEDULE = {"every": 200_000, "clock": "env_steps"}
"""The schedule of Nikishin et al. 2022 for SAC, where a method's own paper applies it at boundaries between tasks."""


@dataclass
class WholeNetwork(Scheduled):
    """An edit of the weights of whole networks: a subclass says which, in :meth:`takes`, and how, in :meth:`edit_`.

    A layer that two networks share is edited once. What the optimizer remembers of the edited tensors is dropped with
    ``clear``; targets become copies with ``sync_targets``. Every application is an event with the function change.
    """

    clear: bool | None = None
    """True if the optimizer forgets what it knows of the edited tensors, step counter included."""
    sync_targets: bool | None = None
    """True if target networks become copies of the edited ones; if not, they follow slowly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.origins = Origins()
        """Network -> how its parameters were drawn."""

    def prepare(self, ctx: Context) -> None:
        """Remember how the layers were initialised; ValueError for a target that is no copy of its network."""
        self.origins = Origins.of(self._networks)
        for name, network in self._networks.items():
            if self.sync_targets and name in ctx.targets:
                require_alike(name, network, ctx.targets[name])
        if type(self).follow_ is not WholeNetwork.follow_:
            self._hook_every_step(ctx)

    def follow_(self, network: str, parameters: Mapping[str, Tensor]) -> None:
        """Run after every step of an optimizer, without gradients, with those parameters of a network it trains."""

    def takes(self, name: str, parameter: Tensor, module: nn.Module) -> bool:
        """Return whether the method edits a parameter, ``name`` of the network, that ``module`` holds."""
        return True

    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Edit the parameters of one network in place, and return details for the event."""
        raise NotImplementedError

    def apply(self, ctx: Context) -> None:
        """Edit the networks."""
        details, done = {}, set[int]()
        for name, network in self._networks.items():
            parameters = self.trained(ctx, name, done)
            done |= set(map(id, parameters.values()))
            found, moved = self.alter(ctx, name, partial(self._change, ctx, name, network, parameters))
            details[name] = {"tensors": len(parameters), **found, "function_change": moved}
        for name, network in self._networks.items() if self.sync_targets else ():
            if name in ctx.targets:
                copy_to_target_(ctx.targets[name], network)
        self.report(ctx, {**self.occasion(), "networks": details}, applications=1)

    @torch.no_grad()
    def _change(self, ctx: Context, name: str, network: nn.Module, parameters: Mapping[str, Tensor]) -> Any:
        found = self.edit_(ctx, name, parameters)
        renew_derived_(network)
        for parameter in parameters.values() if self.clear else ():
            forget_(ctx.optimizers.values(), parameter)
        return found

    def trained(self, ctx: Context, network: str, done: Set[int] = frozenset()) -> dict[str, Tensor]:
        """Return the parameters that the method takes, by name: those that an optimizer trains, not in ``done``."""
        modules = named_modules(self._networks[network])
        held = {id(p) for optimizer in ctx.optimizers.values() for p in all_parameters(optimizer)} - done
        return {
            name: parameter
            for name, parameter in named_parameters(self._networks[network]).items()
            if parameter.requires_grad
            and id(parameter) in held
            and self.takes(name, parameter, modules[name.rpartition(".")[0]])
        }

    def _hook_every_step(self, ctx: Context) -> None:
        def follow(optimizer: Optimizer) -> Callable[..., None]:
            known: dict[tuple[int, ...], dict[str, dict[str, Tensor]]] = {}

            def hook(*_: Any) -> None:
                key = tuple(map(id, all_parameters(optimizer)))  # a method may have added parameters since
                if key not in known:
                    own = set(key)
                    every = {name: self.trained(ctx, name) for name in self._networks}
                    mine = {name: {n: p for n, p in ps.items() if id(p) in own} for name, ps in every.items()}
                    known.clear()
                    known[key] = {name: parameters for name, parameters in mine.items() if parameters}
                for name, parameters in known[key].items():
                    self.follow_(name, parameters)

            return torch.no_grad()(hook)

        for optimizer in {id(o): o for o in ctx.optimizers.values()}.values():
            self.hook(optimizer.register_step_post_hook(self.named(follow(optimizer))))

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and how the parameters began."""
        return {**super().state_dict(), "origins": self.origins.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.origins.load_state_dict(state["origins"])
