"""Pages that the source writes: ``python -m plasticity.commands.pages docs``; those of methods, and that of presets.

The page of a method is made of the module's docstring (source), the class's (algorithm, presets, differences) and the
fields. In pages that somebody wrote by hand presets and options stand between marks, and all else is left as it is;
``docs/interventions.md`` has a table with a row for each method.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from plasticity.interventions.costs import COSTS
from plasticity.source import papers

from .options import options, value_text
from .preset_pages import presets_page

MARK = "<!-- Written by `python -m plasticity.commands.pages docs` from the source: change the docstring there. -->"
BEGIN, END = "<!-- methods -->", "<!-- end of methods -->"
OPTIONS, END_OF_OPTIONS = "<!-- options: python -m plasticity.commands.pages docs -->", "<!-- end of options -->"
LINE = 125


def method_page(name: str, kind: type[Any]) -> str:
    """Return the page of a method, in Markdown."""
    parts = [f"# {kind.__name__} (`{_flag(name)}`)", MARK, _prose(source(kind)), _prose(inspect.getdoc(kind) or "")]
    return "\n\n".join([*(part for part in parts if part), _sections(name, kind)]) + "\n"


def with_options(text: str, name: str, kind: type[Any]) -> str:
    """Return a page written by hand with the present presets and options between its marks."""
    block = f"{OPTIONS}\n\n{_sections(name, kind)}\n\n{END_OF_OPTIONS}"
    return re.sub(f"{OPTIONS}.*?{END_OF_OPTIONS}", lambda _: block, text, flags=re.DOTALL)


def source(kind: type[Any]) -> str:
    """Return the docstring of a method's module: title, papers, code."""
    return inspect.getdoc(sys.modules[kind.__module__]) or ""


def row(name: str, kind: type[Any]) -> str:
    """Return a method's row in the table of all methods."""
    summary = (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")
    told = papers(source(kind)) or "-"
    cells = [f"[{name}](interventions/{name}.md)", kind.KIND, _cell(summary), ", ".join(kind.NEEDS), told]
    return f"| {' | '.join([*cells, str(COSTS.get(name, '-')), kind.EAGER or '-'])} |"


def methods_table(methods: dict[str, type[Any]]) -> str:
    """Return the table of all methods, with the marks that it stands between."""
    head = ["| method | kind | does | needs | source | cost | eager |", "|---|---|---|---|---|---|---|"]
    return "\n".join([BEGIN, *head, *(row(name, kind) for name, kind in methods.items()), END])


def with_table(text: str, methods: dict[str, type[Any]]) -> str:
    """Return ``text`` with what stands between the marks replaced by the present table."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: methods_table(methods), text, flags=re.DOTALL)


def _prose(text: str) -> str:
    """Return a docstring as Markdown, its paragraphs wrapped anew; what is indented stays as it is."""
    paragraphs = []
    for paragraph in text.replace("``", "`").split("\n\n"):
        indented = any(line.startswith(" ") for line in paragraph.splitlines())
        paragraphs.append(paragraph if indented else textwrap.fill(" ".join(paragraph.split()), LINE))
    return "\n\n".join(paragraphs)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _sections(name: str, kind: type[Any]) -> str:
    presets = ["## Presets", _presets(kind)] if any(kind.PRESETS.values()) else []
    return "\n\n".join([*presets, "## Options", _options(kind, _flag(name))])


def _presets(kind: type[Any]) -> str:
    keys = list(dict.fromkeys(key for values in kind.PRESETS.values() for key in values))
    head = [f"| preset | {' | '.join(f'`{key}`' for key in keys)} |", f"|---|{'---|' * len(keys)}"]
    cells = [
        [_cell(value_text(values[key])) if key in values else "-" for key in keys] for values in kind.PRESETS.values()
    ]
    return "\n".join([*head, *(f"| `{p}` | {' | '.join(c)} |" for p, c in zip(kind.PRESETS, cells, strict=True))])


def _options(kind: type[Any], flag: str) -> str:
    filled = {f.name for f in dataclasses.fields(kind) if any(f.name in values for values in kind.PRESETS.values())}
    lines = ["| option | default | |", "|---|---|---|"]
    for option in options(kind, f"{flag}."):
        name = option.flag.rpartition(".")[2].replace("-", "_")
        default = "the preset's" if name in filled else option.default
        lines.append(f"| `{option.flag}` | {_cell(default)} | {_cell(option.description)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def written_by_hand(path: Path) -> bool:
    """Return whether there is a page that this command did not write."""
    return path.exists() and MARK not in path.read_text(encoding="utf-8")


def main(folder: str) -> None:
    """Write the pages and the table below ``folder``, the documentation's."""
    from plasticity.interventions import INTERVENTIONS

    for name, kind in INTERVENTIONS.items():
        path = Path(folder) / "interventions" / f"{name}.md"
        by_hand = written_by_hand(path)
        page = with_options(path.read_text(encoding="utf-8"), name, kind) if by_hand else method_page(name, kind)
        path.write_text(page, encoding="utf-8")
    index = Path(folder) / "interventions.md"
    index.write_text(with_table(index.read_text(encoding="utf-8"), dict(INTERVENTIONS)), encoding="utf-8")
    (Path(folder) / "presets.md").write_text(presets_page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
