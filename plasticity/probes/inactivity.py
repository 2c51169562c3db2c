"""Neurons by the scores of dormancy and GraMa: mean over layers, silent ones, quadrants, and those dormant again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plasticity.value_types import checked

from .activity import inactive_fraction, magnitude_sums, normalised_scores
from .dormancy import Dormancy
from .firing import share_of
from .probe import FORWARD, NO_EARLIER, PRE, Probe, Summand


class DormantRatio(Dormancy):
    """Fraction of dormant neurons as the mean over layers: RDU.

    Range [0, 1]; higher is worse. ``dormancy`` of the same layers counts each neuron once: of 2 dormant neurons among
    1,004 it is 0.002, where this mean can be 0.4. Source: the ratio of dormant units of
    github.com/RLE-Foundation/Plasticine.
    """

    KIND = "activity"
    SOURCE = "Plasticine"

    def of_network(self, values: Sequence[float], neurons: Sequence[int]) -> float:
        """Return the mean over layers."""
        return sum(values) / len(values) if values else torch.nan


class ActivityAndGradient(Probe):
    """The scores of dormancy and of GraMa (reading ``pre``), side by side."""

    KIND = "activity"
    COST = "sums"

    def sums(self) -> Mapping[str, Summand]:
        """Add up the magnitudes of both signals."""
        return {FORWARD: magnitude_sums, PRE: magnitude_sums}

    def both(self) -> tuple[Tensor, Tensor]:
        """Return each neuron's activity and gradient relative to its layer, (neurons,) each."""
        activity, gradient = (normalised_scores(self.total(s) / self.num_samples(s)) for s in (FORWARD, PRE))
        return activity, gradient


class Silent(ActivityAndGradient):
    """Fraction of neurons with neither activity nor gradient.

    Range [0, 1]; higher is worse. The score is the larger one of both, relative to the layer; silent is at most
    ``threshold``, 0 in the paper. Source: arXiv 2505.01584.
    """

    WORSE = "higher"
    SOURCE = "ReSiN 2025"
    per_neuron = True

    @checked
    def __init__(self, threshold: float = 0.0) -> None:
        if not threshold >= 0:
            raise ValueError(f"Silent needs a threshold of at least 0, got {threshold}")
        self.threshold = float(threshold)

    def scores(self) -> Tensor:
        """Return the larger one of activity and gradient, (neurons,)."""
        return torch.maximum(*self.both())

    def compute(self) -> Tensor:
        """Return the fraction of silent neurons."""
        return inactive_fraction(self.scores(), self.threshold)


class Quadrants(ActivityAndGradient):
    """Fractions of neurons in the quadrants of activity and gradient.

    High is the top ``share`` of a layer, and not 0. ``busy`` is high in both, ``loud`` in activity alone, ``learning``
    in gradient alone, ``idle`` in neither. They add up to 1; without any relation ``busy`` is share^2. Source: Liu et
    al. 2025 (arXiv 2505.24061), figure 3.
    """

    WORSE = "loud high: activity says nothing of learning"
    SOURCE = "Liu et al. 2025"
    metrics = ("quadrant_busy", "quadrant_loud", "quadrant_learning", "quadrant_idle")

    @checked
    def __init__(self, share: float = 0.25) -> None:
        if not 0 < share < 1:
            raise ValueError(f"Quadrants needs a share in (0, 1), got {share}")
        self.share = float(share)

    def compute(self) -> dict[str, Tensor]:
        """Return the fraction of neurons in each quadrant by name."""
        active, learning = (self._high(scores) for scores in self.both())
        marked = (active & learning, active & ~learning, ~active & learning, ~active & ~learning)
        scores = torch.cat(self.both())
        return {name: share_of(mask, scores) for name, mask in zip(self.metrics, marked, strict=True)}

    def _high(self, scores: Tensor) -> Tensor:
        """Return which neurons are in the top share and above 0; of equal ones the first."""
        most = max(1, round(self.share * len(scores)))
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[scores.argsort(descending=True, stable=True)[:most]] = True
        return mask & (scores > 0)


class Overlap(Dormancy):
    """A share of those neurons that are dormant now, among some that are known from before."""

    KIND = "activity"
    nan_reason = "no neuron was dormant then, or values are not finite"
    per_neuron = False

    def dormant(self) -> Tensor:
        """Return which neurons are dormant, (neurons,)."""
        return self.scores() <= self.threshold

    def among(self, neurons: Tensor) -> Tensor:
        """Return the share of ``neurons``, (neurons,) bool, that are dormant; NaN of none."""
        share = (self.dormant() & neurons).sum() / neurons.sum().double()
        return torch.where(self.scores().isnan().any(), torch.nan, share)

    def of_network(self, values: Sequence[float], neurons: Sequence[int]) -> float:
        """Return the mean over the layers that have a value."""
        there = [value for value in values if value == value]
        return sum(there) / len(there) if there else torch.nan


class DormantAgain(Overlap):
    """Share of the neurons recycled last that are dormant again.

    Range [0, 1]. Of the last event, before the reading, of every method that recycles neurons; ``details`` has their
    number. Near 1: recycling does not last. Without a method that recycles there is no value. Source: the overlap with
    the last reset of github.com/google/dopamine, ``labs/redo/weight_recyclers.py``.
    """

    WORSE = "higher"
    SOURCE = "Sokar et al. 2023, code"

    def why_not(self) -> str:
        """Return that no neuron of the layer was recycled."""
        return "" if len(self.recycled) else "none of its neurons was recycled in the last event"

    def compute(self) -> Tensor:
        """Return the share of the neurons that were recycled."""
        mask = torch.zeros_like(self.dormant())
        mask[list(self.recycled)] = True
        return self.among(mask)

    def details(self) -> dict[str, int]:
        """Return the number of neurons that were recycled."""
        return {"recycled": len(self.recycled)}


class StillDormant(Overlap):
    """Share of the neurons dormant at the last reading that still are.

    Range [0, 1]. Near 1: dormancy is a state that lasts; near the fraction of dormant neurons: it is the batch's. NaN
    where none was dormant. Source: Sokar et al. 2023 (arXiv 2302.12902), section 3, for the overlap over time.
    """

    WORSE = "higher"
    SOURCE = "Sokar et al. 2023"

    def why_not(self) -> str:
        """Return that there is no earlier reading of as many neurons."""
        return NO_EARLIER if self.memory is None or self.memory.shape != self.dormant().shape else ""

    def compute(self) -> Tensor:
        """Return the share of the neurons that were dormant."""
        return self.among(self.memory)

    def remember(self) -> Tensor:
        """Return which neurons are dormant."""
        return self.dormant()
