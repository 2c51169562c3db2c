"""The verdict: causes in plain words, each with its evidence, the most certain and least invasive first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .comparison import TAUGHT, Comparison
from .intervals import Estimate
from .trainee import rate_of
from .trials import BANDIT, OWN

if TYPE_CHECKING:
    from .examine import Examination, Tried

NOTHING, UNKNOWN = "nothing is wrong", "cannot tell"
TITLES = {
    "rate": "the learning rate",
    "loss": "the loss, not the network",
    "replay": "the replayed data, not the network",
    "target network": "the target network that lags behind",
    "optimizer state": "the optimizer's state",
    "frozen": "parameters that are not trained",
    "dead neurons": "dead neurons",
    "scale": "the scale of the weights",
    "norms": "the norms",
    "biases": "the biases",
    "last layer": "the last layer",
    "collapsed features": "collapsed features",
    "layer": "one layer",
    "weights": "the weights as a whole",
    "policy": "the policy has lost its entropy, not the network its plasticity",
    NOTHING: NOTHING,
    UNKNOWN: UNKNOWN,
}
"""Cause -> its name in a sentence."""
SATURATED = "the actions are at their bounds, where no gradient moves them; the network has not lost its plasticity"
"""The same of a policy whose actions are numbers."""


@dataclass(frozen=True)
class Finding:
    """A cause, the sentence that names it, and the numbers that the sentence rests on."""

    cause: str
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = [
            f"{key}: {value.text() if isinstance(value, Estimate) else value}" for key, value in self.evidence.items()
        ]
        return self.sentence + (f"  ({'; '.join(shown)})" if shown else "")


@dataclass
class Diagnosis:
    """The findings on one network, the main one first, and the examination that they rest on."""

    findings: list[Finding]
    examination: Examination
    more: list[str] = field(default_factory=list)
    """Further lines to print, such as the table of the RL-adaptation probe."""

    @property
    def cause(self) -> str:
        """The cause that is named first: a key of ``TITLES``."""
        return self.findings[0].cause

    @property
    def advice(self) -> str | None:
        """The flag of the method that restored most, None where none did."""
        best = next(iter(helpful(self.examination)), None)
        return None if best is None or best.remedy is None else best.remedy.flag

    def __str__(self) -> str:
        from .tables import page_text

        return page_text(self)


def judge(found: Examination) -> Diagnosis:
    """Return the verdict on an examination."""
    findings = list(_findings(found)) or list(_at_a_rate_that_teaches(found)) or [_nothing(found)]
    if (best := next(iter(helpful(found)), None)) is not None and best.remedy is not None:
        findings.append(
            Finding(
                "remedy",
                f"Try {best.remedy.flag}: used once on a copy, it {_effect(found, best)}",
                {"change of the outputs": f"{best.remedy.disturbance:.1%}"},
            )
        )
    return Diagnosis(findings, found)


def _effect(found: Examination, tried: Tried) -> str:
    if found.is_ahead:
        return f"lowers the loss on what comes next by {_percent(tried.closes)}"
    return f"returns {_percent(tried.closes)} of what is lost"


def helpful(found: Examination) -> list[Tried]:
    """Return the methods that restored learning beyond chance, the best first."""
    return [tried for tried in found.remedies if tried.closes.low > 0]


def _findings(found: Examination) -> Iterator[Finding]:
    name, residual = found.patient.name, found.residual
    if residual is None:
        yield Finding(UNKNOWN, f"Cannot tell: the budget ended before {name} and fresh networks had learned one lesson")
        return
    if not residual.fresh_learns:
        yield from _teaches_nothing(found, residual)
        return
    if found.own is not None and not found.own.fresh_learns:
        yield Finding(
            "loss",
            f"The loss teaches nothing: fresh networks do not lower it in {found.steps} updates, and they learn a "
            "random teacher from the same data",
            {"random teacher, fresh": residual.null},
        )
    if found.main is not None and found.main.lesson == BANDIT:
        yield from _policy(found, found.main)
    elif found.main is not None:
        yield from _lost(found, found.main)


def _at_a_rate_that_teaches(found: Examination) -> Iterator[Finding]:
    """Yield, where fresh networks learn next to nothing at the own rate and enough at another, how the network does."""
    residual, own = found.residual, rate_of(found.patient.optimizer)
    if residual is None or residual.fresh_learn_enough:
        return
    works = [(rate, c) for rate, c in found.rates.items() if c.fresh_learn_enough]
    if not works:
        return
    rate, best = max(works, key=lambda pair: pair[1].null.value)
    little = "next to nothing" if residual.fresh_learns else "nothing"
    yield Finding(
        "rate",
        f"The learning rate is {own:g}: with it fresh networks learn {little} in {found.steps} updates either; with "
        f"{rate:g} they learn",
        {"learned at the own rate, fresh": residual.null, f"at {rate:g}": best.null},
    )
    does = _slower(best) if best.is_slower else "learns a random teacher as a fresh network would"
    yield Finding(
        "at another rate",
        f"At {rate:g} {found.patient.name} {does}",
        {"learned": best.learned, "fresh networks": best.null},
    )


def _teaches_nothing(found: Examination, residual: Comparison) -> Iterator[Finding]:
    if at_another := list(_at_a_rate_that_teaches(found)):
        yield from at_another
    elif not any(math.isfinite(curves[0].first) for curves in residual.fresh):
        yield Finding(UNKNOWN, "Cannot tell: the outputs of fresh networks on these data are no finite numbers")
    else:
        yield Finding(
            UNKNOWN,
            f"Cannot tell: fresh networks learn nothing from these data in {found.steps} updates; give more",
            {"learned, fresh": residual.null},
        )


def _lost(found: Examination, main: Comparison) -> Iterator[Finding]:
    name, slower = found.patient.name, _slower(main)
    evidence: dict[str, Any] = {"learned": main.learned, "fresh networks": main.null}
    if not found.parts:
        yield Finding(UNKNOWN, f"{name} {slower}; cannot tell where that is lost: the budget ended", evidence)
        return
    first = explaining(found.parts)
    at_best = _at_best_rates(found, main) if main is found.residual else None
    if at_best is not None and (first is None or first.cause in LATER_THAN_RATE):
        yield Finding(
            "rate", f"{name} {slower} at its own rate, and as fast at {at_best:g}: it is badly scaled", evidence
        )
        return
    if found.rates and main is found.residual:
        evidence |= _best_of_rates(found, main)
    if first is None:
        yield Finding(UNKNOWN, f"{name} {slower}; cannot tell where: no part that was made fresh returns it", evidence)
        return
    cause, where = _cause(found, first)
    before = found.parts[: found.parts.index(first)]
    if before and (nearly := max(before, key=lambda part: part.closes.value)).closes.low > 0:
        evidence[f"fresh {nearly.name} alone"] = _percent(nearly.closes)
    returned = f"{_percent(first.closes)} of it returns with fresh {first.name}"
    yield Finding(cause, f"{name} {slower}; {returned}: {where}", evidence)


def explaining(parts: Sequence[Tried]) -> Tried | None:
    """Return the part that explains a gap: the least invasive that closes it, or else the one that closes most of it.

    Most is more than half, with the whole interval. Making everything fresh explains it only where no part does. None
    where nothing does.
    """
    single = [part for part in parts if part.cause != "weights"]
    everything = next((part for part in parts if part.cause == "weights" and part.suffices), None)
    enough = next((part for part in single if part.suffices), None)
    mostly = max(single, key=lambda part: part.closes.low, default=None)
    if enough is None and mostly is not None and mostly.closes.low > 0.5:
        return mostly
    return enough or everything


LATER_THAN_RATE = ("norms", "biases", "last layer", "layer", "weights")
"""Causes that are named only where no other rate does as well."""


def _at_best_rates(found: Examination, residual: Comparison) -> float | None:
    """Return the rate at which the aged network learns as fresh ones do at their best, None if there is none."""
    (rate, aged), (_, fresh) = _best(found, residual)
    return rate if aged.learned.value >= fresh.null.low else None


def _best(found: Examination, residual: Comparison) -> tuple[tuple[float, Comparison], tuple[float, Comparison]]:
    """Return the best rates of the aged and of the fresh networks, each with what was measured there."""
    every = [(rate_of(found.patient.optimizer), residual), *found.rates.items()]
    aged = max(every, key=lambda pair: pair[1].learned.value)
    return aged, max(every, key=lambda pair: pair[1].null.value)


def _best_of_rates(found: Examination, residual: Comparison) -> dict[str, Estimate]:
    """Return the evidence of other rates: a network that is only badly scaled does well at one of them."""
    (rate, aged), (other, fresh) = _best(found, residual)
    return {f"at its best rate, {rate:g}": aged.learned, f"fresh networks at theirs, {other:g}": fresh.null}


LITTLE = 0.1
"""Share of what fresh networks learn up to which steps to the same loss say little: noise alone reaches it."""
COLLAPSED = 0.5
"""Share of a fresh network's effective rank up to which features are said to have collapsed."""


def _cause(found: Examination, part: Tried) -> tuple[str, str]:
    """Return the cause that a part stands for, and the words for it; symptoms say what is wrong with a layer.

    Dead neurons stay dead under a fresh last layer, so where that suffices, they are not the cause.
    """
    if part.cause not in ("last layer", "layer", "weights") or found.symptoms is None:
        return part.cause, TITLES[part.cause]
    for cause, metric, layers, form in (
        ("dead neurons", "dormancy", found.symptoms.higher("dormancy"), ".0%"),
        ("collapsed features", "effective_rank", found.symptoms.lower("effective_rank", COLLAPSED), ".1f"),
    ):
        if cause == "dead neurons" and part.cause == "last layer" and part.suffices:
            continue
        for layer in (layer for layer in layers if layer != "all"):
            value, usual = found.symptoms.aged[metric][layer], found.symptoms.fresh[metric][layer]
            words = (
                "neurons of {} are dormant," if cause == "dead neurons" else "features of {} collapsed, effective rank"
            )
            return cause, f"the {words.format(layer)} {value:{form}}, in fresh networks {usual.text(form)}"
    return part.cause, TITLES[part.cause]


def _policy(found: Examination, bandit: Comparison) -> Iterator[Finding]:
    first = explaining(found.parts) if found.parts else None
    lost = TITLES["policy"] if found.patient.policy == "softmax" else SATURATED
    returned = f"; {_percent(first.closes)} of that returns with fresh {first.name}" if first else ""
    yield Finding(
        "policy",
        f"{found.patient.name} no longer follows rewards, and learns a random teacher as a fresh network would: "
        f"{lost}{returned}",
        {"learned from rewards": bandit.learned, "fresh networks": bandit.null},
    )


def _nothing(found: Examination) -> Finding:
    """Return that nothing was found, or that nothing could be: fresh networks have to learn to tell it."""
    residual = found.residual
    assert residual is not None
    if not residual.fresh_learn_enough:
        return Finding(
            UNKNOWN,
            f"Cannot tell: fresh networks learn next to nothing of a random teacher in {found.steps} updates at "
            f"{rate_of(found.patient.optimizer):g}, and no other rate was found at which they do; give more updates",
            {"learned": residual.learned, "fresh networks": residual.null},
        )
    settled = ", once the momentum of its optimizer has turned" if found.settled else ""
    shared = f" that shares its {', '.join(found.undrawn)}" if found.undrawn else ""
    return Finding(
        NOTHING,
        f"Nothing is wrong with {found.patient.name}: "
        f"it learns a random teacher as a fresh network{shared} would{settled}",
        {"learned": residual.learned, "fresh networks": residual.null},
    )


def _slower(comparison: Comparison) -> str:
    what = "its own loss" if comparison.lesson == OWN else "a random teacher"
    aged, share = comparison.aged, comparison.learned.value / comparison.null.value
    if share <= TAUGHT or sum(curve.final for curve in aged) >= sum(curve.first for curve in aged):
        return f"learns nothing of {what}, fresh networks do"
    if share <= LITTLE:
        return f"learns {share:.0%} as much of {what} as a fresh network"
    ratio = comparison.slowdown
    return f"learns {what} {ratio.value:.1f} times slower than a fresh network [{ratio.low:.1f}, {ratio.high:.1f}]"


def _percent(share: Estimate) -> str:
    return f"{min(share.value, 1):.0%} [{min(share.low, 1):.0%}, {min(share.high, 1):.0%}]"
