"""Continuous continual backprop: move every neuron towards a fresh one, the useless ones faster.

CCBP, submission UJqXhFFzKu to ICLR 2026 (openreview.net/forum?id=UJqXhFFzKu; neither arXiv number nor doi); code of a
third party: ccbp-pytorch 0.0.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plasticity.callback import Context
from plasticity.isolation import unwrap
from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.structure.layers import Layer, weight_rows
from plasticity.structure.slices import Slice
from plasticity.structure.wirings import Wiring
from plasticity.surgery.entries import by_group, spread
from plasticity.surgery.initialisers import bias_of, weight_layers, weight_of
from plasticity.surgery.optimizer_state import entry_state
from plasticity.surgery.permission import refusals
from plasticity.surgery.unit_weights import scale_columns_
from plasticity.value_types import require

from .unit_signals import MomentsProbe, unit_moments
from .units import UnitMethod


def reset_shares(utility: Tensor, rate: float, steepness: float) -> Tensor:
    """Return how far each neuron moves towards a fresh one: rate * sigmoid(-steepness (u - 1)), (neurons,).

    ``utility``: relative to the layer's mean, (neurons,).
    """
    return rate * torch.sigmoid(-steepness * (utility - 1))


@dataclass
class ContinuousBackprop(UnitMethod):
    """Mix fresh neurons into all, by how little each is used.

    alpha = rate * sigmoid(-steepness (u - 1)), u a running average of the utility over its mean in the layer, 1 at
    first. Incoming weights move by alpha towards a fresh draw, the bias towards its first value, outgoing weights
    shrink by 1 - alpha, u moves towards 1. Neurons need not be mature, and the optimizer's state stays.

    ``paper``: the utility is mean |h|, neurons move after every step. ``official`` (ccbp-pytorch): it is the mean
    |gradient| of the incoming weights plus that of the bias, and neurons move after every 1000th step. The package also
    has a mode with whole replacements: that is ``cbp``.

    Compared with the package, ten steps of Adam with a move after each, and with one after every third, the same
    draws: all weights, biases and utilities are the same in float64. Differences: the package finds consumers by the
    order of layers, and moves output layers unless their name is head or classifier; here they stay.

    An event is logged at the first move, and ``mean_share`` and ``function_change`` of one move every ``log_every``
    steps. Updates stay compiled.
    """

    NAME: ClassVar[str] = "ccbp"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": {"utility": "activity", "every": 1, "moments": False, "init": "he_normal"},
        "official": {"utility": "gradient", "every": 1000, "moments": False, "init": "he_normal"},
    }

    KEPT: ClassVar[frozenset[str]] = frozenset({"bias"})
    FRESH: ClassVar = {"utility": 1.0}

    rate: float = 0.015
    """Largest share of a fresh neuron in a step, in [0, 1]."""
    steepness: float = 16.0
    """How sharply neurons below and above the mean utility are told apart."""
    decay: float = 0.99
    """Decay of the running average of the utility, in [0, 1)."""
    utility: Literal["activity", "gradient"] | None = None
    """The measure of use: mean |h|, or mean |gradient| of the incoming weights."""
    every: int | None = None
    """Steps between two moves."""
    moments: bool | None = None
    """Shrink the optimizer's averages of the incoming weights and bias by 1 - alpha."""
    log_every: int = 1000
    """Steps between two logs, each at the next move; 0 for never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "0 <= rate <= 1": 0 <= self.rate <= 1,
            "steepness > 0": self.steepness > 0,
            "0 <= decay < 1": 0 <= self.decay < 1,
            "every >= 1": (self.every or 0) >= 1,
            "log_every >= 0": self.log_every >= 0,
        }
        require("ContinuousBackprop", rules, self)

    def probes(self) -> dict[str, Probe]:
        """Look at means of activations."""
        return {"moments": MomentsProbe()}

    def earliest(self) -> int:
        """Return the first step after which neurons move."""
        every = self.every or 1
        return -(-max(self.start, 1) // every) * every

    def on_train_start(self, ctx: Context) -> None:
        """Start to watch, and keep the first biases."""
        super().on_train_start(ctx)
        for network, module in self._networks.items():
            for layer, part in weight_layers(unwrap(module)):
                bias = None if isinstance(part, Slice) else bias_of(part)
                if bias is not None:
                    self.units[network][layer] = {"bias": bias.detach().double().cpu().clone()}

    @torch.no_grad()
    def take(self, network: str, reading: Reading, step: int) -> None:
        """Move the neurons of one network where it is due."""
        shares, every = self._shares(network, reading), self.every or 1
        if step % every or not shares:
            return

        def move() -> None:
            for layer, alpha in shares.items():
                self._move(network, self.wired(network), self.wired(network).layers[layer], alpha)
                self.units[network][layer]["utility"].lerp_(torch.ones_like(alpha), alpha)
            self._ctx.edited()

        logs = self.log_every and step // self.log_every > (step - every) // self.log_every
        first = step - every < max(self.start, 1)
        if not logs and not first and self.counts:
            move()
            return
        mean = float(torch.cat(list(shares.values())).mean())
        _, moved = self.alter(self._ctx, network, move)
        if logs:
            self.log(self._ctx, {f"{network}/mean_share": mean, **self.costs()})
        if not self.counts:
            because = "every gradient step from now on" if every == 1 else f"every {every} gradient steps from now on"
            told = {"network": network, "because": because, "mean_share": mean, "function_change": moved}
            self.report(self._ctx, told, applications=1)

    def _shares(self, network: str, reading: Reading) -> dict[str, Tensor]:
        """Take in the utilities of a step; return layer -> how far each neuron is to move, (neurons,)."""
        wired, shares = self.wired(network), {}
        for name, scores in reading.scores["moments"].items():
            layer = wired.layers[name]
            if refusals(wired, name) or isinstance(layer.module, Slice) or not self.rate:
                continue
            now = unit_moments(scores).magnitude if self.utility == "activity" else gradient_magnitude(layer)
            if now is None:
                continue
            known = self.units[network].setdefault(name, {})
            known.setdefault("utility", torch.ones_like(now)).lerp_(now / now.mean().clamp_min(1e-8), 1 - self.decay)
            shares[name] = reset_shares(known["utility"], self.rate, self.steepness)
        return shares

    def _move(self, network: str, wired: Wiring, layer: Layer, alpha: Tensor) -> None:
        fresh = self.initialiser(network, layer.name, layer.module)
        weight, bias = weight_of(layer.module), bias_of(layer.module)
        rows = by_group(layer.module, weight)
        shares = spread(rows, alpha.to(weight.dtype), 1)
        rows.lerp_(by_group(layer.module, fresh.weight(self.generator)), shares)
        first = self.units[network][layer.name].get("bias")
        if bias is not None and first is not None and first.shape == bias.shape:
            bias.lerp_(first.to(bias), alpha.to(bias))
        scale_columns_(wired, layer, 1 - alpha)
        for optimizer in self._optimizers if self.moments else ():
            for parameter in (weight, bias) if bias is not None else (weight,):
                for value in entry_state(optimizer, parameter).values():
                    own = by_group(layer.module, value) if value.dim() > 1 else value
                    keep = 1 - alpha.to(value.device, value.dtype)
                    own *= spread(own, keep, 1) if value.dim() > 1 else keep


def gradient_magnitude(layer: Layer) -> Tensor | None:
    """Return mean |dL/dw| over the incoming weights plus |dL/db| of every neuron; None without gradients."""
    weight, bias = weight_of(layer.module), bias_of(layer.module)
    if weight.grad is None:
        return None
    found = weight_rows(layer.module, weight.grad.abs()).double().mean(1).cpu()
    return found if bias is None or bias.grad is None else found + bias.grad.abs().double().cpu()
