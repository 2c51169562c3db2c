"""Self-normalised resets: reset a neuron that has been silent for longer than is usual for it.

Farias & Jozefiak 2025, *Self-Normalized Resets for Plasticity in Continual Learning*, arXiv 2410.20098; code:
github.com/ajozefiak/SelfNormalizedResets (JAX).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.structure.layers import Layer
from plasticity.value_types import require

from .unit_signals import MomentsProbe, unit_moments
from .units import UnitRecycling, Units

BOUNDED = {"tanh", "sigmoid", "hardtanh", "hardsigmoid", "softplus", "sin", "cos"}
"""Activations of which h > 0 does not mean that a neuron fires."""


def updated_limits(histogram: Tensor, width: float, quantile: float, factor: float, limits: Tensor) -> Tensor:
    """Return the new limit of each neuron, (neurons,).

    ``histogram``: (bins, neurons), how often a silence of ``bin * width`` samples ended; bin 0, no silence, is left
    out. The ``quantile`` of its silences, if that is below its present limit, else ``factor`` times the limit. Of a
    neuron without a silence it is 0: any silence is unusual for it.
    """
    counts = histogram[1:]
    total = counts.sum(0)
    reached = counts.cumsum(0) >= quantile * total - 1e-9
    found = (reached.double().argmax(0) + 1) * float(width) * (total > 0)
    return torch.where(found < limits, found, factor * limits)


@dataclass
class SelfNormalizedResets(UnitRecycling):
    """Reset neurons that are silent for longer than is usual for them.

    A neuron fires in a step if h > 0 for any sample of it; its age is the number of samples since. At age >= limit it
    is reset, as ReDo does it. Every ``every`` steps its limit becomes the quantile of its own silences, those that a
    reset ended included, or doubles where that quantile is not below it; without a silence it becomes the least, the
    samples of a step. It is at most ``limit_max``, and begins at half of that. No threshold is shared between neurons.

    ``paper``: the authors' code but for its batch size, a literal 100. ``official``: the port in the code of FIRE,
    whose resets leave outgoing weights and the optimizer's moments as they are. Layers whose activation is bounded
    (tanh, sigmoid) say nothing by h > 0; they are left alone and named in an event.

    Compared with the authors' code, 300 steps of Adam on batches of 100 with 185 resets: the same neurons, all ages and
    limits the same, all weights and moments to 6e-8. One difference: a weight between two neurons that are reset in
    the same step is 0 here, and a fresh draw there.
    """

    NAME: ClassVar[str] = "snr"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": {"outgoing": "zero", "init": "own", "moments": True, "adam_step": "keep", "norms": True},
        "official": {"outgoing": "keep", "init": "own", "moments": False, "adam_step": "keep", "norms": False},
    }
    KEPT: ClassVar[frozenset[str]] = frozenset({"limit", "width", "histogram"})

    every: int = 1000
    """Steps between two updates of the limits."""
    quantile: float = 0.9
    """Quantile of a neuron's silences (of the port in FIRE's code; the paper's, 0.95 to 0.99 by task, were not checked
    again)."""
    factor: float = 2.0
    """Factor of a limit that its silences exceed."""
    limit_max: int = 20_000
    """Largest limit, in samples; the first one is half of it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "every >= 1": self.every >= 1,
            "0 < quantile <= 1": 0 < self.quantile <= 1,
            "factor > 1": self.factor > 1,
            "limit_max >= 1": self.limit_max >= 1,
        }
        require("SelfNormalizedResets", rules, self)

    def probes(self) -> dict[str, Probe]:
        """Look at how often neurons fire."""
        return {"moments": MomentsProbe()}

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Age the neurons of one network, and reset those that are silent for too long."""
        flagged: dict[str, Tensor] = {}
        samples: dict[str, int] = {}
        for layer, scores in reading.scores["moments"].items():
            if self._refused(network, self.wired(network).layers[layer]):
                continue
            found = unit_moments(scores)
            known = self.units[network].setdefault(layer, self._new(found.num_samples, len(found.mean)))
            self._age(known, found.firing > 0, found.num_samples)
            flagged[layer], samples[layer] = known["age"] >= known["limit"], found.num_samples
        masks = self.permitted(network, flagged)
        for layer in masks.keys() & flagged.keys():
            self._end_silences(self.units[network][layer], masks[layer])
        for layer, num_samples in samples.items() if step % self.every == 0 else ():
            self._renew(self.units[network][layer], num_samples)
        if masks:
            recycled, moved = self.recycle(network, masks)
            self.tell(network, step, recycled, moved, {})

    def _new(self, num_samples: int, num_neurons: int) -> Units:
        """Return what is known of neurons that were not seen yet; a bin of their histogram is a step's samples wide."""
        bins = self.limit_max // num_samples + 2
        zeros = torch.zeros(num_neurons, dtype=torch.float64, device="cpu")
        return {
            "age": zeros.clone(),
            "limit": torch.full_like(zeros, max(self.limit_max / 2, num_samples)),
            "width": torch.full_like(zeros, num_samples),
            "histogram": torch.zeros(bins, num_neurons, dtype=torch.float64, device="cpu"),
        }

    def _age(self, known: Units, fires: Tensor, num_samples: int) -> None:
        """Count the silences that end, and let the others grow by the samples of the step."""
        self._end_silences(known, fires)
        known["age"] = torch.where(fires, 0.0, known["age"] + num_samples)

    def _end_silences(self, known: Units, ended: Tensor) -> None:
        bins = (known["age"] / known["width"]).round().long().clamp(max=len(known["histogram"]) - 1)
        known["histogram"].scatter_add_(0, bins[None], ended.double().cpu()[None])

    def _renew(self, known: Units, num_samples: int) -> None:
        """Take the limits of one layer from its silences, and forget these."""
        limits = updated_limits(
            known["histogram"], float(known["width"][0]), self.quantile, self.factor, known["limit"]
        )
        known["limit"] = limits.clamp(num_samples, max(self.limit_max, num_samples))
        known["histogram"].zero_()

    def _refused(self, network: str, layer: Layer) -> bool:
        refused = layer.activation is None or layer.activation.rstrip("_") in BOUNDED
        if refused:
            reason = f"h > 0 does not say whether it fires: its activation is {layer.activation}"
            self._skip(network, layer.name, reason)
        return refused
