"""Rankings of methods for ``predicts.py``: that of ``diagnose``, and others that its fits could give.

- ``diagnose``: its own order. Methods with which the copy learns random teachers as a fresh network does, by how little
  they change the outputs; then the rest by the share of the gap that they close.
- ``share``: by that share alone.
- ``longer``: by what is learned of a teacher in 100 updates instead of 40.
- ``anchored``: the teacher is added to the outputs from before the method, which a method that forgets has to relearn.
- ``repeated``: three teachers in a row, 40 updates each, the method before each.
- ``own``: by the loss of training over 100 updates, on the data at hand.
- ``next``: the same on the data of the next task, which nobody has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from plasticity.diagnosis.comparison import Comparison, Size, changed, compare
from plasticity.diagnosis.examine import Tried, rank
from plasticity.diagnosis.fit import fit
from plasticity.diagnosis.remedies import Remedy, remedies_of
from plasticity.diagnosis.targets import Lesson
from plasticity.diagnosis.trainee import Patient, aside
from plasticity.diagnosis.trials import AGED, OWN, RESIDUAL, Budget, Trials

ANCHORED = "anchored"
LONG, REPEATS, SHORT = 100, 3, 40
"""Updates of a long fit; teachers in a row, and updates on each."""
ONCE = ("plasticity_injection",)
"""Methods that can be applied once."""
Values = dict[str, float]
"""Method, or ``none`` -> place in a ranking, higher is better."""


class Rehearsals(Trials):
    """Trials with the lesson ``anchored``."""

    def lesson(self, name: str, model: nn.Module, teacher: int) -> Lesson:
        """Return what ``model`` is to learn; anchored: the outputs of the network as it is, and a teacher's."""
        if name != ANCHORED:
            return super().lesson(name, model, teacher)
        made = super().lesson(RESIDUAL, self.patient.model, teacher)
        assert isinstance(made, Lesson)
        return made


def rankings_of(patient: Patient, methods: Iterable[str], ahead: Patient | None = None) -> dict[str, Values]:
    """Return ranking -> values; ``ahead``: the patient with data of the next task."""
    found, usable = {}, {remedy.name: remedy for remedy in remedies_of(patient, methods)[0]}
    found["diagnose"], found["share"] = of_diagnose(patient, usable)
    long = Rehearsals(patient, LONG, Budget())
    found["longer"] = by_fits(long, RESIDUAL, usable)
    found["anchored"] = by_fits(long, ANCHORED, usable)
    found["repeated"] = {name: repeated(patient, one) for name, one in [("none", None), *usable.items()]}
    for name, who in (("own", patient), ("next", ahead)):
        if who is not None and who.loss is not None and who.judged:
            mine = {key: replace(remedy, patient=who) for key, remedy in usable.items()}
            found[name] = by_fits(Rehearsals(who, LONG, Budget()), OWN, mine)
    return found


def of_diagnose(patient: Patient, usable: dict[str, Remedy]) -> tuple[Values, Values]:
    """Return the places in the order of ``diagnose``, and the shares that close; nothing where nothing is lost."""
    trials = Trials(patient, 40, Budget())
    main = _main(trials, [RESIDUAL, *([OWN] if patient.loss is not None and patient.judged else [])])
    if main is None:
        return {}, {}
    tried = []
    for name, remedy in usable.items():
        curves = changed(trials, main, f"remedy {name}", remedy.apply)
        tried.append(Tried(name, "", main.closes(curves), main.suffices(curves), remedy))
    tried.sort(key=rank)
    better = [one.name for one in tried if one.closes.low > 0]
    order = [*better, "none", *(one.name for one in tried if one.name not in better)]
    shares = {"none": 0.0, **{one.name: one.closes.value for one in tried}}
    return {name: -float(place) for place, name in enumerate(order)}, shares


def _main(trials: Trials, lessons: list[str]) -> Comparison | None:
    compared = (compare(trials, lesson, Size()) for lesson in lessons)
    return next((one for one in compared if one.fresh_learns and one.is_slower), None)


def by_fits(trials: Trials, lesson: str, usable: dict[str, Remedy]) -> Values:
    """Return the mean outcome of a lesson over two teachers: what is learned, or minus the area under the own loss."""
    values = {}
    for name, change in [("none", None), *((name, remedy.apply) for name, remedy in usable.items())]:
        who = AGED if change is None else f"remedy {name}"
        curves = [trials.curve(lesson, who, teacher, change) for teacher in range(2)]
        outcomes = [-min(curve.area, 1e9) if lesson == OWN else curve.learned for curve in curves]
        values[name] = sum(outcomes) / len(outcomes)
    return values


def repeated(patient: Patient, remedy: Remedy | None) -> float:
    """Return the mean share learned of teachers that follow one another, over two such rows."""
    trials, learned = Trials(patient, SHORT, Budget()), []
    for row in range(2):
        with aside(patient.model, row):
            trainee = patient.aged()
            for number in range(REPEATS):
                teacher = row * REPEATS + number
                if remedy is not None and (number == 0 or (remedy.has_schedule and remedy.name not in ONCE)):
                    remedy.apply(trainee, patient.twin(1000 + teacher))
                made = trials.lesson(RESIDUAL, trainee.model, teacher)
                weight = trials.weight(RESIDUAL)
                curve = fit(trainee.model, trainee.optimizer, made.items, made.loss, SHORT, weight, trainee.attached)
                learned.append(curve.learned)
    return sum(learned) / len(learned)
