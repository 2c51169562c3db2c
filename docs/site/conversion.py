"""Pages of the site that are no Markdown in the repository, and links that lead from page to page."""

from __future__ import annotations

import ast
import base64
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINK = re.compile(r"(!?)\[([^\]\n]*(?:\n[^\]\n]*)?)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def relinked(text: str, path: str, page: str, places: Mapping[str, str]) -> str:
    """Return a page's text with links that fit its place; a link to a file that is not on the site becomes its text.

    `path` is the file's in the repository, `page` its place on the site, `places` those of all files.
    """

    def link(found: re.Match[str]) -> str:
        mark, words, target = found.groups()
        file, hash_, anchor = target.partition("#")
        if "://" in target or not file or target.startswith("mailto:"):
            return found[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
        if there not in places:
            return words
        return f"{mark}[{words}]({posixpath.relpath(places[there], posixpath.dirname(page) or '.')}{hash_}{anchor})"

    parts = CODE.split(text)
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


# -- examples ----------------------------------------------------------------------------------------------------------


def example_page(file: Path) -> str:
    """Return the page of an example: its docstring, its source."""
    text = file.read_text(encoding="utf-8")
    said, _, command = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")
    source = text.partition('"""\n\n')[2]
    return (
        f"# {file.stem.replace('_', ' ').capitalize()}\n\n{said}\n\n```sh\n{command}\n```\n\n```python\n{source}```\n"
    )


def gallery_page(files: Sequence[Path]) -> str:
    """Return the page that lists the examples."""
    rows = []
    for file in files:
        said = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        rows.append(f"- [{file.stem.replace('_', ' ').capitalize()}]({file.stem}.md): {said}")
    return "# Examples\n\nEach is a file of less than 40 lines, which the tests run.\n\n" + "\n".join(rows) + "\n"


# -- notebooks ---------------------------------------------------------------------------------------------------------


def notebook_page(file: Path, folder: Path) -> str:
    """Return a notebook as Markdown; pictures among its outputs are written into `folder`."""
    parts = []
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        outputs = cell.get("outputs", [])
        parts += [shown(output, folder / f"{file.stem}-{number}-{i}.png") for i, output in enumerate(outputs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(output: Mapping[str, Any], picture: Path) -> str:
    """Return an output of a cell as Markdown, a picture as a link to its file."""
    data = output.get("data", {})
    if "image/png" in data:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode("".join(data["image/png"])))
        return f"![output]({picture.name})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


# -- reference ---------------------------------------------------------------------------------------------------------

EXPORTED = ("", "probes", "meters", "interventions", "writers", "diagnosis", "agents", "envs", "testing")
"""Packages whose names in `__all__` are the reference."""
WHOLE = ("callback", "metrics", "surgery.base")
"""Modules that are shown whole."""


def reference_pages(package: Path) -> dict[str, str]:
    """Return the pages of the reference by name, each a list of objects whose docstrings are shown."""
    found = {}
    for part in EXPORTED:
        name = ".".join(filter(None, ("plasticity", part)))
        names = exported(package / part / "__init__.py")
        objects = "\n\n".join(f"::: {name}.{one}" for one in names)
        found[part or "plasticity"] = f"# {name}\n\n{objects}\n"
    optional = [part.stem for part in package.iterdir() if part.stem in ("sb3", "torchrl", "hf", "lightning")]
    for part in (*WHOLE, *sorted(optional)):
        found[part] = f"# plasticity.{part}\n\n::: plasticity.{part}\n    options:\n      show_root_heading: false\n"
    return found


def exported(file: Path) -> list[str]:
    """Return the names that a module exports, functions and classes before constants."""
    assigned = [n for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.Assign)]
    (names,) = (ast.literal_eval(n.value) for n in assigned if getattr(n.targets[0], "id", "") == "__all__")
    return sorted(names, key=lambda name: (name.isupper(), name.lower()))
