"""Shrink and perturb: scale the weights down and add a little of a fresh initialisation.

Ash & Adams 2020, *On Warm-Starting Neural Network Training*, arXiv 1910.08475; every step (soft): Juliani & Ash 2024,
arXiv 2405.19153; with fresh heads: Schwarzer et al. 2023, *Bigger, Better, Faster*, arXiv 2305.19452.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.isolation import named_modules, named_parameters
from plasticity.structure.layers import NORM_MODULES
from plasticity.structure.optimizers import all_parameters
from plasticity.surgery.derived import renew_derived_
from plasticity.surgery.optimizer_state import forget_
from plasticity.surgery.origin import Origins, fresh_values

from .reset import copy_to_target_, modules_of_last, require_alike
from .rules import require
from .scheduled import Scheduled
from .trigger import Trigger


@torch.no_grad()
def shrink_perturb_(
    parameters: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    shrink: float,
    perturb: float,
    norms: Iterable[str] = (),
) -> None:
    """theta <- shrink * theta + perturb * fresh, in place; ``norms`` are pulled to ``fresh`` by 1 - shrink instead.

    ``fresh``: name -> a new draw from the parameter's initial distribution, of its shape; parameters without one stay.
    """
    pulled = set(norms)
    for scale, names in (
        (perturb, [n for n in fresh if n not in pulled]),
        (1 - shrink, [n for n in fresh if n in pulled]),
    ):
        if names:
            tensors = [parameters[n] for n in names]
            torch._foreach_mul_(tensors, shrink)
            torch._foreach_add_(tensors, [fresh[n] for n in names], alpha=scale)


def norm_parameters(network: nn.Module) -> set[str]:
    """Return the names of the gains and biases of normalisation layers."""
    modules = named_modules(network)
    return {n for n in named_parameters(network) if isinstance(modules[n.rpartition(".")[0]], NORM_MODULES)}


@dataclass
class ShrinkPerturb(Scheduled):
    """Shrink all weights and mix in fresh ones.

    theta <- shrink * theta + perturb * theta', theta' drawn anew from each layer's own initialiser every time.

    ``hard``: shrink 0.8 every 200 000 environment steps; set ``at`` to the switches of a sequence of tasks. ``soft``:
    0.999999 after every gradient step, a weight decay towards fresh noise. ``bbf``: 0.5 every 40 000 gradient steps up
    to 100 000 (as remembered), and the last two layers redrawn whole; BBF also anneals n-step returns and the
    discount after each: ``--horizon``. Drawing anew is the point: pulling towards one saved copy is L2 regularisation
    to the initial weights, and perturbs nothing.
    """

    NAME: ClassVar[str] = "shrink_perturb"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "hard": {"shrink": 0.8, "every": 200_000, "clock": "env_steps", "clear": True, "sync_targets": True},
        "soft": {"shrink": 0.999999, "every": 1, "clock": "gradient_steps", "clear": False, "sync_targets": False},
        "bbf": {
            "shrink": 0.5,
            "every": 40_000,
            "stop": 100_000,
            "clock": "gradient_steps",
            "layers": 2,
            "clear": True,
            "sync_targets": True,
        },
    }

    preset: Literal["hard", "soft", "bbf"] = "hard"
    """Defaults of the options that are None: seldom and strong, a little after every gradient step, or as in BBF."""
    shrink: float | None = None
    """Factor of the weights, in [0, 1]; 0.5 to 0.8 if hard, just below 1 if soft."""
    perturb: float | None = None
    """Factor of the fresh weights; None: 1 - shrink."""
    layers: int | None = None
    """Number of weight layers, counted from the output, that are redrawn whole; None: none, or as the preset says."""
    norms: bool = True
    """Pull gains and biases of norms to their first values (1 and 0) by 1 - shrink; otherwise they stay."""
    clear: bool | None = None
    """Clear the optimizer's state of the changed weights. hard: yes, as in DrM's code: the moments were gathered at
    weights that are gone. soft: no, every step of Adam would be its first, of full size."""
    sync_targets: bool | None = None
    """Copy the changed networks to their targets; otherwise these follow slowly. hard: yes, as after a
    reset: values of the old network are no target for the new one. soft: no."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.shrink is not None
        self.perturb = 1 - self.shrink if self.perturb is None else self.perturb
        self.soft = self.every == 1 and self.clock == "gradient_steps"
        checks = {
            "shrink in [0, 1]": 0 <= self.shrink <= 1,
            "perturb >= 0": self.perturb >= 0,
            "layers >= 1, or None": self.layers is None or self.layers >= 1,
            "no layers after every gradient step": not (self.soft and self.layers),
            "clear=False after every gradient step": not (self.soft and self.clear),
        }
        require("ShrinkPerturb", checks, self)
        self.origins = Origins()
        self._steps: dict[str, int] = {}

    def on_train_start(self, ctx: Context) -> None:
        """Remember how the layers were initialised; ValueError for a target that is no copy of its network."""
        super().on_train_start(ctx)
        self.origins, self._steps = Origins.of(self._networks), {}
        for name, network in self._networks.items():
            if self.sync_targets and name in ctx.targets:
                require_alike(name, network, ctx.targets[name])
        if self.soft:
            for key, optimizer in ctx.optimizers.items():
                self.hook(optimizer.register_step_post_hook(self.named(self._softly(key))))

    def apply(self, ctx: Context) -> None:
        """Shrink and perturb all chosen networks."""
        if self.soft:
            return  # done by the hook of each optimizer
        details = {}
        for name, network in self._networks.items():
            change = partial(self._change, name, network, ctx.optimizers.values())
            changed, moved = self.measured(name, change)
            details[name] = {"tensors": len(changed), "function_change": moved}
        for name, network in self._networks.items():
            if self.sync_targets and name in ctx.targets:
                copy_to_target_(ctx.targets[name], network)
        self.report(ctx, {**self.occasion(), "networks": details}, applications=1)

    @torch.no_grad()
    def _change(
        self, name: str, network: nn.Module, optimizers: Iterable[Optimizer], only: set[int] | None = None
    ) -> list[str]:
        """Shrink and perturb the trainable parameters of a network, or those whose ids are in ``only``."""
        assert self.shrink is not None
        assert self.perturb is not None
        pulled = norm_parameters(network)

        def chosen(parameter_name: str, parameter: Tensor) -> bool:
            return (only is None or id(parameter) in only) and (self.norms or parameter_name not in pulled)

        parameters = named_parameters(network)
        fresh = fresh_values(network, self.origins[name], self.generator, chosen)
        heads = modules_of_last(self, name, network, self.layers) if self.layers else set()
        redrawn = {n: value for n, value in fresh.items() if n.rpartition(".")[0] in heads}
        rest = {n: value for n, value in fresh.items() if n not in redrawn}
        shrink_perturb_(parameters, rest, self.shrink, self.perturb, pulled)
        for head, value in redrawn.items():
            parameters[head].copy_(value)
        if redrawn:
            whole = {parameters[head]: torch.ones_like(value, dtype=torch.bool) for head, value in redrawn.items()}
            self._ctx.redrawn(whole)
        if not self.soft:  # after every step, the next pass in training mode does it
            renew_derived_(network)
        for changed in fresh if self.clear else ():
            forget_(optimizers, parameters[changed])
        return list(fresh)

    def _softly(self, key: str) -> Any:
        """Return the hook that follows every step of one optimizer, whose parameters it changes."""
        trigger = Trigger(every=1, start=self.start, stop=self.stop)

        def hook(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            self._steps[key] = self._steps.get(key, 0) + 1
            if not trigger.due(self._steps[key]):
                return
            only = {id(parameter) for parameter in all_parameters(optimizer)}
            changed = {name: self._change(name, net, (), only) for name, net in self._networks.items()}
            for name in changed if self.sync_targets else ():
                if changed[name] and name in self._ctx.targets:
                    copy_to_target_(self._ctx.targets[name], self._networks[name])
            self._ctx.edited()
            if any(changed.values()) and not self.counts:  # once: an event per step would say nothing more
                self.report(self._ctx, {"optimizer": key, "because": "every gradient step from now on"}, applications=1)

        return hook

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and how the parameters began."""
        return {**super().state_dict(), "origins": self.origins.state_dict(), "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.origins.load_state_dict(state["origins"])
        self._steps = dict(state["steps"])
