"""Outputs behind a last function that bounds them, such as tanh: lessons are put before it.

A random teacher cannot be added to outputs that are at their bound, however well the weights learn. So the function is
looked for by writing values in the place of the last layer's outputs, and where there is one, the residual lesson is
about what goes into it. Whether the bound itself stands in the way is for the lesson ``bandit`` to say, and for the own
loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plasticity.isolation import named_modules

from .parts import output_layers
from .trainee import Forward, Patient, in_evaluation

FAR_AWAY = 1e4
"""Distance from 0 at which a function that is bounded has stopped growing."""


def before_the_bound(patient: Patient) -> Forward:
    """Return what runs a network up to where its outputs are bounded; the patient's own ``forward`` if they are not."""
    model = patient.aged().model
    names = output_layers(patient, model)
    if len(names) != 1 or names[0] not in named_modules(model) or not _is_bounded(patient, model, names[0]):
        return patient.forward

    def forward(network: nn.Module, batch: Any) -> Tensor:
        seen: list[Tensor] = []
        layer = named_modules(network).get(names[0])
        handle = layer and layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            outputs = patient.forward(network, batch)
        finally:
            if handle:
                handle.remove()
        return seen[-1] if seen else outputs

    return forward


def _is_bounded(patient: Patient, model: nn.Module, name: str) -> bool:
    """Return whether the outputs are a bounded function, entry by entry, of one layer's outputs and of nothing else."""
    layer, shapes = named_modules(model)[name], set()

    def given(value: float, elsewhere: float) -> Tensor:
        """Return the outputs where the layer puts out ``value`` in its first entry and ``elsewhere`` in all others."""

        def put(_: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            shapes.add(output.shape)
            values = torch.full_like(output, elsewhere)
            values[..., 0] = value
            return values

        handle = layer.register_forward_hook(put)
        with in_evaluation(model):
            outputs = patient.forward(model, patient.batches[0])
        handle.remove()
        shapes.add(outputs.shape)
        return outputs.double()

    low, high = given(-1, -1), given(1, 1)
    if len(shapes) != 1 or low.dim() < 2:
        return False
    near, far, other = high - low, given(FAR_AWAY, FAR_AWAY) - given(-FAR_AWAY, -FAR_AWAY), given(1, -1) - low
    alone = other[..., 1:].abs().amax() == 0 if other.shape[-1] > 1 else True
    same = all(bool((rows == rows[:1]).all()) for rows in (low.flatten(0, -2), high.flatten(0, -2)))
    return bool(alone) and same and bool(((near.abs() > 0) & (far.abs() < FAR_AWAY / 100 * near.abs())).all())
