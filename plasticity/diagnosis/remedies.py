"""Remedies: every installed method that applies is used on a copy, and the copy learns.

A method with a schedule is applied once, before the fit; any other stays switched on during it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from plasticity.interventions import INTERVENTIONS, Intervention

from .attached import Attached
from .trainee import Patient, Trainee, aside, in_evaluation


@dataclass
class Remedy:
    """An installed method, ready to be used on copies of a network."""

    name: str
    kind: type[Intervention]
    patient: Patient
    disturbances: list[float] = field(default_factory=list)
    """By how much each application changed the outputs, ||after - before|| / ||before||; 0 for one that stays on."""
    seconds: list[float] = field(default_factory=list)
    """Time of each application."""

    @property
    def flag(self) -> str:
        """The option of ``plasticity train`` that switches it on."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def disturbance(self) -> float:
        """Mean change of the outputs by an application; NaN before the first."""
        return sum(self.disturbances) / len(self.disturbances) if self.disturbances else math.nan

    @property
    def cost(self) -> float:
        """Mean seconds of an application, or of one update with a method that stays on; NaN before the first."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else math.nan

    def apply(self, trainee: Trainee, twin: nn.Module) -> None:
        """Use the method on a copy: apply it once and take it off, or leave it attached where it has no schedule."""
        before, began = self._outputs(trainee.model), perf_counter()
        attached = Attached(self.patient, trainee, self.kind(**self._settings()), twin)
        if self.has_schedule:
            try:
                self._update(trainee, attached)
            finally:
                attached.end()
        else:
            trainee.attached = attached
        self.seconds.append(perf_counter() - began)
        change = (self._outputs(trainee.model) - before).norm() / before.norm().clamp(min=1e-30)
        self.disturbances.append(float(change))

    @property
    def has_schedule(self) -> bool:
        """Return whether the method is applied every so often, and not all the time."""
        return "every" in self._fields

    @property
    def _fields(self) -> set[str]:
        return {field.name for field in dataclasses.fields(self.kind)}

    def _settings(self) -> Mapping[str, Any]:
        """Return the settings under which a method with a schedule is due at the first step of the optimizer."""
        if not self.has_schedule:
            return {}
        due: dict[str, Any] = {"at": (1,)} if "at" in self._fields else {"every": 1}
        due |= {"window": 1} if "window" in self._fields else {}
        return due | ({"clock": "gradient_steps"} if "clock" in self._fields else {})

    def _update(self, trainee: Trainee, attached: Attached) -> None:
        """Take one update at rate 0, so that the method alone changes the weights."""
        rates = [group["lr"] for group in trainee.optimizer.param_groups]
        batch, patient = self.patient.batches[0], self.patient
        trainee.set_rate_(0.0)
        attached.before()
        trainee.optimizer.zero_grad()
        output = patient.loss or (lambda model, one: patient.forward(model, one).square().mean())
        loss = output(trainee.model, batch)
        if loss.requires_grad:
            loss.backward()
        trainee.optimizer.step()
        attached.after()
        for group, rate in zip(trainee.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate

    def _outputs(self, model: nn.Module) -> Tensor:
        with in_evaluation(model):
            return self.patient.forward(model, self.patient.batches[0]).detach().double().flatten()


def remedies_of(patient: Patient, names: Iterable[str] | None = None) -> tuple[list[Remedy], dict[str, str]]:
    """Return the methods that apply to the network, and why the others do not; ``names``: which, None for all."""
    remedies, refused = [], {}
    for name, kind in ((name, INTERVENTIONS[name]) for name in names or INTERVENTIONS):
        remedy, trainee = Remedy(name, kind, patient), patient.aged()
        try:
            with aside(patient.model, 0):
                Attached(patient, trainee, kind(**remedy._settings()), patient.twin(0)).end()
            remedies.append(remedy)
        except Exception as error:
            refused[name] = str(error).splitlines()[0]
    return remedies, refused
