"""The examination of a network: the order of its trials, and ``plasticity.diagnose``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.isolation import named_parameters, unwrap
from plasticity.structure.optimizers import all_parameters
from plasticity.surgery.optimizer_state import SurgeryError
from plasticity.surgery.origin import Origin

from .ahead import MAX_AHEAD, Ahead, look_ahead
from .comparison import Comparison, Size, changed, compare
from .fit import FitCurve
from .fresh import Fresh, from_builder, from_defaults, from_origin, undrawn
from .intervals import Estimate, of_mean
from .parts import parts_of
from .rates import at_a_rate_that_teaches, at_other_rates
from .remedies import Remedy, remedies_of
from .settling import SETTLING, settles
from .surroundings import in_fresh_surroundings
from .symptoms import Symptoms, symptoms_of
from .targets import POLICIES
from .trainee import Forward, Patient, aside, first_output
from .trials import BANDIT, OWN, RESIDUAL, Budget, OutOfTime, Trials
from .verdict import Diagnosis, judge

STEPS = 40
"""Updates of a fit."""
MAX_BATCHES = 8


@dataclass
class Tried:
    """The effect of a change: of a part that was made fresh, or of a method."""

    name: str
    cause: str
    closes: Estimate
    suffices: bool
    remedy: Remedy | None = None


@dataclass
class Examination:
    """All that the trials of one network found; None or empty where the budget ended before."""

    patient: Patient
    steps: int
    residual: Comparison | None = None
    """At the optimizer's own rate."""
    rates: dict[float, Comparison] = field(default_factory=dict)
    """Rate -> the same at other rates."""
    own: Comparison | None = None
    bandit: Comparison | None = None
    settled: list[str] = field(default_factory=list)
    """Lessons in which the aged network is slower only until the optimizer's momentum has turned."""
    parts: list[Tried] = field(default_factory=list)
    remedies: list[Tried] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Method -> why it does not apply."""
    is_ahead: bool = False
    """Methods are ordered by the loss on what comes next, not by what they return of a gap."""
    symptoms: Symptoms | None = None
    remarks: list[str] = field(default_factory=list)
    undrawn: list[str] = field(default_factory=list)
    """Modules that fresh networks have from the aged one, as they cannot be drawn anew."""
    complete: bool = False

    @property
    def main(self) -> Comparison | None:
        """The comparison by which parts and methods are judged: the first in which the aged network is slower.

        None where it is in none. A random teacher tells most of the weights, rewards most of the policy, and the own
        loss is the last: its fall also depends on what was learned before.
        """
        compared = [c for c in (self.residual, self.bandit, self.own) if c is not None]
        return next((c for c in compared if c.is_slower and c.lesson not in self.settled), None)


def diagnose(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    *,
    forward: Forward | None = None,
    fresh: Callable[[], nn.Module] | Origin | None = None,
    policy: str | None = None,
    budget: float = 60.0,
    steps: int = STEPS,
    teachers: int = 4,
    remedies: bool = True,
    ahead: Iterable[Any] | None = None,
    name: str = "model",
    store: Path | str | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda what: None,
) -> Diagnosis:
    """Say whether a network can still learn, where that is lost, and what would help, by trials on copies.

    ``batches``: the first 8 of these are used; a pair (inputs, targets), inputs alone, or anything that ``forward`` and
    ``loss`` take. ``loss(model, batch)``: the loss of training, a number. ``forward(model, batch)``: the outputs, one
    tensor, (batch, ...); left out, the model is called on the inputs. ``fresh``: builds the model anew, or the recorded
    :class:`~plasticity.surgery.origin.Origin` of its weights; left out, every module's own ``reset_parameters``.
    ``policy``: a key of :data:`~plasticity.diagnosis.targets.POLICIES` where outputs are a policy. ``budget``: seconds.
    ``steps``: updates of a fit; ``teachers``: random teachers. ``remedies``: whether to try methods. ``ahead``:
    batches of what comes next, such as a new task, of which the first 100 are used; methods are then ordered by how
    much lower they make ``loss`` on these, and tried even where nothing is lost. ``store``: a file
    to go on from, as long as weights, optimizer, batches and options are the same; the loss has to be, too.
    ``tell(what)`` is called after each trial. ``print`` the result.

    Model, optimizer, gradients and random states stay as they were. Raises ValueError for no batches, for outputs
    without a floating-point tensor, for an optimizer of another model, and for a ``fresh`` of another structure or one
    that draws the same weights every time; errors of model and loss pass through.
    """
    found = list(islice(batches, MAX_BATCHES))
    if not found:
        raise ValueError("diagnose needs at least one batch; got none")
    coming = None if ahead is None else list(islice(ahead, MAX_AHEAD))
    if coming is not None and (loss is None or len(coming) < 2):
        given = f"{len(coming)} and {'no loss' if loss is None else 'a loss'}"
        raise ValueError(f"ahead needs at least 2 batches and the loss of training; got {given}")
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"no policy {policy!r}; there are {', '.join(POLICIES)}")
    if math.isnan(budget):
        raise ValueError("budget is a number of seconds; got nan")
    if teachers < 2 or steps < 2:
        raise ValueError(f"diagnose needs at least 2 teachers and 2 steps; got {teachers} and {steps}")
    _require_trained_by(model, optimizer)
    maker = _maker(model, fresh)
    kept = [name or "the model" for name in undrawn(model)] if fresh is None else []
    _require_draws(model, maker)
    patient = Patient(name, unwrap(model), optimizer, found, forward or first_output, maker, loss=loss, policy=policy)
    trials = Trials(patient, steps, Budget(budget, tell), None if store is None else Path(store), seed)
    return judge(examine(trials, Size(teachers=teachers), remedies, coming, by_default=fresh is None, undrawn=kept))


def _require_trained_by(model: nn.Module, optimizer: Optimizer) -> None:
    held = {id(p) for p in all_parameters(optimizer)} if isinstance(optimizer, Optimizer) else set()
    if not any(id(p) in held for p in unwrap(model).parameters()):
        raise ValueError(
            f"diagnose needs the optimizer that trains the model; {type(optimizer).__name__} holds none of the "
            f"parameters of {type(model).__name__}"
        )


def _require_draws(model: nn.Module, maker: Fresh) -> None:
    with aside(model, 0):
        first, second = (named_parameters(maker(torch.Generator().manual_seed(seed))) for seed in range(2))
    if all(torch.equal(first[name], second[name]) for name in first):
        raise ValueError(
            "two fresh networks came out the same, and their spread is what the network is judged by; pass fresh=, a "
            "function that builds the model with newly drawn weights, without a seed of its own"
        )


def _maker(model: nn.Module, fresh: Callable[[], nn.Module] | Origin | None) -> Fresh:
    if isinstance(fresh, Origin):
        return from_origin(model, fresh)
    return from_defaults(model) if fresh is None else from_builder(fresh, model)


def examine(
    trials: Trials,
    size: Size | None = None,
    remedies: bool = True,
    ahead: Sequence[Any] | None = None,
    *,
    by_default: bool = False,
    undrawn: Sequence[str] = (),
) -> Examination:
    """Make the trials of one network, the most telling first, until they are made or the budget ends.

    ``by_default``: whether fresh networks are drawn by ``reset_parameters``, but for the modules in ``undrawn``.
    """
    size = size or Size()
    found = Examination(trials.patient, trials.steps, undrawn=list(undrawn))
    if by_default:
        found.remarks.append(
            "fresh networks are drawn by each module's reset_parameters; pass fresh= where the start was another"
        )
    if found.undrawn:
        found.remarks.append(f"not drawn anew, for want of reset_parameters or an inverse: {', '.join(found.undrawn)}")
    if names := not_finite(trials.patient):
        found.remarks.append(f"not finite: {', '.join(names)}")
    try:
        found.residual = compare(trials, RESIDUAL, size)
        if not found.residual.fresh_learn_enough:
            found.rates = at_a_rate_that_teaches(trials)
        if trials.patient.loss is not None and trials.patient.judged:
            found.own = compare(trials, OWN, size)
        if trials.patient.policy is not None:
            found.bandit = compare(trials, BANDIT, size)
        _look_at_symptoms(trials, size.fresh, found)
        _let_settle(trials, found)
        if found.main is not None and found.residual.fresh_learns:
            _try_parts(trials, found.main, found)
            _try_surroundings(trials, found.main, found)
            if found.main is found.residual:
                found.rates |= at_other_rates(trials)
            if remedies and ahead is None:
                _try_remedies(trials, found.main, found)
        if remedies and ahead is not None:
            found.is_ahead = True
            _try_remedies(*look_ahead(trials, ahead, size.teachers), found)
        found.complete = True
    except OutOfTime:
        found.remarks.append(_ended(trials, size, found.residual is None))
    if found.main is not None and found.main.may_be_chance:
        found.remarks.append(
            f"{found.main.lesson}: what is lost differs between teachers, {of_mean(found.main.gaps).text()} on "
            "average, and may be chance; more teachers tell"
        )
    return found


def not_finite(patient: Patient) -> list[str]:
    """Return the parameters, buffers and entries of the optimizer's state that hold numbers that are not finite."""
    model = unwrap(patient.model)
    names = {id(parameter): name for name, parameter in named_parameters(model).items()}
    held: dict[str, Any] = dict(model.state_dict())
    for parameter, state in patient.optimizer.state.items():
        held |= {f"the optimizer's {key} of {names.get(id(parameter), 'a parameter')}": v for key, v in state.items()}
    return [name for name, value in held.items() if isinstance(value, Tensor) and not bool(value.isfinite().all())]


def _ended(trials: Trials, size: Size, has_no_answer: bool) -> str:
    """Return that the budget ended, and the one that would do for a first answer where there is none."""
    if not has_no_answer:
        return "the budget ended before all trials were made; give more"
    needed = size.teachers * (1 + size.fresh)
    remark = f"the budget ended before the {needed} fits of the first lesson were made"
    if not trials.took:
        return f"{remark}; give more"
    usual = trials.took[1:] or trials.took  # the first one also starts what runs for the first time
    each = sum(usual) / len(usual)
    enough = f"a first answer needs some {math.ceil(needed * each)} s for each network"
    return f"{remark}; one takes {each:.2g} s, so that {enough}"


def _look_at_symptoms(trials: Trials, num_fresh: int, found: Examination) -> None:
    """Measure symptoms; the trials do not need them, and go on where the probes find no layer in the model."""
    try:
        found.symptoms = symptoms_of(trials, num_fresh)
    except (RuntimeError, ValueError) as error:
        found.remarks.append(f"no probe of dormancy and ranks: {error}")


def _let_settle(trials: Trials, found: Examination) -> None:
    """Note the lessons in which it is enough that the optimizer gets to know them."""
    for comparison in (found.residual, found.bandit):
        if comparison is None or not comparison.fresh_learns or not comparison.is_slower:
            continue
        if settles(trials, comparison):
            found.settled.append(comparison.lesson)
            found.remarks.append(
                f"{comparison.lesson}: slower at first, until momentum has turned; as fast as a fresh network once its "
                f"optimizer has seen {SETTLING} gradients of the lesson"
            )


def _try_parts(trials: Trials, comparison: Comparison, found: Examination) -> None:
    for part in parts_of(trials.patient):
        try:
            curves = changed(trials, comparison, f"part {part.name}", part.renew)
        except SurgeryError as error:  # an optimizer whose state cannot be told apart by neuron
            found.remarks.append(f"{part.name}: not made fresh, {error}")
            continue
        found.parts.append(Tried(part.name, part.cause, comparison.closes(curves), comparison.suffices(curves)))


def _try_surroundings(trials: Trials, comparison: Comparison, found: Examination) -> None:
    """Make fresh what is not the network; in the table it stands first, for it leaves the network alone."""
    tried = []
    for name, part in trials.patient.surroundings.items():
        if comparison.lesson not in part.lessons:
            found.remarks.append(f"{name}: plays no part in the lesson {comparison.lesson}")
            continue
        try:
            closes, suffices = in_fresh_surroundings(trials, comparison, name)
        except RuntimeError as error:  # an environment that ends before there are enough data
            found.remarks.append(f"{name}: not made fresh, {error}")
            continue
        tried.append(Tried(name, name, closes, suffices))
    found.parts[:0] = tried


def _try_remedies(trials: Trials, comparison: Comparison | Ahead, found: Examination) -> None:
    remedies, found.refused = remedies_of(trials.patient)
    for remedy in remedies:
        remedy.disturbances, remedy.seconds = trials.kept(remedy.name, "change"), trials.kept(remedy.name, "seconds")
        try:
            curves: tuple[FitCurve, ...] = changed(trials, comparison, f"remedy {remedy.name}", remedy.apply)
        except OutOfTime:
            raise
        except Exception as error:  # a method that fails on a copy says so in the table
            found.refused[remedy.name] = f"{type(error).__name__}: {error}"
            continue
        closes = comparison.closes(curves)
        found.remedies.append(Tried(remedy.name, "", closes, comparison.suffices(curves), remedy))
        found.remedies.sort(key=rank)


def rank(tried: Tried) -> tuple[bool, float, float]:
    """Return the place of a method: those that restore all that is lost by how little they disturb, then the rest."""
    assert tried.remedy is not None
    share = -tried.closes.value if math.isfinite(tried.closes.value) else math.inf
    return not tried.suffices, round(tried.remedy.disturbance, 3) if tried.suffices else 0.0, share
