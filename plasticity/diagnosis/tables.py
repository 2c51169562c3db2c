"""A diagnosis as text: the verdict, and the tables behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .comparison import Comparison
from .trainee import rate_of

if TYPE_CHECKING:
    from .examine import Examination, Tried
    from .verdict import Diagnosis


STUDY = (
    "the order is by one use on a copy; over 23 points of streams and runs it did not foretell which method helps in "
    "what follows: rank correlation -0.03 [-0.29, 0.26] (docs/results.md, benchmarks/evidence/predicts.py)"
)
"""Remark on the table of methods."""
STUDY_AHEAD = (
    "the order is by the loss over the batches that were given, after one use on a copy; over 14 points of streams "
    "it foretold which method helps: rank correlation 0.50 [0.27, 0.70] (docs/results.md)"
)
"""The same where methods are ordered by what comes next."""


def page_text(diagnosis: Diagnosis) -> str:
    """Return the verdict in sentences, then the tables."""
    found = diagnosis.examination
    lines = [f"{found.patient.name}", *(f"  {finding}" for finding in diagnosis.findings)]
    return "\n".join([*lines, *_tables(found), *(["", *diagnosis.more] if diagnosis.more else [])])


def _tables(found: Examination) -> Iterator[str]:
    own = f"{rate_of(found.patient.optimizer):g}"
    rows = []
    for comparison in [found.residual, *found.rates.values(), found.own, found.bandit]:
        if comparison is not None:
            rows.append(_lesson(comparison, own))
    if rows:
        pairs = ("learned", "first", "final", "area", "steps to the higher final")
        head = ["lesson", "rate", *(word for name in pairs for word in (name, "fresh"))]
        yield ""
        yield f"aged beside fresh networks, {found.steps} updates (intervals: over teachers; of another fresh network)"
        yield from in_columns([head, *rows])
    main = f"share of the gap that closes ({found.main.lesson})" if found.main is not None else ""
    if found.parts:
        yield ""
        yield from in_columns([["made fresh", main, "as a fresh network"], *map(_part, found.parts)])
    if found.remedies:
        yield ""
        effect = "lower loss on what comes next" if found.is_ahead else main
        head = ["method", effect, "change of outputs", "seconds"]
        yield from in_columns([head, *map(_remedy, found.remedies)])
        yield f"  note: {STUDY_AHEAD if found.is_ahead else STUDY}"
    if found.refused:
        yield f"  not tried: {'; '.join(f'{name} ({why})' for name, why in found.refused.items())}"
    yield from (f"  note: {remark}" for remark in found.remarks)


def _lesson(comparison: Comparison, own: str) -> list[str]:
    fresh = [curve for curves in comparison.fresh for curve in curves]
    learned, numbers = [comparison.learned.text(".2g"), comparison.null.text(".2g")], []
    for name in ("first", "final", "area"):
        for curves in (comparison.aged, fresh):
            numbers.append(f"{sum(getattr(curve, name) for curve in curves) / len(curves):.3g}")
    numbers += [f"{sum(steps) / len(steps):.0f}" for steps in zip(*comparison.steps, strict=True)]
    return [comparison.lesson, own if comparison.rate is None else f"{comparison.rate:g}", *learned, *numbers]


def _part(tried: Tried) -> list[str]:
    return [tried.name, tried.closes.text(".0%"), "yes" if tried.suffices else "no"]


def _remedy(tried: Tried) -> list[str]:
    assert tried.remedy is not None
    remedy = tried.remedy
    return [remedy.flag, tried.closes.text(".0%"), f"{remedy.disturbance:.1%}", f"{remedy.cost:.2g}"]


def in_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, indented, its columns as wide as they need to be."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
