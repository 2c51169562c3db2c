"""Trials: every fit of an examination by its key, kept on disk, within a budget of time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.structure.labels import tensors_in

from .bounds import before_the_bound
from .fit import FitCurve, fit, one_number
from .parts import renew_all
from .targets import Lesson, bandit_lesson, residual_lesson, teach
from .trainee import Patient, Trainee, aside, seed_everything

AGED, FRESH = "aged", "fresh"
RESIDUAL, BANDIT, OWN = "residual", "bandit", "own"
FORMAT = 3
"""Version of the stores; another one is not gone on from."""
Change = Callable[[Trainee, nn.Module], Any]
"""``change(trainee, twin)`` does something to a copy before it learns; ``twin`` is a fresh network."""


class OutOfTime(Exception):
    """The budget is used up; trials that were made are kept."""


@dataclass
class Budget:
    """Seconds that an examination may take; ``tell(done)`` is called after every trial."""

    seconds: float = math.inf
    tell: Callable[[str], None] = lambda what: None
    began: float = field(default_factory=perf_counter)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.began + self.seconds - perf_counter()

    def require(self) -> None:
        """Raise OutOfTime where none is left."""
        if self.left() <= 0:
            raise OutOfTime


class Trials:
    """The fits of one patient, each made once: ``curve(lesson, who, teacher)``.

    ``steps``: updates of a fit. ``store``: a file that keeps the curves, from which a later examination of the same
    weights, optimizer and data with the same steps goes on.
    """

    def __init__(self, patient: Patient, steps: int, budget: Budget, store: Path | None = None, seed: int = 0) -> None:
        self.patient, self.steps, self.budget, self.store, self.seed = patient, steps, budget, store, seed
        self._curves: dict[str, list[float]] = {}
        self.notes: dict[str, list[float]] = {}
        """Other numbers of trials by key, such as by how much a method changed the outputs; kept with the curves."""
        self.took: list[float] = []
        """Seconds of each fit that was made here; those of the store took none."""
        self._signals: dict[int, Any] = {}
        self._weights: dict[str, float] = {}
        self._twins: dict[int, nn.Module] = {}
        self._what = _fingerprint(patient, steps, seed)
        if store is not None and (saved := _read(store)).get("what") == self._what:
            self._curves, self.notes = saved["curves"], saved["notes"]

    def curve(
        self, lesson: str, who: str, teacher: int, change: Change | None = None, rate: float | None = None
    ) -> FitCurve:
        """Return the losses of ``who`` in a lesson by a teacher; raise OutOfTime where it is new and no time is left.

        ``who``: ``fresh 0``, ``fresh 1``, ..., or any other name for the aged network; both after ``change``, under a
        name of its own (``fresh 0 settled``).
        """
        key = f"{self.patient.name}|{lesson}|{who}|{teacher}|{rate}"
        if key not in self._curves:
            self.budget.require()
            began = perf_counter()
            self._curves[key] = list(self._fit(lesson, who, teacher, change, rate).losses)
            self.took.append(perf_counter() - began)
            self._save()
            self.budget.tell(f"{self.patient.name}: {lesson}, {who}")
        return FitCurve(tuple(math.inf if loss is None else loss for loss in self._curves[key]))

    def twin(self, seed: int) -> nn.Module:
        """Return a fresh network, kept for later."""
        if seed not in self._twins:
            self._twins[seed] = self.patient.twin(seed)
        return self._twins[seed]

    def trainee(self, who: str, teacher: int, change: Change | None = None) -> Trainee:
        """Return a copy for a trial, changed and ready to learn."""
        trainee = self.patient.aged()
        if who.startswith(FRESH):
            renew_all(trainee, self.twin(self._number("fresh", int(who.split()[1]))))
        if change is not None:
            change(trainee, self.twin(self._number("change", teacher)))
        return trainee

    @cached_property
    def taught(self) -> Patient:
        """The patient with its outputs before a last function that bounds them: those that teachers teach."""
        return replace(self.patient, forward=before_the_bound(self.patient))

    def lesson(self, name: str, model: nn.Module, teacher: int) -> Lesson:
        """Return what ``model`` is to learn: residual, bandit or own."""
        patient = self.patient
        if name == OWN:
            assert patient.loss is not None
            shift = teacher % len(patient.batches)  # another order
            return Lesson([*patient.batches[shift:], *patient.batches[:shift]], patient.loss)
        if teacher not in self._signals:
            self._signals[teacher] = teach(self.taught, self._number("teacher", teacher))
        if name == BANDIT:
            assert patient.policy is not None
            return bandit_lesson(patient.policy, patient.forward, patient.batches, self._signals[teacher])
        return residual_lesson(model, self.taught.forward, patient.batches, self._signals[teacher])

    def kept(self, *key: str) -> list[float]:
        """Return a list of further numbers, empty at first: what is appended to it is kept with the next curve."""
        return self.notes.setdefault("|".join(key), [])

    def _fit(self, lesson: str, who: str, teacher: int, change: Change | None, rate: float | None) -> FitCurve:
        with aside(self.patient.model, self._number("fit", teacher)):
            trainee = self.trainee(who, teacher, change)
            trainee.set_rate_(rate)
            made, weight = self.lesson(lesson, trainee.model, teacher), self.weight(lesson)
            seed_everything(self._number("fit", teacher))
            if trainee.settling:
                settle_(trainee, made, weight)
            return fit(trainee.model, trainee.optimizer, made.items, made.loss, self.steps, weight, trainee.attached)

    def weight(self, lesson: str) -> float:
        """Return the factor that brings the gradient of a lesson, for a fresh network, to the size of that of training.

        An optimizer that divides by past gradients, such as Adam, would otherwise make smaller or larger steps for that
        reason alone, and its state would be blamed. 1 where the loss of training is not known or has no gradient.
        """
        if lesson == OWN or self.patient.loss is None or not self.patient.optimizer.state:
            return 1.0
        if lesson not in self._weights:
            sizes = []
            for name in (OWN, lesson):
                model = self.trainee(f"{FRESH} 0", 0).model
                sizes.append(_gradient_size(model, self.lesson(name, model, 0)))
            own, theirs = sizes
            usable = math.isfinite(own) and math.isfinite(theirs) and own > 0 and theirs > 0
            self._weights[lesson] = own / theirs if usable else 1.0
        return self._weights[lesson]

    def _number(self, what: str, index: int) -> int:
        """Return the seed of a stream of random numbers."""
        kinds = {"fresh": 1, "teacher": 2, "change": 3, "fit": 4}
        return self.seed * 1_000_003 + kinds[what] * 10_007 + index

    def _save(self) -> None:
        if self.store is not None:
            self.store.parent.mkdir(parents=True, exist_ok=True)
            plain = {k: [x if math.isfinite(x) else None for x in c] for k, c in self._curves.items()}
            partial = self.store.with_suffix(".partial")
            partial.write_text(json.dumps({"what": self._what, "curves": plain, "notes": self.notes}), encoding="utf-8")
            partial.replace(self.store)


def settle_(trainee: Trainee, lesson: Lesson, weight: float) -> None:
    """Let the optimizer get to know the gradients of a lesson for ``trainee.settling`` updates at rate 0.

    Some optimizers move the weights even so; they are put back.
    """
    before = {name: p.detach().clone() for name, p in trainee.model.named_parameters()}
    rates = [group["lr"] for group in trainee.optimizer.param_groups]
    trainee.set_rate_(0.0)
    fit(trainee.model, trainee.optimizer, lesson.items, lesson.loss, trainee.settling, weight, trainee.attached)
    for group, rate in zip(trainee.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    with torch.no_grad():
        for name, parameter in trainee.model.named_parameters():
            parameter.copy_(before[name])


def _read(store: Path) -> dict[str, Any]:
    """Return what a store holds; nothing where it is missing, or is no store: its trials are made anew."""
    try:
        saved = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return saved if isinstance(saved, dict) and saved.keys() >= {"what", "curves", "notes"} else {}


def _fingerprint(patient: Patient, steps: int, seed: int) -> list[Any]:
    """Return numbers that two examinations share if they ask the same of the same weights, optimizer and data."""
    optimizer = patient.optimizer
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    held = [list(patient.model.parameters()), list(optimizer.state.values()), *patient.batches]
    sizes = [[_size(tensor) for tensor in tensors_in(one)] for one in held]
    return [FORMAT, steps, seed, type(optimizer).__name__, repr(options), repr(sizes)]


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())


def _gradient_size(model: nn.Module, lesson: Lesson) -> float:
    """Return the root mean square, over batches, of the norm of the gradient."""
    squares = []
    for batch in lesson.items:
        model.zero_grad()
        loss = one_number(lesson.loss(model, batch))
        if not loss.requires_grad:
            return 0.0
        loss.backward()
        found = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        squares.append(float(sum(found)))
    return math.sqrt(sum(squares) / len(squares))
