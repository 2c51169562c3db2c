"""Methods on a copy: the context that a copy lends to an intervention, and the step that takes its loss terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.callback import Context, end, fire, start
from plasticity.interventions import Intervention

from .targets import Item
from .trainee import Patient, Trainee


class CopyStep:
    """The seam of gradient steps (``Context.steps``) on a copy: terms that are added to its loss, and projections."""

    def __init__(self) -> None:
        self.terms: dict[str, Any] = {}
        self.projections: dict[str, Callable[[Any], None]] = {}
        self._more: dict[str, tuple[Mapping[str, nn.Module], Callable[[], Any] | None]] = {}

    def add(
        self,
        name: str,
        term: Callable[..., Tensor],
        *,
        reads: Mapping[str, nn.Module] | None = None,
        draw: Callable[[], Any] | None = None,
    ) -> None:
        """Add ``term(networks, batch)``, or with ``draw`` ``term(networks, batch, drawn)``, to the loss."""
        self.terms[name], self._more[name] = term, (reads or {}, draw)

    def extra(self, networks: Mapping[str, nn.Module], batch: Any) -> Tensor | float:
        """Return the sum of all terms on a batch."""
        total: Tensor | float = 0.0
        for name, term in self.terms.items():
            reads, draw = self._more.get(name, ({}, None))
            total = total + term({**networks, **reads}, batch, *([] if draw is None else [draw()]))
        return total


class Attached:
    """One method at work on a copy, from its start to its end."""

    def __init__(self, patient: Patient, trainee: Trainee, method: Intervention, origin: nn.Module) -> None:
        """Start the method; it sees the weights of ``origin``, a fresh network, as those at the start of training.

        Raises what the method raises where it does not apply.
        """
        self.step, self.method, self.trainee, self.name = CopyStep(), method, trainee, patient.name
        lent: dict[str, Any] = {"peek": patient.peek or self._peek, "forward": {patient.name: patient.forward}}
        self._batches = patient.batches
        networks, optimizers = {patient.name: trainee.model}, {patient.name: trainee.optimizer}
        steps = {patient.name: self.step}
        self.ctx = Context(networks, optimizers, steps=steps, name=patient.name, **lent)
        aged = {name: p.detach().clone() for name, p in trainee.model.named_parameters()}
        fresh = dict(origin.named_parameters())
        _write(trainee.model, {name: fresh[name] for name in aged if name in fresh})
        start([method], self.ctx)
        self._sync()
        _write(trainee.model, aged)

    def _peek(self, num: int, generator: torch.Generator) -> Any:
        """Return one of the batches, whatever their size."""
        index = torch.randint(len(self._batches), (), generator=generator, device=generator.device)
        return self._batches[int(index)]

    def before(self) -> None:
        """Begin an update."""
        fire([self.method], "on_update_start", self.ctx)

    def extra(self, item: Any) -> Tensor | float:
        """Return what the method adds to the loss on the batch of an item of a lesson."""
        return self.step.extra(self.ctx.networks, item.batch if isinstance(item, Item) else item)

    def after(self) -> None:
        """End an update."""
        with torch.no_grad():
            for project in self.step.projections.values():
                project(self.ctx.networks)
        fire([self.method], "on_update_end", self.ctx, {})
        self._sync()

    def end(self) -> None:
        """Take the hooks of the method off."""
        end([self.method], self.ctx)

    def _sync(self) -> None:
        """Take over what the method put in the place of the network or the optimizer."""
        self.trainee.model = self.ctx.networks[self.name]
        self.trainee.optimizer = self.ctx.optimizers[self.name]


def _write(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values and values[name].shape == parameter.shape:
                parameter.copy_(values[name])
