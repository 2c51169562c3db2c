"""ReSiN: reset silent neurons, which neither fire nor learn.

*Understanding and Exploiting Plasticity for Non-stationary Network Resource Adaptation*, arXiv 2505.01584, of which the
abstract was read; no code was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.observing.reading import Reading
from plasticity.probes import Dormancy, GradientActivity, Probe

from .recycling import Recycling

_BOTH = {
    "every": 1000,
    "threshold": 0.0,
    "outgoing": "zero",
    "init": "own",
    "moments": True,
    "adam_step": "keep",
    "norms": True,
}


@dataclass
class SilentReset(Recycling):
    """Recycle neurons that neither fire nor get a gradient.

    The score is the larger of two, both relative to the mean of the layer: ReDo's, mean |h|, and GraMa's, mean |dL/dz|.
    At threshold 0 a neuron is silent whose activation and gradient are 0 on the batch: ReDo would also reset one that
    is quiet and learns, ReGraMa one that fires and does not. All else is as in ``redo``, and ``official`` is ``paper``.
    """

    NAME: ClassVar[str] = "resin"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {"paper": _BOTH, "official": _BOTH}

    def probes(self) -> dict[str, Probe]:
        """Look at activations and gradients."""
        threshold = self.threshold or 0.0
        return {"activity": Dormancy(threshold), "gradient": GradientActivity("pre", threshold)}

    def scores(self, network: str, reading: Reading) -> Mapping[str, Tensor]:
        """Return layer -> the larger of both scores, where both are known."""
        gradient = reading.scores["gradient"]
        both = {layer: score for layer, score in reading.scores["activity"].items() if layer in gradient}
        return {layer: torch.maximum(score, gradient[layer]) for layer, score in both.items()}
