"""Probes of a network as a whole: they run it again, on the inputs of the last pass that counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from plasticity.isolation import call_of, map_tensors

from .probe import Probe

WHOLE = "all"
"""In place of a layer: the network."""
NO_LOSS = "it needs the loss: measure() with a loss_fn, watch() with loss=, or a run of an agent that lends its steps"


LossAgain = Callable[[], "Tensor | Mapping[str, Tensor]"]
"""Computes a loss, or the parts by name of which it is the sum."""


def total_of(loss: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Return a loss, or the sum of its parts by name."""
    if not isinstance(loss, Mapping):
        return loss
    first, *more = loss.values()
    for part in more:
        first = first + part
    return first


class NotMeasurable(Exception):
    """A network probe cannot measure here; the message says why. No failure: other networks are measured."""


@dataclass(frozen=True)
class Again:
    """A pass of a network that can be run again: in evaluation mode, and without a trace."""

    model: nn.Module
    args: tuple = ()
    kwargs: Mapping[str, Any] | None = None
    method: str = "forward"
    objective: LossAgain | None = None
    """Computes the loss of the last pass anew, with gradients, or its parts by name; None where it is not known."""

    def output(self, samples: int | None = None) -> Any:
        """Return the model's output, of the first ``samples`` of the batch, or of all."""
        return call_of(self.model, self.method)(*self._first(self.args, samples), **self._first(self.kwargs, samples))

    def losses(self) -> dict[str, Tensor]:
        """Return the parts of the loss by name, 0-D each; raise NotMeasurable where it is not known."""
        if self.objective is None:
            raise NotMeasurable(NO_LOSS)
        found = self.objective()
        return dict(found) if isinstance(found, Mapping) else {"loss": found}

    def loss(self) -> Tensor:
        """Return the loss, 0-D; raise NotMeasurable where it is not known, or does not depend on the network."""
        loss = total_of(self.losses())
        if not loss.requires_grad:
            raise NotMeasurable("its loss has no gradient")
        return loss

    def parameters(self) -> list[Tensor]:
        """Return the parameters that train; raise NotMeasurable without any, and of complex ones."""
        found: list[Tensor] = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not found:
            raise NotMeasurable("none of its parameters trains")
        if any(parameter.is_complex() for parameter in found):
            raise NotMeasurable("its parameters are complex")
        return found

    def _first(self, values: Any, samples: int | None) -> Any:
        values = values or {}
        batch = next((len(t) for t in tensors_within((self.args, self.kwargs or {})) if t.dim()), 0)
        if samples is None:
            return map_tensors(values, torch.clone)
        return map_tensors(values, lambda t: t[:samples].clone() if t.dim() and len(t) == batch else t.clone())


def tensors_within(value: Any) -> list[Tensor]:
    """Return the tensors in containers, and in a plain object, such as a distribution."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(value, note)
    if not found and hasattr(value, "__dict__"):
        map_tensors(dict(vars(value)), note)
    return found


class NetworkProbe(Probe):
    """Measure a network as a whole, by running it again on the inputs of the last pass; write :meth:`measure`.

    Runs with gradients on, in evaluation mode, with random states, buffers and train flags put back; it must not write
    to ``.grad`` (use ``torch.autograd.grad``), and draws random numbers from generators of its own.
    """

    COST: ClassVar[str] = "pass"
    last_step_only = True

    def measure(self, again: Again) -> Mapping[str, Tensor | Mapping[str, Tensor]]:
        """Return metric -> its value, 0-D, or -> module -> value; several numbers of one module are its scores.

        Scores, (parts,), such as a number per head, have their mean as value. Raise NotMeasurable with the reason where
        there is nothing to measure.
        """
        raise NotImplementedError(f"{type(self).__name__} has no measure()")

    def compute(self) -> Tensor:
        """Refuse: a network is no layer."""
        raise RuntimeError(f"{type(self).__name__} has seen no data: it measures networks, by measure()")
