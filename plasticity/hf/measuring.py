"""The measurement of a language model in training: gradients that are zero everywhere say nothing of single neurons."""

from __future__ import annotations

import dataclasses
import math

from plasticity.measuring import Measure
from plasticity.observing.reading import Coverage, Reading
from plasticity.probes.grama import GradientActivity

NO_GRADIENT = "the loss had no gradient: in GRPO, no group of completions had rewards that differ"
"""The reason of a gradient score without a value."""


class TokenMeasure(Measure):
    """Measure as :class:`~plasticity.measuring.Measure` does; without any gradient, gradient scores have no value.

    GraMa compares the neurons of a layer with each other. Where the loss has no gradient at all, as for groups without
    reward variance, the comparison is 0/0, which must not be taken for a network of inactive neurons.
    """

    def revised(self, network: str, reading: Reading) -> Reading:
        """Return the reading, with NaN and the reason for scores of gradients that are all zero."""
        assert self.watcher is not None
        probes = self.watcher.monitors[network].probes
        empty = [
            name
            for name, by_layer in reading.scores.items()
            if isinstance(probes.get(name), GradientActivity) and not any(bool(s.any()) for s in by_layer.values())
        ]
        if not empty:
            return reading
        values = {m: dict.fromkeys(v, math.nan) if m in empty else v for m, v in reading.values.items()}
        scores = {name: by_layer for name, by_layer in reading.scores.items() if name not in empty}
        return dataclasses.replace(reading, values=values, scores=scores, coverage=_without(reading, empty))


def _without(reading: Reading, probes: list[str]) -> list[Coverage]:
    return [
        Coverage(one.layer, one.probe, False, NO_GRADIENT) if one.probe in probes and one.measured else one
        for one in reading.coverage
    ]
