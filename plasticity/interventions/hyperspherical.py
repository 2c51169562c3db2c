"""Hyperspherical weights: every neuron's weights lie on the unit sphere.

Lee, Lee, Seno, Kim, Kim & Choo 2025, *Hyperspherical Normalization for Scalable Deep Reinforcement Learning* (SimbaV2),
arXiv 2502.15280; after Loshchilov et al. 2024 (nGPT), arXiv 2410.01131. Code: DAVIAN-Robotics/SimbaV2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from plasticity.structure.layers import inputs_first, weight_rows

from .every_step import layers_of
from .weight_penalty import trained
from .weight_projection import WeightProjection


@dataclass
class Hyperspherical(WeightProjection):
    """Scale the weights of every neuron to norm 1 after every step.

    w_i <- w_i / ||w_i|| for each row of a weight (neurons, inputs); rows of zeros stay. The step of the optimizer then
    turns the neurons, and its size is that of the turn, whatever the weights have become.

    The whole of SimbaV2, with normalised features and learned scales, is a body; this is its projection alone, for any
    network. Weights are scaled for the first time after the first step. Networks must have a norm, or learned scales,
    behind the layers, for the scale of their outputs is taken from them. Compared with the projection of the released
    code (JAX, its formula in numpy), ten steps of Adam: the weights agree to 5e-16. Source: Lee et al. 2025, arXiv
    2502.15280, section 4.
    """

    NAME: ClassVar[str] = "hyperspherical"

    def project(self, name: str, network: nn.Module) -> None:
        """Scale rows in place."""
        parameters = trained(network)
        for layer, module in layers_of(network).items():
            weight = parameters.get(f"{layer}.weight".removeprefix("."))
            if weight is None:
                continue
            if inputs_first(module):
                raise ValueError(f"Hyperspherical takes no {type(module).__name__}: choose networks without {layer}")
            norm = weight_rows(module, weight).norm(dim=1)
            factor = torch.where(norm > 0, 1 / norm, 1.0)
            weight.mul_(factor.view(-1, *[1] * (weight.dim() - 1)))
