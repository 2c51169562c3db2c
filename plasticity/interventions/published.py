"""Initialisers that released code redraws neurons with, whatever their layer began with."""

from __future__ import annotations

import math

from torch import nn

from plasticity.surgery.initialisers import Initialiser, layer_fans
from plasticity.surgery.laws import TRUNCATED_STD, Law


def published(module: nn.Module, init: str) -> Initialiser:
    """Return an initialiser that released code redraws a layer with, whatever the layer began with.

    ``he_uniform``: U(+-sqrt(6 / fan_in)), 2.45 times as wide as torch's default, and the default bias
    (torressliu/grad-based-plasticity-metrics, timoklein/redo). ``xavier_uniform``: U(+-sqrt(6 / (fan_in + fan_out))),
    bias 0 (google/dopamine, labs/redo). ``lecun_normal``: truncated normal of standard deviation 1 / sqrt(fan_in),
    bias 0 (the second choice of the two torch codes). ``he_normal``: normal of standard deviation sqrt(2 / fan_in),
    bias 0 (weights of ccbp-pytorch).
    """
    fan_in, fan_out = layer_fans(module)
    default = 1 / math.sqrt(fan_in)
    he, xavier = math.sqrt(6 / fan_in), math.sqrt(6 / (fan_in + fan_out))
    zero = Law("constant", (0.0,))
    weight, bias = {
        "he_uniform": (Law("uniform", (-he, he)), Law("uniform", (-default, default))),
        "he_normal": (Law("normal", (0.0, math.sqrt(2 / fan_in))), zero),
        "xavier_uniform": (Law("uniform", (-xavier, xavier)), zero),
        "lecun_normal": (Law("truncated", (default / TRUNCATED_STD,)), zero),
    }[init]
    return Initialiser(module, weight, bias)
