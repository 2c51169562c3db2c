"""GraMa: neurons that hardly learn, told by gradients (Liu et al. 2025, *Measure gradients, not activations!*)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from plasticity.value_types import checked

from .activity import Activity, magnitude_sums
from .probe import LINEAR, POST, PRE, WEIGHT_GRADIENT, Summand

READINGS = {"pre": PRE, "weight": WEIGHT_GRADIENT, "linear": LINEAR, "post": POST}


class GradientActivity(Activity):
    """Fraction of GraMa-inactive neurons, whose gradients are low in their layer.

    Inactive: gradient magnitude at most ``threshold`` times the layer's mean. Range [0, 1]; higher is worse (the
    *score* of a neuron is the opposite: higher is healthier). Four readings of the paper's equation 2 are in use, and
    they differ:

    - ``pre`` (default): mean over samples of |dL/dz|, z the input of the activation function (behind a norm that stands
      before it). The reading under which the paper's theorem holds (a ReLU neuron that never fires has GraMa 0), and
      signs of different samples do not cancel.
    - ``weight``: mean over inputs of |dL/dW_row| of the batch-mean gradient; what the authors' code does. The signs of
      samples cancel, and the scale of the inputs mixes in. Also 0 for a dead ReLU neuron: a neuron with ``pre`` 0
      scores 0, whatever a norm mixes into its weights from its neighbours (the authors' code flags its entry of the
      norm).
    - ``linear``: mean over samples of the gradient at the layer's linear output. Equal to ``pre`` where no norm stands
      before the activation; behind one, a dead ReLU neuron gets a score from its neighbours, by the norm's statistics.
    - ``post``: mean over samples of |dL/dh|, h the activation: the equation read literally. A dead ReLU neuron gets an
      ordinary score here, which contradicts the theorem; for comparison only.

    ``threshold``: the paper uses 0.01 (BRO, DACER) and 0 (SAC). Source: arXiv 2505.24061, equation 2 and section 4.2;
    github.com/torressliu/grad-based-plasticity-metrics (``GradientReDo``) for ``weight``.
    """

    KIND = "gradient"
    WORSE = "higher"
    COST = "sums"
    SOURCE = "Liu et al. 2025"

    @checked
    def __init__(self, reading: str = "pre", threshold: float = 0.01) -> None:
        if reading not in READINGS:
            raise ValueError(f"GradientActivity knows the readings {', '.join(READINGS)}; got {reading!r}")
        self.reading = reading
        super().__init__(READINGS[reading], threshold)

    def sums(self) -> Mapping[str, Summand]:
        """Add up gradients of weights with their signs, as ``.grad`` does, and magnitudes of other gradients."""
        if self.reading == "weight":
            return {WEIGHT_GRADIENT: torch.clone, PRE: magnitude_sums}
        return super().sums()

    def magnitudes(self) -> Tensor:
        """Return the mean gradient magnitude of each neuron, (neurons,), before normalisation."""
        if self.reading != "weight":
            return super().magnitudes()
        return self.total(WEIGHT_GRADIENT).abs().mean(1).masked_fill(self.total(PRE) == 0, 0)
