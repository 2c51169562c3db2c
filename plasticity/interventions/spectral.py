"""Spectral regularisation: keep the largest singular value of every layer at 1.

Lewandowski, Bortkiewicz, Kumar, Gyoergy, Schuurmans, Ostaszewski & Machado 2024, *Learning Continually by Spectral
Regularization*, arXiv 2406.06811. A checked implementation for supervised learning: Felix-Zhenghao/rigorous-plasticity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.structure.layers import weight_rows

from .every_step import copy_into_, layers_of
from .intervention import numbers_in
from .shrink_perturb import norm_parameters
from .weight_penalty import WeightPenalty, total


@torch.no_grad()
def power_iteration_(rows: Tensor, u: Tensor, v: Tensor, num: int = 1) -> None:
    """Move u (neurons,) and v (inputs,) in place towards the first singular vectors of a weight (neurons, inputs)."""
    rows = rows.clone()  # the last bits of these products depend on where the weight lies in memory
    for _ in range(num):
        u.copy_(F.normalize(rows @ v, dim=0, eps=1e-12))
        v.copy_(F.normalize(rows.T @ u, dim=0, eps=1e-12))


@dataclass
class SpectralRegularization(WeightPenalty):
    """Keep the largest singular value of every weight at 1.

    Biases are kept at 0 and gains of norms at 1: coef * [sum over weights (sigma_1^power - 1)^2 + sum over biases
    ||b||^(2 power) + sum over gains (g - 1)^2] is added to the loss. sigma_1 = u^T W v; u and v take ``iterations``
    steps of the power method after every step of the optimizer, without gradients, and are kept in checkpoints, so that
    a resumed run goes on to the same bits.

    Defaults: power 2, coef 1e-4, one iteration (paper; rigorous-plasticity). Differences: there, u and v move when the
    penalty is computed, which is the same sequence: ten steps of Adam from the same vectors are equal to the bit. A
    convolution counts as a matrix (channels, all of its inputs). Source: Lewandowski et al. 2024, arXiv 2406.06811,
    section 4.
    """

    NAME: ClassVar[str] = "spectral"

    coef: float = 1e-4
    """Weight of the penalty; 0 switches it off."""
    power: int = 2
    """Power of the singular value, and half that of the norm of a bias; k in the paper."""
    iterations: int = 1
    """Iterations of the power method per step of the optimizer."""
    biases: bool = True
    """Count biases and gains too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vectors: dict[str, dict[str, dict[str, Tensor]]] = {}

    def rules(self) -> dict[str, bool]:
        """Return the rules of the settings."""
        return {**super().rules(), "power >= 1": self.power >= 1, "iterations >= 1": self.iterations >= 1}

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Add the term, and let the vectors follow the weights."""
        super().attach(ctx, name, network)
        if self.coef:
            self.hook(ctx.optimizer_of(name).register_step_post_hook(self.named(partial(self._iterate, name))))

    def begin(self, name: str, network: nn.Module) -> None:
        """Draw the vectors, and take their first step."""
        self.vectors[name] = {}
        for layer, module in layers_of(network).items():
            if isinstance(weight := module._parameters.get("weight"), Tensor):
                rows = weight_rows(module, weight)
                u, v = (torch.randn(size, generator=self.generator, device="cpu") for size in rows.shape)
                self.vectors[name][layer] = {"u": u.to(rows), "v": v.to(rows)}
        self._iterate(name)

    def _iterate(self, name: str, *_: Optimizer | tuple | dict) -> None:
        modules = layers_of(self.chosen[name])
        for layer, found in self.vectors[name].items():
            weight = modules[layer]._parameters.get("weight") if layer in modules else None
            if isinstance(weight, Tensor):
                power_iteration_(weight_rows(modules[layer], weight), found["u"], found["v"], self.iterations)

    def penalty(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over weights, biases and gains."""
        network, values = self.chosen[name], []
        layers, norms = layers_of(network), norm_parameters(network)
        for key, parameter in parameters.items():
            layer, _, kind = key.rpartition(".")
            if kind == "weight" and layer in layers:
                if found := self.vectors[name].get(layer):  # a head that was added later has none
                    sigma = found["u"] @ weight_rows(layers[layer], parameter) @ found["v"]
                    values.append((sigma.abs().pow(self.power) - 1).square())
            elif self.biases and key in norms and kind == "weight":
                values.append((parameter - 1).square().sum())
            elif self.biases and kind == "bias":
                values.append(parameter.square().sum().pow(self.power))
        return total(values, parameters)

    def parameters_added(self) -> int:
        """Return how many entries the vectors have."""
        return numbers_in(self.vectors)

    def state_dict(self) -> dict[str, Any]:
        """Return the vectors, too."""
        return {**super().state_dict(), "vectors": self.vectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        copy_into_(self.vectors, state["vectors"])
