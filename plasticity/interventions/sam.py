"""Sharpness-aware minimisation: step with the gradient of the worst point nearby.

Foret, Kleiner, Mobahi & Neyshabur 2021, *Sharpness-Aware Minimization for Efficiently Improving Generalization*,
arXiv 2010.01412; for plasticity in RL: Lee et al. 2023 (PLASTIC), arXiv 2306.10711.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.isolation import unseen

from .every_step import EveryStep
from .weight_penalty import trained


@torch.no_grad()
def climb_(parameters: list[Tensor], gradients: list[Tensor], rho: float) -> Tensor:
    """Move parameters in place by rho * g / ||g||, the norm over all of them; return ||g||, 0-D. Zeros stay."""
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    scale = torch.where(norm > 0, rho / norm, 0.0)
    torch._foreach_add_(parameters, [gradient * scale for gradient in gradients])
    return norm


@dataclass
class SAM(EveryStep):
    """Step with the gradient of the worst point nearby.

    In every step: g = dL/dtheta; the gradient at theta + rho g / ||g|| is what the optimizer steps with, at theta. Flat
    minima are left less far behind when targets move.

    Each step takes a second forward and backward pass, eagerly: the ascent is on the loss without terms of other
    methods, the descent on all of it, compiled where it would be. Defaults: rho 0.1 (PLASTIC); ``only`` with
    ``encoder.*`` acts on the encoder alone, as PLASTIC does. Logged: ``<optimizer>/sharpness``, ||g|| rho, the
    first-order rise of the loss. PLASTIC's code was not to be had; compared with davda54/sam, which many use, ten steps
    of Adam: the weights agree to 1e-13. Source: Foret et al. 2021, arXiv 2010.01412, algorithm 1.
    """

    NAME: ClassVar[str] = "sam"
    EAGER: ClassVar[str] = "the ascent of every step"
    KIND: ClassVar[str] = "optimizer"
    NEEDS: ClassVar[tuple[str, ...]] = ("networks", "optimizers", "steps")
    STATE: ClassVar[tuple[str, ...]] = (*EveryStep.STATE, "norms")

    rho: float = 0.1
    """Length of the ascent step; 0 switches it off."""
    only: tuple[str, ...] = ()
    """Globs of the parameters that are moved, such as "encoder.*"; empty for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms: dict[str, Tensor] = {}
        """Step -> ||g|| of its last ascent."""
        self._names: dict[str, list[str]] = {}

    def rules(self) -> dict[str, bool]:
        """Return the rule of the settings."""
        return {"rho >= 0": self.rho >= 0}

    def on_train_start(self, ctx: Context) -> None:
        """Put an ascent in front of every gradient step that trains a chosen network."""
        self._names = {}
        super().on_train_start(ctx)

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Put the ascent in front of the network's gradient step; networks of one step climb together."""
        step, optimizer = ctx.step_of(name), ctx.optimizer_of(name)
        key = next(key for key, one in ctx.steps.items() if one is step)
        known = self._names.setdefault(key, [])
        known.append(name)
        if self.rho and len(known) == 1:
            climbing = Climbing(step, self.named(partial(self._climb, ctx, key)))
            self.hook(Replaced(ctx.steps, key, climbing))  # type: ignore[arg-type]
            self.hook(optimizer.register_step_pre_hook(self.named(climbing.descend)))

    def _climb(self, ctx: Context, key: str, step: Any, inputs: tuple) -> list[tuple[Tensor, Tensor]]:
        """Move the weights, and return them with what they were."""
        found = [trained(self.chosen[name]).items() for name in self._names[key]]
        moved = [p for items in found for n, p in items if not self.only or any(fnmatchcase(n, g) for g in self.only)]
        with unseen(), torch.enable_grad():
            gradients = torch.autograd.grad(step.evaluate(*inputs), moved, allow_unused=True)
        pairs = [(p, g) for p, g in zip(moved, gradients, strict=True) if g is not None]
        before = [(p, p.detach().clone()) for p, _ in pairs]
        self.norms[key] = climb_([p for p, _ in pairs], [g for _, g in pairs], self.rho)
        ctx.edited()  # the ascent of a sparse network stays within it
        return before

    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return the rise of the loss that the last ascent of every step had to expect."""
        return {f"{key}/sharpness": self.rho * float(norm) for key, norm in self.norms.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; runs of 0.2.0 have no norms."""
        super().load_state_dict({"norms": {}, **state})


class Climbing:
    """A gradient step that climbs first; everything else is the step's own."""

    def __init__(self, step: Any, climb: Any) -> None:
        self.__dict__.update(step=step, climb=climb, before=[])

    def __call__(self, *inputs: Any, **more: Any) -> dict[str, Tensor]:
        self.__dict__["before"] = self.climb(self.step, inputs)
        return self.step(*inputs, **more)

    @torch.no_grad()
    def descend(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Go back to where the ascent began, right before the optimizer steps."""
        for parameter, value in self.before:
            parameter.copy_(value)
        self.__dict__["before"] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["step"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.step, name, value)


class Replaced:
    """An entry of a mapping that was replaced, as a handle that puts the old one back."""

    def __init__(self, mapping: MutableMapping[str, Any], key: str, value: Any) -> None:
        self._mapping, self._key, self._before = mapping, key, mapping[key]
        mapping[key] = value

    def remove(self) -> None:
        """Put back what was there."""
        self._mapping[self._key] = self._before
