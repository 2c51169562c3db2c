"""A table, and how it is written: Markdown, LaTeX, HTML, CSV."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plasticity.reports.statistics import Interval
from plasticity.storage.files import printable

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: rf"\{c}" for c in "&%$#_{}"} | {">": "$>$", "<": "$<$", "[": "{[}", "]": "{]}"}

LONG = 24
"""Characters from which on a cell may be broken anywhere, such as a path."""


@dataclass(frozen=True)
class Table:
    """Cells are text, numbers or intervals; None is an empty one. ``note`` explains the numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def number(value: float) -> str:
    """Return three significant digits, all digits of whole thousands, a dash for NaN."""
    if math.isnan(value):
        return "-"
    if abs(value) < 1e-12:  # what rounding leaves of a zero
        return "0"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def cell(value: Any) -> str:
    """Return a cell as text: an interval as ``value [low, high]``."""
    if value is None:
        return ""
    if isinstance(value, Interval):
        if math.isnan(value.low):
            return number(value.value) + " [-]" * (not math.isnan(value.value))
        return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"
    return number(value) if isinstance(value, float) else printable(str(value))


def markdown(table: Table, level: int = 2) -> str:
    """Return a heading, the table and its note."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"

    lines = [line(table.columns), line(["---"] * len(table.columns)), *(line([cell(c) for c in r]) for r in table.rows)]
    parts = [f"{'#' * level} {table.title}", "\n".join(lines), table.note]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """Return a ``table`` environment for the package booktabs; numbers have minus signs, and powers of ten are set."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    caption = _latex(f"{table.title}. {table.note}" if table.note else table.title)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            line(list(map(_latex, table.columns))),
            r"\midrule",
            *(line([_latex_cell(c) for c in row]) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_html(table: Table) -> str:
    """Return the table as HTML, its title and note as the caption; columns of numbers are set to the right."""
    last = [next((c for c in reversed(column) if c not in ("", None)), "") for column in zip(*table.rows, strict=True)]
    last = last or [""] * len(table.columns)
    right = [isinstance(value, int | float | Interval) for value in last]

    def row(cells: Sequence[Any], tag: str) -> str:
        parts = []
        for value, is_number in zip(map(cell, cells), right, strict=True):
            kind = ' class="n"' if is_number else ' class="long"' if len(value) > LONG else ""
            parts.append(f"<{tag}{kind}>{html.escape(value)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    caption = f"<caption><b>{html.escape(table.title)}.</b> {html.escape(table.note)}</caption>"
    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table>{caption}\n<thead>{row(table.columns, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table>"


def comma_separated(table: Table) -> str:
    """Return the cells at full precision; an interval takes three columns."""
    wide = [any(isinstance(row[i], Interval) for row in table.rows) for i in range(len(table.columns))]

    def spread(value: Any, is_wide: bool) -> list[Any]:
        if not is_wide:
            return [value]
        return list(value) if isinstance(value, Interval) else [value, None, None]

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [
        [name, f"{name} low", f"{name} high"] if w else [name] for name, w in zip(table.columns, wide, strict=True)
    ]
    writer.writerow([name for group in heads for name in group])
    for row in table.rows:
        writer.writerow([value for c, w in zip(row, wide, strict=True) for value in spread(c, w)])
    return out.getvalue()


def read_comma_separated(text: str, title: str, note: str = "") -> Table:
    """Return the table of :func:`comma_separated`; ValueError for rows of another length than the first one."""
    heads, *lines = [row for row in csv.reader(io.StringIO(text)) if row]
    if any(len(line) != len(heads) for line in lines):
        raise ValueError(f"rows are not all of {len(heads)} cells")
    wide = [i for i, head in enumerate(heads[:-2]) if heads[i + 1 : i + 3] == [f"{head} low", f"{head} high"]]
    shown = [i for i in range(len(heads)) if not {i - 1, i - 2} & {*wide}]

    def value(line: Sequence[str], place: int) -> Any:
        first, *limits = map(_read, line[place : place + (3 if place in wide else 1)])
        return Interval(first, *limits) if limits and "" not in limits else first

    return Table(title, [heads[i] for i in shown], [[value(line, i) for i in shown] for line in lines], note)


def _read(text: str) -> Any:
    """Return a cell as a whole number, a number, or text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _latex_cell(value: Any) -> str:
    text = _latex(cell(value))
    if not isinstance(value, int | float | Interval):
        return text
    text = re.sub(r"e([+-])0*(\d+)", lambda m: rf"$\cdot 10^{{{m[1].strip('+')}{m[2]}}}$", text)
    return re.sub(r"(?<![\w{])-(?=\d)", "$-$", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
