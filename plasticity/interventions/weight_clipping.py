"""Weight clipping: keep every weight within the bounds in which it was drawn.

Elsayed, Lan, Lyle & Mahmood 2024, *Weight Clipping for Deep Continual and Reinforcement Learning*, arXiv 2407.01704.
Code: mohmdelsayed/weight-clipping.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import nn

from plasticity.structure.layers import weight_rows

from .every_step import layers_of
from .layer_depths import KnowsDepths
from .weight_penalty import trained
from .weight_projection import WeightProjection


@dataclass
class WeightClipping(WeightProjection, KnowsDepths):
    """Clip the weights of every layer to their initial bounds.

    After every step: theta <- clip(theta, -kappa / sqrt(fan in), kappa / sqrt(fan in)), the fan of a bias being that of
    its layer's weight. Small weights keep gradients and curvature small, without pulling at weights inside the bounds.

    Defaults: kappa 1, the default of the class in the released code; its experiments tune 1 to 5. Differences: the code
    knows the fan of a bias by the order of parameters and so clips gains and biases of a LayerNorm to the bound of the
    layer before; here norms are never clipped, and the layer is found by name. Source: Elsayed et al. 2024,
    arXiv 2407.01704, algorithm 1. Compared with that code, ten steps of SGD and of Adam: equal to the last bit.
    """

    NAME: ClassVar[str] = "weight_clipping"

    kappa: float = 1.0
    """Multiple of 1 / sqrt(fan in), the bound of PyTorch's default initialisation."""
    outputs: bool = True
    """Clip output layers too."""

    def rules(self) -> dict[str, bool]:
        """Return the rules of the settings."""
        return {**super().rules(), "kappa > 0": self.kappa > 0}

    def begin(self, name: str, network: nn.Module) -> None:
        """Wait for the first pass where it matters which layers are output layers."""
        if not self.outputs:
            self.find_depths(name, network, "WeightClipping(outputs=False)")

    def project(self, name: str, network: nn.Module) -> None:
        """Clip weights and biases of all layers in place."""
        parameters = trained(network)
        left_out = self.depths[name].outputs if name in self.depths else ()
        for layer, module in layers_of(network).items():
            weight = module._parameters.get("weight")
            if weight is None or layer in left_out:
                continue
            bound = self.kappa / sqrt(weight_rows(module, weight).shape[1])
            for kind in ("weight", "bias"):
                if (parameter := parameters.get(f"{layer}.{kind}".removeprefix("."))) is not None:
                    parameter.clamp_(-bound, bound)
