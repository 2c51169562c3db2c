"""Normalize and project: keep the norm of every weight, so that the effective learning rate does not decay.

Lyle, Zheng, Khetarpal, Martens, van Hasselt, Pascanu & Dabney 2024, *Normalization and effective learning rates in
reinforcement learning*, arXiv 2407.01800. A checked implementation: Felix-Zhenghao/rigorous-plasticity.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.structure.layers import NORM_MODULES

from .every_step import copy_into_, layers_of
from .intervention import numbers_in
from .weight_penalty import trained
from .weight_projection import WeightProjection

BENT = (nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.Softplus, nn.Mish, nn.Hardswish)


@dataclass
class NormalizeAndProject(WeightProjection):
    """Scale every weight matrix back to its first norm after every step.

    W <- W * ||W_0||_F / ||W||_F for each weight of a layer; a matrix of zeros is left alone. A layer in front of a norm
    computes the same at any scale of its weight, but learns more slowly as the weight grows; so the growth is taken
    off. Use it with a norm before every activation (``--norm layer``, or simba, bronet): without one the projection
    changes what the network computes.

    Gains and biases of norms: ``free``; ``decay``, pulled to 1 and 0 by ``decay_rate`` each time; or ``joint``, scaled
    together to ||gain||^2 + ||bias||^2 = width, which changes nothing behind a positively homogeneous activation and is
    refused with others. Defaults: every step, free (paper, whose agents decay them; the rate is not published).
    Differences: biases in front of a norm are left as they are, the paper has none. Compared with the rule of
    Felix-Zhenghao/rigorous-plasticity, a testbed by others, ten steps of Adam for each of the three: the weights agree
    to 5e-16. Source: Lyle et al. 2024,
    arXiv 2407.01800, algorithm 1.
    """

    NAME: ClassVar[str] = "nap"

    affine: Literal["free", "decay", "joint"] = "free"
    """Treatment of the gains and biases of norms."""
    decay_rate: float = 1e-3
    """Share of the way to gain 1 and bias 0 per projection, where affine is decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.radius: dict[str, dict[str, Tensor]] = {}

    def rules(self) -> dict[str, bool]:
        """Return the rules of the settings."""
        return {**super().rules(), "decay_rate in [0, 1]": 0 <= self.decay_rate <= 1}

    def begin(self, name: str, network: nn.Module) -> None:
        """Keep the norm of every weight; ValueError for joint scaling in front of an activation that bends."""
        self.radius[name] = {layer: weight.detach().norm() for layer, weight in self._weights(network).items()}
        bent = sorted({type(module).__name__ for module in network.modules() if isinstance(module, BENT)})
        if self.affine == "joint" and bent:
            raise ValueError(
                f"NormalizeAndProject(affine='joint') needs positively homogeneous activations, such as ReLU; {name} "
                f"has {', '.join(bent)}: pass affine='free' or 'decay'"
            )

    def project(self, name: str, network: nn.Module) -> None:
        """Scale weights, and treat the gains and biases of norms, in place."""
        for layer, weight in self._weights(network).items():
            if layer in self.radius[name]:
                rescale_(weight, self.radius[name][layer])
        for module in network.modules() if self.affine != "free" else ():
            if isinstance(module, NORM_MODULES) and isinstance(module.weight, Tensor):
                self._treat(module.weight, getattr(module, "bias", None))

    def _treat(self, gain: Tensor, bias: Tensor | None) -> None:
        if self.affine == "decay":
            gain.lerp_(torch.ones_like(gain), self.decay_rate)
            if bias is not None:
                bias.mul_(1 - self.decay_rate)
            return
        norm = gain.norm() if bias is None else torch.stack([gain.norm(), bias.norm()]).norm()
        factor = torch.where(norm > 0, sqrt(gain.numel()) / norm, 1.0)
        gain.mul_(factor)
        if bias is not None:
            bias.mul_(factor)

    def _weights(self, network: nn.Module) -> dict[str, Tensor]:
        parameters = trained(network)
        names = {layer: f"{layer}.weight".removeprefix(".") for layer in layers_of(network)}
        return {layer: parameters[name] for layer, name in names.items() if name in parameters}

    def parameters_added(self) -> int:
        """Return how many first norms are kept."""
        return numbers_in(self.radius)

    def state_dict(self) -> dict[str, Any]:
        """Return the first norms, too."""
        return {**super().state_dict(), "radius": self.radius}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        copy_into_(self.radius, state["radius"])


def rescale_(weight: Tensor, radius: Tensor) -> None:
    """Scale a weight in place to the Frobenius norm ``radius``, 0-D; zeros stay."""
    norm = weight.norm()
    weight.mul_(torch.where(norm > 0, radius / norm, 1.0))
