"""Print the learning-quality table of docs/results.md, or write it there.

python benchmarks/learning/table.py [--write]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from results import load, scores, summary
from rows import ROWS

DOC = Path(__file__).parents[2] / "docs" / "results.md"
BEGIN, END = "<!-- learning table: benchmarks/learning/table.py -->", "<!-- end of learning table -->"
COLUMNS = ("row", "environment, steps", "seeds", "median", "IQM, 95 % interval", "bar", "reference (its budget)")


def table() -> str:
    """Return the Markdown table; rows without results say so."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(cells(name) for name in ROWS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cells(name: str) -> list[str]:
    """Return one row of the table."""
    row, records = ROWS[name], load(name)
    found = ["not measured", "", ""]
    if records:
        values = summary(records)
        interval = f" [{number(values['low'])}, {number(values['high'])}]" if "low" in values else ""
        listed = " ".join(number(score) for score in scores(records))
        found = [listed, f"**{number(values['median'])}**", f"{number(values['iqm'])}{interval}"]
    return [f"`{name}`", f"{row.env}, {row.steps:,}", *found, f"{row.bar:g}", f"[{row.reference}]({row.source})"]


def number(value: float) -> str:
    """Return it with one digit after the point below 100 in size, with none above."""
    return f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"


def written(text: str) -> str:
    """Return the document with the table between its two marks."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"{DOC} lacks the lines {BEGIN!r} and {END!r}, between which the table belongs")
    block = f"{BEGIN}\n\n{table()}\n\n{END}"
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DOC.write_text(written(DOC.read_text()))
    else:
        print(table())
