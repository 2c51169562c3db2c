"""Dormant neurons: those that hardly ever fire (Sokar et al. 2023, *The Dormant Neuron Phenomenon*)."""

from plasticity.value_types import checked

from .activity import Activity
from .probe import FORWARD


class Dormancy(Activity):
    """Fraction of tau-dormant neurons, which hardly fire beside their layer.

    Dormant: mean |activation| at most ``threshold`` times the layer's mean. Range [0, 1]; higher is worse.
    ``threshold`` is the paper's tau: 0.025 by default, 0.1 at high replay ratios, 0 for neurons that never fired on the
    batch. It asks how strongly a neuron fires, which says little where the activation is not ReLU-like (tanh, GELU) or
    a norm follows it: compare :class:`~plasticity.probes.grama.GradientActivity`. Source: arXiv 2302.12902, equation 1
    and definition 3.1; the division by the mean (not the sum) as its authors confirm in google/dopamine issue 209.
    """

    KIND = "activity"
    WORSE = "higher"
    COST = "sums"
    SOURCE = "Sokar et al. 2023"

    @checked
    def __init__(self, threshold: float = 0.025) -> None:
        super().__init__(FORWARD, threshold)
