"""The fit probe as a meter: can a copy of the network still learn what a fresh one learns?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from plasticity.callback import Context
from plasticity.surgery.origin import Origins

from .meter import Measured, Meter


@dataclass
class FitProbe(Meter):
    """Share of a random lesson that a copy of the network learns in a few updates.

    The lesson is to add the outputs of a random network to one's own; the copies learn it by a copy of the optimizer.
    Logs ``fit_aged`` and ``fit_fresh``, the shares learned, in [0, 1], and ``fit_gap``, fresh minus aged: above 0 the
    network has lost plasticity. Copies are thrown away, training goes on to the same bits. Each measurement takes
    2 * teachers * steps updates of every network: 80 by default. ``plasticity diagnose`` says where the gap comes from.

    Source: Lyle et al. 2023, arXiv 2303.01486, section 3; paired with fresh networks as in
    Felix-Zhenghao/rigorous-plasticity.
    """

    NAME: ClassVar[str] = "fit_probe"
    NEEDS: ClassVar[tuple[str, ...]] = ("peek", "forward", "optimizers")

    steps: int = 20
    """Updates of a fit."""
    teachers: int = 2
    """Random teachers, each with a fresh network of its own."""
    states: int = 64
    """Past states of a batch."""
    batches: int = 4
    """Batches, which are learned from in turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if broken := [n for n in ("steps", "teachers", "states", "batches") if getattr(self, n) < 1]:
            raise ValueError(f"FitProbe needs {broken[0]} >= 1, got {getattr(self, broken[0])}")
        self.origins = Origins()

    def on_train_start(self, ctx: Context) -> None:
        """Record what fresh weights are drawn from."""
        super().on_train_start(ctx)
        self.origins = Origins.of(self.chosen(ctx))

    def measure(self, ctx: Context) -> Measured:
        """Return the shares that copies and fresh networks learned, and their difference, by network."""
        assert ctx.peek is not None
        batches = [ctx.peek(self.states, self.generator) for _ in range(self.batches)]
        seed = int(torch.randint(2**31, (), generator=self.generator, device=self.generator.device))
        return {name: self._of(ctx, name, network, batches, seed) for name, network in self.chosen(ctx).items()}

    def _of(
        self, ctx: Context, name: str, network: nn.Module, batches: list[Any], seed: int
    ) -> dict[str, torch.Tensor]:
        # Imported here: diagnosis also tries interventions, which may import meters.
        from plasticity.diagnosis.fresh import from_origin
        from plasticity.diagnosis.trainee import Patient
        from plasticity.diagnosis.trials import Budget, Trials

        fresh = from_origin(network, self.origins[name])
        patient = Patient(name, network, ctx.optimizer_of(name), batches, ctx.forward[name], fresh)
        trials, teachers = Trials(patient, self.steps, Budget(), seed=seed), range(self.teachers)
        aged = sum(trials.curve("residual", "aged", t).learned for t in teachers) / self.teachers
        new = sum(trials.curve("residual", f"fresh {t}", t).learned for t in teachers) / self.teachers
        values: Mapping[str, float] = {"fit_aged": aged, "fit_fresh": new, "fit_gap": new - aged}
        return {key: torch.tensor(value) for key, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return clock, generator, and what fresh weights are drawn from."""
        return {**super().state_dict(), "origins": self.origins.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.origins.load_state_dict(state["origins"])
