"""GraMa: neurons that hardly learn, told by gradients (Liu et al. 2025, *Measure gradients, not activations!*)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .activity import Activity
from .probe import POST, PRE, WEIGHT_GRADIENT, Summand

READINGS = {"pre": PRE, "weight": WEIGHT_GRADIENT, "post": POST}


class GradientActivity(Activity):
    """Fraction of GraMa-inactive neurons: gradient magnitude at most ``threshold`` times the layer's mean.

    Range [0, 1]; higher is worse (the *score* of a neuron is the opposite: higher is healthier). Three readings of the
    paper's equation 2 are in use, and they differ:

    - ``pre`` (default): mean over samples of |dL/dz|, z the pre-activation. The reading under which the paper's theorem
      holds (a ReLU neuron that never fires has GraMa 0), and signs of different samples do not cancel.
    - ``weight``: mean over inputs of |dL/dW_row| of the batch-mean gradient; what the authors' code does. Also 0 for a
      dead ReLU neuron, but the signs of samples cancel, and the scale of the inputs mixes in.
    - ``post``: mean over samples of |dL/dh|, h the activation: the equation read literally. A dead ReLU neuron gets an
      ordinary score here, which contradicts the theorem; for comparison only.

    ``threshold``: the paper uses 0.01 (BRO, DACER) and 0 (SAC). Source: arXiv 2505.24061, equation 2 and section 4.2;
    github.com/torressliu/grad-based-plasticity-metrics (``GradientReDo``) for ``weight``.
    """

    def __init__(self, reading: str = "pre", threshold: float = 0.01) -> None:
        if reading not in READINGS:
            raise ValueError(f"GradientActivity knows the readings {', '.join(READINGS)}; got {reading!r}")
        self.reading = reading
        super().__init__(READINGS[reading], threshold)

    def sums(self) -> Mapping[str, Summand]:
        """Add up gradients of weights with their signs, as ``.grad`` does, and magnitudes of other gradients."""
        return {WEIGHT_GRADIENT: torch.clone} if self.reading == "weight" else super().sums()

    def magnitudes(self) -> Tensor:
        """Return the mean gradient magnitude of each neuron, (neurons,), before normalisation."""
        return self.total(WEIGHT_GRADIENT).abs().mean(1) if self.reading == "weight" else super().magnitudes()
