"""Read what modules define from their source, without importing them: torch alone takes more than a second."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Definition:
    """An expression or definition, and the page that it stands on."""

    page: Page
    node: ast.AST


class Page:
    """The source of one module."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.defined: dict[str, ast.AST] = {}
        """Name at module level -> its class, function, assigned value, or the import that brings it."""
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                self.defined[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                self.defined |= {alias.asname or alias.name: node for alias in node.names}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.defined[node.target.id] = node.value
            elif isinstance(node, ast.Assign):
                self.defined |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}

    def find(self, name: str) -> Definition | None:
        """Return the definition of a name, through relative imports; what comes from elsewhere gives its import."""
        node = self.defined.get(name)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else Definition(self, node)
        alias = next(alias for alias in node.names if name == (alias.asname or alias.name))
        if node.level == 0:
            return Definition(self, alias)
        folder = self.path.parents[node.level - 1]
        target = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
        if node.module is None or (target / f"{alias.name}.py").is_file():  # ``from . import module``
            page = page_at(target / alias.name)
            return None if page is None else Definition(page, page.tree)
        page = page_at(target)
        return None if page is None else page.find(alias.name)

    def origin(self, alias: ast.alias) -> str:
        """Return the full name of what an import brings."""
        node = self.defined[alias.asname or alias.name]
        return f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name

    def entries(self, name: str) -> dict[str, Definition]:
        """Return the entries of a dict that is written out, in its order; ValueError for one that is computed."""
        found = self.find(name)
        if found is None or not isinstance(found.node, ast.Dict):
            raise ValueError(f"{self.path}: {name} must be a dict that is written out")
        entries = {}
        for key, value in zip(found.node.keys, found.node.values, strict=True):
            if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
                raise ValueError(f"{found.page.path}: every name in {name} must be written out")
            entries[key.value] = Definition(found.page, value)
        return entries


@cache
def page_at(path: Path) -> Page | None:
    """Return the page of a module or package, given its path without suffix; None if there is none."""
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return Page(file)
    return None


def target(definition: Definition) -> Definition | None:
    """Return the class, function or module that an entry stands for; None for one that is computed.

    An entry is a name, ``module.NAME``, ``partial(name, ...)``, ``partial(function, class)``, or a tuple that begins
    with one of these.
    """
    node, page = definition.node, definition.page
    if isinstance(node, ast.Tuple) and node.elts:
        return target(Definition(page, node.elts[0]))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "partial" and node.args:
        called, given = (target(Definition(page, argument)) for argument in (node.args + node.args)[:2])
        return given if given is not None and isinstance(given.node, (ast.ClassDef, ast.alias)) else called
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return page.find(node.value.id)
    return page.find(node.id) if isinstance(node, ast.Name) else None


def given(definition: Definition) -> list[str]:
    """Return the texts that ``partial(class, ...)`` is given, also those in a list."""
    node = definition.node
    if not isinstance(node, ast.Call):
        return []
    return [
        str(part.value) for argument in node.args[1:] for part in ast.walk(argument) if isinstance(part, ast.Constant)
    ]


def doc_of(definition: Definition | None) -> str:
    """Return the docstring of a class, function or module, and the full name of what another package has."""
    if definition is not None and isinstance(definition.node, ast.alias):
        return definition.page.origin(definition.node)
    if definition is None or not isinstance(definition.node, (ast.ClassDef, ast.FunctionDef, ast.Module)):
        return ""
    return ast.get_docstring(definition.node) or ""


def variable_doc(definition: Definition) -> str:
    """Return the text under the assignment of ``NAME`` in its module, for an entry ``module.NAME``; empty without."""
    module, node = target(definition), definition.node
    if module is None or not isinstance(module.node, ast.Module) or not isinstance(node, ast.Attribute):
        return ""
    for before, after in pairwise(module.node.body):
        names = [name.id for name in ast.walk(before) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)]
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(before, ast.Assign) and node.attr in names and isinstance(text, ast.Constant):
            return str(text.value)
    return ""


def class_constant(definition: Definition | None, name: str) -> str:
    """Return the text of what a class assigns to ``name`` in its body or that of a base; empty without it."""
    if definition is None or not isinstance(definition.node, ast.ClassDef):
        return ""
    for node in definition.node.body:
        named = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        value = getattr(node, "value", None)
        if any(isinstance(of, ast.Name) and of.id == name for of in named):
            return _constant_text(Definition(definition.page, value)) if value is not None else ""
    bases = [definition.page.find(base.id) for base in definition.node.bases if isinstance(base, ast.Name)]
    return next((found for base in bases if (found := class_constant(base, name))), "")


def _constant_text(value: Definition) -> str:
    """Return :func:`text_of` what is written as a constant, or as a tuple of constants and of ``*Class.NAME``."""
    node = value.node
    if isinstance(node, ast.Tuple):
        return ", ".join(filter(None, (_constant_text(Definition(value.page, one)) for one in node.elts)))
    if isinstance(node, ast.Starred) and isinstance(of := node.value, ast.Attribute) and isinstance(of.value, ast.Name):
        return class_constant(value.page.find(of.value.id), of.attr)
    return text_of(node.value) if isinstance(node, ast.Constant) else ""


def text_of(constant: object) -> str:
    """Return a constant of a class as text: the members of a tuple, and nothing for None."""
    if isinstance(constant, tuple):
        return ", ".join(map(str, constant))
    return "" if constant is None else str(constant)


def papers(text: str) -> str:
    """Return the papers that a module's docstring names: arXiv numbers, else a doi or an address; empty without."""
    found = re.findall(r"\b\d{4}\.\d{5}\b", text) or re.findall(r"\bdoi [^\s;,]+|openreview\.net/[^\s;,)]+", text)
    return ", ".join(dict.fromkeys(one.rstrip(".") for one in found))
