"""Symptoms: what the installed probes say of the aged network, beside fresh ones on the same data."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import nn

from plasticity.monitor import Monitor

from .intervals import Estimate, of_next
from .trainee import Patient, in_evaluation
from .trials import Trials

SYMPTOM_PROBES = ("dormancy", "rank")


@dataclass(frozen=True)
class Symptoms:
    """Metric -> layer -> value in the aged network, and what another fresh one would have."""

    aged: dict[str, dict[str, float]]
    fresh: dict[str, dict[str, Estimate]]

    def lower(self, metric: str, share: float = 1.0) -> list[str]:
        """Return the layers in which the aged network has less of a metric than another fresh one would have.

        ``share``: and at most this share of what fresh ones have.
        """
        known = self.fresh.get(metric, {})
        return [
            layer
            for layer, value in self.aged.get(metric, {}).items()
            if layer in known and value < known[layer].low and value <= share * known[layer].value
        ]

    def higher(self, metric: str) -> list[str]:
        """Return the layers in which the aged network has more of a metric than another fresh one would have."""
        known = self.fresh.get(metric, {})
        return [la for la, value in self.aged.get(metric, {}).items() if la in known and value > known[la].high]


def symptoms_of(trials: Trials, num_fresh: int) -> Symptoms:
    """Measure the network and ``num_fresh`` fresh ones on the first batch."""
    aged = _values(trials.patient, trials.patient.aged().model)
    fresh = [_values(trials.patient, trials.trainee(f"fresh {i}", 0).model) for i in range(num_fresh)]
    both: dict[str, dict[str, Estimate]] = {}
    for metric, layers in aged.items():
        columns = {la: [f[metric][la] for f in fresh if la in f.get(metric, {})] for la in layers}
        both[metric] = {layer: of_next(values) for layer, values in columns.items() if values}
    return Symptoms(aged, both)


def _values(patient: Patient, model: nn.Module) -> dict[str, dict[str, float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few samples: aged and fresh have the same; of no layer: read() says so
        with Monitor(model, SYMPTOM_PROBES) as monitor, in_evaluation(model):
            patient.forward(model, patient.batches[0])
        return monitor.read().values
