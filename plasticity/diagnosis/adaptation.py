"""The RL-adaptation probe: how far an agent's own updates move its policy, beside fresh policies and fresh heads.

A policy that has lost its entropy hardly moves, however well its weights could learn: the gradient of the expected
return vanishes with the probabilities of all actions but one. A fresh head, or outputs as small as those of a fresh
policy, moves then. A policy that has converged moves little too: this alone is no finding, the lesson ``bandit`` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from plasticity.isolation import named_parameters

from .intervals import of_mean, of_next
from .parts import Renew, output_parameters, renew_all
from .tables import in_columns
from .trainee import Patient, Trainee, aside

AS_IT_IS, FRESH_HEAD, SOFTENED, FRESH_POLICY = "as it is", "fresh head", "raised entropy", "fresh policy"

POLICY_ACTIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "softmax": lambda output: output.softmax(-1),
    "tanh": torch.tanh,
    "tanh_gaussian": lambda output: output.chunk(2, -1)[0].tanh(),
    "bounded": lambda output: output,
    None: lambda output: output.chunk(2, -1)[0].clamp(-1, 1),
}
"""Reading of outputs as a policy -> the actions, or their probabilities; None: mean and log_std, clipped to [-1, 1]."""


class Rehearsal(Protocol):
    """A copy of an agent: its policy as a trainee, and its own updates."""

    trainee: Trainee

    def update(self, number: int) -> None:
        """Take the update on the batch of this number."""


@dataclass(frozen=True)
class Adaptation:
    """Variant of the policy -> by draw, how far the updates moved it: the mean |change| of actions or probabilities."""

    moved: Mapping[str, tuple[float, ...]]
    updates: int

    @property
    def is_stuck(self) -> bool:
        """Return whether the policy as it is moves less than another fresh one would."""
        return of_mean(self.moved[AS_IT_IS]).value < of_next(self.moved[FRESH_POLICY]).low

    def lines(self) -> Iterator[str]:
        """Yield the table, or that there is none: at a rate of 0 no policy moves."""
        if not any(any(values) for values in self.moved.values()):
            yield f"{self.updates} of the agent's own updates move no policy, not even a fresh one: is the rate 0?"
            return
        yield f"moved by {self.updates} of the agent's own updates (mean change of actions, or of their probabilities)"
        rows = [[name, of_mean(values).text(".3f")] for name, values in self.moved.items()]
        yield from in_columns([["policy", "moved"], *rows])


def rehearse(patient: Patient, make: Callable[[], Rehearsal], updates: int, draws: int = 4) -> Adaptation:
    """Let copies of the agent update the policy, in each of four variants and for ``draws`` fresh networks.

    ``patient``: the policy; ``make()``: a new copy of the agent, the same every time.
    """
    changes: dict[str, Renew | None] = {
        AS_IT_IS: None,
        FRESH_HEAD: _fresh_head(patient),
        SOFTENED: _softened(patient),
        FRESH_POLICY: renew_all,
    }
    moved = {n: tuple(_moved(patient, make, c, updates, d) for d in range(draws)) for n, c in changes.items()}
    return Adaptation(moved, updates)


def _moved(patient: Patient, make: Callable[[], Rehearsal], change: Renew | None, updates: int, draw: int) -> float:
    with aside(patient.model, draw):
        rehearsal = make()
        if change is not None:
            change(rehearsal.trainee, patient.twin(draw))
        before = _actions(patient, rehearsal.trainee.model)
        for number in range(updates):
            rehearsal.update(number + draw)
        return float((_actions(patient, rehearsal.trainee.model) - before).abs().mean())


@torch.no_grad()
def _actions(patient: Patient, model: nn.Module) -> Tensor:
    read = POLICY_ACTIONS[patient.policy]
    return torch.cat([read(patient.forward(model, batch)).double() for batch in patient.batches])


def _fresh_head(patient: Patient) -> Renew:
    def renew(trainee: Trainee, twin: nn.Module) -> None:
        fresh = named_parameters(twin)
        trainee.take_({name: fresh[name] for name in output_parameters(patient) if name in fresh})

    return renew


def _softened(patient: Patient) -> Renew:
    """Return what scales the output layers so that outputs are as large as those of the twin."""

    def renew(trainee: Trainee, twin: nn.Module) -> None:
        sizes = [_size(patient, module) for module in (trainee.model, twin)]
        own = named_parameters(trainee.model)
        trainee.take_({name: own[name] * (sizes[1] / sizes[0]) for name in output_parameters(patient)})

    return renew


@torch.no_grad()
def _size(patient: Patient, model: nn.Module) -> float:
    outputs: Sequence[Tensor] = [patient.forward(model, batch) for batch in patient.batches]
    return float(torch.cat([output.flatten() for output in outputs]).square().mean().sqrt().clamp(min=1e-12))
