"""The page of a metric: its meaning, and the docstring of the class that computes it, read without importing it."""

from __future__ import annotations

import ast
import inspect
from html import escape
from pathlib import Path

import plasticity
from plasticity.meanings import meaning

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 46rem; margin: 3rem auto; padding: 0 1rem; font: 15px/1.55 system-ui, sans-serif; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1rem; margin-top: 2rem; }} p.bad {{ color: light-dark(#b4441f, #f0935a); }}
pre {{ white-space: pre-wrap; font: inherit; }} code {{ font-size: .9em; opacity: .8; }}
</style></head><body><h1>{title}</h1>{body}</body></html>
"""


def metric_page(metric: str) -> str:
    """Return the page of a metric as HTML; of one that is not the package's own, a page that says so."""
    title, found = escape(metric.replace("_", " ")), meaning(metric)
    if found is None:
        return _PAGE.format(title=title, body="<p>A metric of your own: its probe or meter knows what it means.</p>")
    parts = [f"<p>{escape(found.about)}.</p>"]
    if found.bad:
        parts.append(f'<p class="bad">Bad: {escape(found.bad)}.</p>')
    for heading, text in docstrings(found.source):
        parts.append(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>")
    parts.append(f"<p><code>plasticity.{escape(found.source)}</code></p>")
    return _PAGE.format(title=title, body="".join(parts))


def docstrings(source: str) -> list[tuple[str, str]]:
    """Return (heading, docstring) of the class ``folder.module.Class`` of the package, and of its module."""
    *module, name = source.split(".")
    path = Path(plasticity.__file__).parent.joinpath(*module).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    whole = (".".join(module), ast.get_docstring(tree))
    found = [
        (name, ast.get_docstring(node)) for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return [(heading, inspect.cleandoc(text)) for heading, text in (*found, whole) if text]
