"""Shrink and perturb: scale the weights down and add a little of a fresh initialisation.

Ash & Adams 2020, *On Warm-Starting Neural Network Training*, arXiv 1910.08475; every step (soft): Juliani & Ash 2024,
arXiv 2405.19153; with fresh heads: Schwarzer et al. 2023, *Bigger, Better, Faster*, arXiv 2305.19452.
"""

from __future__ import annotations

import math
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
from plasticity.surgery.optimizer_state import forget_
from plasticity.surgery.origin import fresh_values
from plasticity.value_types import require

from .reset import copy_to_target_, modules_of_last
from .trigger import Trigger
from .whole import WholeNetwork

SOFT_LOG_EVERY = 1000
"""Steps between two measurements of the function change, where a method acts after every one."""


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
class ShrinkPerturb(WholeNetwork):
    """Shrink all weights and mix in fresh ones.

    theta <- shrink * theta + perturb * theta', theta' drawn anew from each layer's own initialiser every time.

    ``hard``: shrink 0.8 every 200 000 environment steps; set ``at`` to the switches of a sequence of tasks. ``soft``:
    0.999999 after every gradient step, a weight decay towards fresh noise; the function change of one step is logged
    every 1000. ``bbf``: 0.5 every 40 000 gradient steps, and the last two layers redrawn whole, whose optimizer state
    alone is dropped. In the code's BBF.gin that is every 20 000 agent steps of two updates, the last at 80 000 of
    100 000: ``stop`` here, to be set for other lengths. There, targets shrink too, with draws of their own; here they
    become copies. BBF also anneals n-step returns and the discount after each: ``--horizon``.

    Drawing anew is the point: pulling towards one saved copy is L2 regularisation to the initial weights, and perturbs
    nothing. Compared with the S&P in the code of L2 Init (skumar9876/L2_Init), ten soft steps of Adam with the same
    draws: weights agree to 2e-16; its ``shrink`` is 1 - shrink.
    """

    NAME: ClassVar[str] = "shrink_perturb"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "hard": {"shrink": 0.8, "every": 200_000, "clock": "env_steps", "clear": True, "sync_targets": True},
        "soft": {"shrink": 0.999999, "every": 1, "clock": "gradient_steps", "clear": False, "sync_targets": False},
        "bbf": {
            "shrink": 0.5,
            "every": 40_000,
            "stop": 160_000,
            "clock": "gradient_steps",
            "layers": 2,
            "clear": False,
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
        self._steps: dict[str, int] = {}

    def prepare(self, ctx: Context) -> None:
        """Hook every step where it is soft."""
        super().prepare(ctx)
        self._steps = {}
        for key, optimizer in ctx.optimizers.items() if self.soft else ():
            self.hook(optimizer.register_step_post_hook(self.named(self._softly(key))))

    def apply(self, ctx: Context) -> None:
        """Shrink and perturb all chosen networks; where it is soft, the hook of each optimizer does."""
        if not self.soft:
            super().apply(ctx)

    def takes(self, name: str, parameter: Tensor, module: nn.Module) -> bool:
        """Take all parameters, or leave those of norms alone."""
        return self.norms or not isinstance(module, NORM_MODULES)

    @torch.no_grad()
    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Mix fresh weights in, and redraw the last layers."""
        assert self.shrink is not None
        assert self.perturb is not None
        module = self._networks[network]
        fresh = fresh_values(module, self.origins[network], self.generator, lambda name, _: name in parameters)
        heads = modules_of_last(self, network, module, self.layers) if self.layers else set()
        redrawn = {n: value for n, value in fresh.items() if n.rpartition(".")[0] in heads}
        rest = {n: value for n, value in fresh.items() if n not in redrawn}
        shrink_perturb_(parameters, rest, self.shrink, self.perturb, norm_parameters(module))
        for head, value in redrawn.items():
            parameters[head].copy_(value)
            forget_(ctx.optimizers.values(), parameters[head])
        if redrawn:
            whole = {parameters[head]: torch.ones_like(value, dtype=torch.bool) for head, value in redrawn.items()}
            ctx.redrawn(whole)
        return {}

    def _softly(self, key: str) -> Any:
        """Return the hook that follows every step of one optimizer, whose parameters it changes."""
        trigger = Trigger(every=1, start=self.start, stop=self.stop)

        def hook(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            self._steps[key] = self._steps.get(key, 0) + 1
            if not trigger.due(self._steps[key]):
                return
            only, moved = {id(parameter) for parameter in all_parameters(optimizer)}, dict[str, float]()
            for name in self._networks:
                own = {n: p for n, p in self.trained(self._ctx, name).items() if id(p) in only}
                if own:  # the next pass in training mode renews what is derived
                    moved[name] = self._mix(key, name, own)
            for name in moved if self.sync_targets else ():
                if name in self._ctx.targets:
                    copy_to_target_(self._ctx.targets[name], self._networks[name])
            self._ctx.edited()
            if moved and not self.counts:  # once: an event per step would say nothing more
                told: dict[str, Any] = {"optimizer": key, "because": "every gradient step from now on"}
                told |= {"networks": {name: {"function_change": change} for name, change in moved.items()}}
                self.report(self._ctx, told, applications=1)

        return hook

    def _mix(self, key: str, name: str, parameters: Mapping[str, Tensor]) -> float:
        """Shrink and perturb one network after one step; return the function change, NaN where it is not measured."""
        edit = partial(self.edit_, self._ctx, name, parameters)
        if self._steps[key] > max(self.start, 1) and self._steps[key] % SOFT_LOG_EVERY:
            edit()
            return math.nan
        return self.alter(self._ctx, name, edit)[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the steps of each optimizer, too."""
        return {**super().state_dict(), "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self._steps = dict(state["steps"])
