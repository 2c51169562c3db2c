"""Neurons by whether they fire: which entries, which units, dead, saturated, linear; each as its activation allows.

To fire means: above 0 for ReLU and its smooth or leaky kin, |h| < 0.99 for tanh, 0.01 < h < 0.99 for the logistic
function. A word that means nothing for an activation function gives no value, and the coverage says why: see ``WHERE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.value_types import checked

from .probe import FORWARD, Probe, Summand

RECTIFIERS = ("relu", "clamp_min", "threshold")
"""Activations with a flat half: a neuron there gets no gradient."""
TWO_SLOPES = ("leaky_relu", "_prelu_kernel", "prelu", "rrelu_with_noise")
SMOOTH = ("gelu", "silu", "mish", "elu", "celu")
SQUASHING = ("tanh", "sigmoid")
LINEAR_ABOVE = (*RECTIFIERS, *TWO_SLOPES, "elu", "celu")
"""Activations that are linear where they fire."""
UNDERSTOOD = (*RECTIFIERS, *TWO_SLOPES, *SMOOTH, *SQUASHING)
"""Activations of which it is known where they are flat, linear and bounded."""
FIRES = {**dict.fromkeys((*RECTIFIERS, *TWO_SLOPES, *SMOOTH, "hardswish"), 0), "tanh": 1, "sigmoid": 2}
"""Activation, as torch names the operation -> which of :func:`firing_counts` says that it fires."""

NO_ACTIVATION = "it has no activation function"
UNKNOWN = "this word is not defined for it"


def firing_counts(rows: Tensor) -> Tensor:
    """Return how many samples are > 0, have a magnitude < 0.99, lie in (0.01, 0.99): (3, neurons); NaN if one is."""
    fires = torch.stack([rows > 0, rows.abs() < 0.99, (rows > 0.01) & (rows < 0.99)])
    return fires.sum(1) + 0 * rows.sum(0)


def share_of(neurons: Tensor, scores: Tensor) -> Tensor:
    """Return the fraction of marked ``neurons``, bool; NaN where any of their ``scores`` is."""
    return torch.where(scores.isnan().any(), torch.nan, neurons.double().mean())


class Firing(Probe):
    """Share of samples on which each neuron fires, the score; subclasses say what to make of it."""

    KIND = "activity"
    COST = "sums"
    WHERE: ClassVar[tuple[str, ...]] = tuple(FIRES)
    """The activations for which the word means something."""
    ELSE: ClassVar[str] = UNKNOWN
    """The reason why there is no value for others that are understood."""
    per_neuron = True

    def sums(self) -> Mapping[str, Summand]:
        """Count the samples on which each neuron fires."""
        return {FORWARD: firing_counts}

    def why_not(self) -> str:
        """Return why the word means nothing for the layer's activation function."""
        if self.activation in self.WHERE:
            return ""
        if self.activation is None:
            return NO_ACTIVATION
        return f"{self.activation}: {self.ELSE if self.activation in UNDERSTOOD else UNKNOWN}"

    def scores(self) -> Tensor:
        """Return the share of samples on which each neuron fires, (neurons,), in [0, 1]."""
        return self.total(FORWARD)[FIRES.get(self.activation or "relu", 0)] / self.num_samples(FORWARD)

    def details(self) -> dict[str, int]:
        """Return the number of samples, which decides how many neurons look dead."""
        return {"samples": self.num_samples(FORWARD)}


class ActiveEntries(Firing):
    """Fraction of (sample, neuron) entries that fire: FAU by entries.

    Range [0, 1]; a healthy ReLU layer has about 0.5; lower is worse. Source: Ma et al. 2024 (arXiv 2310.07418), section
    3; the quantity that Plasticine logs as ``active_units``.
    """

    WORSE = "lower"
    SOURCE = "Ma et al. 2024"

    def compute(self) -> Tensor:
        """Return the fraction of entries that fire."""
        return self.scores().mean()


class ActiveUnits(Firing):
    """Fraction of neurons that fire on a share of samples: FAU by units.

    Range [0, 1]; lower is worse. ``least``: that share, 0.01 as in the code of Dohare et al. 2024 (*Loss of plasticity
    in deep continual learning*, Nature 632).
    """

    WORSE = "lower"
    SOURCE = "Dohare et al. 2024"

    @checked
    def __init__(self, least: float = 0.01) -> None:
        if not 0 < least <= 1:
            raise ValueError(f"ActiveUnits needs a share of samples in (0, 1], got {least}")
        self.least = float(least)

    def compute(self) -> Tensor:
        """Return the fraction of neurons that fire often enough."""
        return share_of(self.scores() >= self.least, self.scores())


class Dead(Firing):
    """Fraction of rectifier neurons that fire on no sample: no gradient.

    Range [0, 1]; higher is worse. Depends on the batch: of 20,000 samples rarely any neuron is dead, of 32 half of them
    may be. Source: Lyle et al. 2023 (arXiv 2303.01486).
    """

    WORSE = "higher"
    SOURCE = "Lyle et al. 2023"
    WHERE = RECTIFIERS
    ELSE = "a neuron of it has a gradient everywhere, none is dead; see dormancy and saturated"

    def compute(self) -> Tensor:
        """Return the fraction of dead neurons."""
        return share_of(self.scores() == 0, self.scores())


class Linearised(Firing):
    """Fraction of neurons that compute a linear function of the batch.

    Range [0, 1]; higher is worse. A rectifier or ELU neuron that fires on every sample; of a leaky one also one that
    fires on none. Depends on the batch as ``dead`` does. Source: Lyle et al. 2024 (arXiv 2402.18762), section 3.
    """

    WORSE = "higher"
    SOURCE = "Lyle et al. 2024"
    WHERE = LINEAR_ABOVE
    ELSE = "it is linear nowhere"

    def compute(self) -> Tensor:
        """Return the fraction of linear neurons."""
        share = self.scores()
        return share_of((share == 1) | ((share == 0) & (self.activation in TWO_SLOPES)), share)


def squashed_sums(rows: Tensor) -> Tensor:
    """Return the sums of |h| and |2 h - 1| over samples, (2, neurons)."""
    return torch.stack([rows.abs(), (2 * rows - 1).abs()]).sum(1)


class Saturated(Firing):
    """Fraction of tanh or logistic neurons with a magnitude near 1.

    Range [0, 1]; higher is worse. The mean magnitude is above ``limit``, a convention; it is |h| of tanh and |2 h - 1|
    of the logistic function, the same of the same input. Source: Rakitianskaia & Engelbrecht 2015, *Measuring
    saturation in neural networks* (doi 10.1109/SSCI.2015.202).
    """

    WORSE = "higher"
    SOURCE = "Rakitianskaia & Engelbrecht 2015"
    WHERE = SQUASHING
    ELSE = "it has no bound on the side where it fires; see dead"

    @checked
    def __init__(self, limit: float = 0.95) -> None:
        if not 0 < limit < 1:
            raise ValueError(f"Saturated needs a limit in (0, 1), got {limit}")
        self.limit = float(limit)

    def sums(self) -> Mapping[str, Summand]:
        """Add up magnitudes."""
        return {FORWARD: squashed_sums}

    def scores(self) -> Tensor:
        """Return the mean magnitude of each neuron, (neurons,), in [0, 1]."""
        return self.total(FORWARD)[int(self.activation == "sigmoid")] / self.num_samples(FORWARD)

    def compute(self) -> Tensor:
        """Return the fraction of saturated neurons."""
        return share_of(self.scores() > self.limit, self.scores())


class NeverFired(Firing):
    """Fraction of neurons that fired in no reading so far.

    Range [0, 1]; higher is worse. The lifetime version of ``dead``: its batch grows with every reading, so it tells
    neurons that are dead from neurons that this batch did not reach. ``details`` has ``readings``, its age. Recycled
    neurons keep their past. Source: github.com/UoA-CARES/cares_reinforcement_learning, ``networks/plasticity.py``.
    """

    WORSE = "higher"
    SOURCE = "UoA-CARES"

    def scores(self) -> Tensor:
        """Return the largest share of samples on which each neuron fired in any reading, (neurons,)."""
        now, past = super().scores(), self._past()
        return now if past is None else torch.maximum(now, past["score"])

    def compute(self) -> Tensor:
        """Return the fraction of neurons that never fired."""
        return share_of(self.scores() == 0, self.scores())

    def remember(self) -> dict[str, object]:
        """Return the scores and the number of readings."""
        past = self._past()
        return {"score": self.scores(), "readings": 1 + (past["readings"] if past else 0)}

    def details(self) -> dict[str, int]:
        """Return the number of samples of this reading, and of readings so far."""
        return {**super().details(), "readings": int(self.remember()["readings"])}  # type: ignore[call-overload]

    def _past(self) -> dict | None:
        fits = self.memory is not None and len(self.memory["score"]) == self.total(FORWARD).shape[-1]
        return self.memory if fits else None


class RarelyFires(NeverFired):
    """Fraction of neurons that rarely fire, in a running mean over readings.

    Range [0, 1]; higher is worse. Rarely: on fewer than a share ``least`` of the samples. ``decay``: share of the past
    in the running mean, whose start does not count (bias is corrected as in Adam). Source:
    github.com/UoA-CARES/cares_reinforcement_learning, ``networks/plasticity.py``.
    """

    @checked
    def __init__(self, least: float = 0.01, decay: float = 0.9) -> None:
        if not (0 < least <= 1 and 0 <= decay < 1):
            raise ValueError(f"RarelyFires needs least in (0, 1] and decay in [0, 1), got {least} and {decay}")
        self.least, self.decay = float(least), float(decay)

    def scores(self) -> Tensor:
        """Return the running mean of the share of samples on which each neuron fires, (neurons,)."""
        now, past = Firing.scores(self), self._past()
        if past is None:
            return now
        weight = (1 - self.decay) / (1 - self.decay ** (past["readings"] + 1))
        return weight * now + (1 - weight) * past["score"]

    def compute(self) -> Tensor:
        """Return the fraction of neurons that rarely fire."""
        return share_of(self.scores() < self.least, self.scores())
