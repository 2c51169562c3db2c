"""GraMa: neurons that hardly learn, told by gradients (Liu et al. 2025, *Measure gradients, not activations!*)."""

from __future__ import annotations

from torch import Tensor

from .activity import Activity
from .probe import WEIGHT

READINGS = {"pre": "on_backward", "weight": "on_weight_gradient", "post": "on_activation_gradient"}


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

    def on_weight_gradient(self, gradients: Tensor) -> None:
        """Add the gradient of one backward pass, (neurons, inputs), with its sign, as ``.grad`` accumulates it."""
        self.add(WEIGHT, self.reduce(WEIGHT, gradients), 0)

    def reduce(self, signal: str, rows: Tensor) -> Tensor:
        """Return a gradient of weights as it is, copied, and of activations the sums of magnitudes, (neurons,)."""
        return rows.clone() if signal == WEIGHT else super().reduce(signal, rows)

    def magnitudes(self) -> Tensor:
        """Return the mean gradient magnitude of each neuron, (neurons,), before normalisation."""
        if self.reading == "weight" and self._total is not None:
            return self._total.abs().mean(1)
        return super().magnitudes()
