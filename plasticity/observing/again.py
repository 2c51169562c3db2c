"""Readings of network probes: a private pass for each, and its results beside those of layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from plasticity.callback import note
from plasticity.isolation import undisturbed
from plasticity.probes.network import Again, NetworkProbe, NotMeasurable

from .reading import ALL, Coverage, Reading


class NetworkReadings:
    """Network probes by name, and those that failed."""

    def __init__(self, probes: Mapping[str, NetworkProbe], strict: bool) -> None:
        self.probes, self.strict = probes, strict
        self._failed: dict[str, str] = {}

    def add_to(self, reading: Reading, again: Again) -> None:
        """Measure, and add the values, scores and reasons to a reading."""
        for name, probe in self.probes.items():
            reason = self._failed.get(name, "")
            try:
                if not reason:
                    with undisturbed(again.model, self), torch.enable_grad():
                        found = probe.measure(again)
                    for metric, values in found.items():
                        reason = _add(reading, metric, values, probe.nan_reason) or reason
                    if details := probe.details():
                        reading.details[name] = {ALL: details}
            except NotMeasurable as error:
                reason = str(error)
            except Exception as error:
                if self.strict:
                    note(error, f"raised by the probe {name}")
                    raise
                reason = self._failed[name] = f"the probe failed: {type(error).__name__}: {error}"
                message = f"probe {name!r} failed and is off from now on: {error!r}"
                warnings.warn(message, RuntimeWarning, stacklevel=3)
            if reason:
                for metric in getattr(probe, "metrics", (name,)):
                    reading.values.setdefault(metric, {ALL: math.nan})
            reading.coverage.append(Coverage(ALL, name, not reason, reason))


def _add(reading: Reading, metric: str, values: Tensor | Mapping[str, Tensor], nan_reason: str) -> str:
    """Add what one metric gave; return why it has no value, empty if it has."""
    if isinstance(values, Tensor):
        values = {ALL: values}
    else:
        scores = {layer: value.detach().double().cpu() for layer, value in values.items() if value.dim()}
        if scores:
            reading.scores[metric] = scores
        values = {layer: value.double().mean() for layer, value in values.items()}
        values = {**values, ALL: torch.stack(list(values.values())).mean()}
    found = dict(zip(values, torch.stack([v.detach().double() for v in values.values()]).tolist(), strict=True))
    reading.values[metric] = found
    return nan_reason if math.isnan(found[ALL]) else ""
