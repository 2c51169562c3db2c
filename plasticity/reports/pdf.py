"""A report as a PDF: matplotlib writes it, so that no browser and no other package is needed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from .figures import STYLE
from .pictures import Picture
from .tables import Table, cell

PAGE = (11.7, 8.3)
"""Inches of a page of text: A4, across."""
_LINES, _COLUMNS, _WIDEST = 58, 150, 34  # of a page; the widest cell of a table
_CAPTION = 0.18  # inches of a line below a figure


def pdf(title: str, paragraphs: Sequence[str], pictures: Sequence[Picture], tables: Sequence[Table]) -> bytes:
    """Return a PDF: title and paragraphs, then a page for every figure with its caption, then the tables as text.

    The same arguments give the same bytes.
    """
    out = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "pdf.fonttype": 42}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names of runs may have any letters
        with PdfPages(out, metadata={"Title": title, "CreationDate": None}) as pages:
            for page in _paged([title, "", *(line for text in paragraphs for line in [*wrap(text, _COLUMNS), ""])]):
                pages.savefig(page)
            for number, picture in enumerate(pictures, 1):
                _with_caption(pages, picture, f"Figure {number}. {picture.caption}")
            for page in _paged([line for table in tables for line in [*text_table(table), ""]]):
                pages.savefig(page)
    return out.getvalue()


def text_table(table: Table) -> list[str]:
    """Return a table as lines of fixed width; long cells are broken, wide tables are set cell by cell."""
    rows = [list(map(str, table.columns)), *([cell(value) for value in row] for row in table.rows)]
    widths = [min(max(map(len, column)), _WIDEST) for column in zip(*rows, strict=True)]
    lines = [table.title, "-" * len(table.title)]
    if sum(widths) + 2 * len(widths) > _COLUMNS:
        for row in rows[1:]:
            told = [_entry(name, text) for name, text in zip(rows[0], row, strict=True) if text]
            lines += [line for entry in told for line in entry] + [""]
    else:
        for row in rows:
            broken = [
                wrap(text, width, break_on_hyphens=False) or [""] for text, width in zip(row, widths, strict=True)
            ]
            for i in range(max(map(len, broken))):
                parts = [
                    (cells[i] if i < len(cells) else "").ljust(width)
                    for cells, width in zip(broken, widths, strict=True)
                ]
                lines.append("  ".join(parts).rstrip())
    return [*lines, *(wrap(table.note, _COLUMNS) if table.note else [])]


def _entry(name: str, text: str) -> list[str]:
    return _wrapped(f"{name or '-'}: {text}", _COLUMNS, subsequent_indent="    ")


def _wrapped(text: str, width: int, **how: Any) -> list[str]:
    """Break a cell at spaces only: the options of a command stay whole."""
    return wrap(text, width, break_on_hyphens=False, **how)


def _paged(lines: Sequence[str]) -> Iterator[Figure]:
    """Yield pages of lines of fixed width."""
    for start in range(0, len(lines), _LINES):
        page = Figure(figsize=PAGE, layout=None)
        text = "\n".join(lines[start : start + _LINES])
        page.text(0.04, 0.96, text, family="monospace", size=7.2, va="top", linespacing=1.25, parse_math=False)
        yield page


def _with_caption(pages: PdfPages, picture: Picture, caption: str) -> None:
    """Save a figure with its caption below, and leave it as it was."""
    figure = picture.figure
    width, height = figure.get_size_inches()
    lines = wrap(caption, int(width * 15))
    extra = _CAPTION * len(lines) + 0.2
    layout = figure.get_layout_engine()
    figure.set_size_inches(width, height + extra)
    layout.set(rect=(0, extra / (height + extra), 1, height / (height + extra)))
    words = figure.text(0.01, extra / (height + extra) * 0.9, "\n".join(lines), va="top", size=8, parse_math=False)
    words.set_in_layout(False)
    try:
        pages.savefig(figure)
    finally:
        words.remove()
        layout.set(rect=(0, 0, 1, 1))
        figure.set_size_inches(width, height)
