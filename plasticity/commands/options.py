"""Options of a dataclass as text: flag, type, default, description, read from its fields and their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

USAGE_WIDTH, DEFAULT_WIDTH = 28, 9
"""Columns for flags and defaults in a table; a longer default pushes its description to the right."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a dataclass, as a flag."""

    flag: str
    type: str
    default: str
    description: str

    @property
    def usage(self) -> str:
        """Return the flag and its type; of a switch, also the flag that turns it off."""
        group, _, name = self.flag.rpartition(".")
        off = f"{group}.no-{name}" if group else f"--no-{self.flag[2:]}"
        return f"{self.flag} {self.type}" if self.type else f"{self.flag} | {off}"

    @property
    def flags(self) -> list[str]:
        """Return the flag; of a switch, also the one that turns it off."""
        return [self.flag] if self.type else self.usage.split(" | ")

    @property
    def choices(self) -> list[str]:
        """Return the values of which one is to be chosen, none where they are not listed."""
        return self.type[1:-1].split(",") if self.type.startswith("{") and self.type.endswith("}") else []

    @property
    def short_usage(self) -> str:
        """Return the flag and its type in few columns: of many choices the first one, of a switch the flag alone."""
        usage = f"{self.flag} {self.type}".rstrip()
        fits = len(usage) <= USAGE_WIDTH or not self.type.startswith("{")
        return usage if fits else f"{self.flag} {self.type.partition(',')[0]},...}}"


def options(cls: type, prefix: str = "--") -> list[Option]:
    """Return an option for every field of a dataclass; nested dataclasses give dotted ones."""
    hints, found = _hints(cls), []
    documented = field_docs(cls)
    for field in dataclasses.fields(cls):
        kind = hints.get(field.name, field.type)
        flag = prefix + field.name.replace("_", "-")
        if not field.init or "Positional" in map(repr, getattr(kind, "__metadata__", ())):  # tyro's mark
            continue
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            found += options(kind, f"{flag}.")
        else:
            text = " ".join(documented.get(field.name, "").replace("``", "").split())
            found.append(Option(flag, type_text(kind), _default_text(cls, field), text))
    return found


def parameters(call: Callable[..., Any]) -> list[Option]:
    """Return an option for every parameter of a function or class that has a default."""
    try:
        given = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return []
    shown = [p for p in given if p.default is not p.empty]
    return [Option(p.name, _named(p.annotation), value_text(p.default), "") for p in shown]


def type_text(kind: Any) -> str:
    """Return a type as one writes it on the command line: ``INT``, ``{a,b}``, ``FLOAT ...``; bool gives nothing."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for mark in args[1:]:
            if isinstance(choices := getattr(mark, "registry", None), Mapping):
                return "{" + ",".join(choices) + "}"
        return type_text(args[0])
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if origin in (Union, types.UnionType):
        if bool in args:
            return "{True,False}"
        return "|".join(text for arg in args if arg is not type(None) and (text := type_text(arg)))
    if origin in (tuple, list):
        inner = [type_text(arg) for arg in args if arg is not Ellipsis]
        return f"{inner[0]} ..." if len(inner) == 1 else " ".join(inner)
    return "" if kind is bool else _named(kind).upper()


def value_text(value: Any) -> str:
    """Return a default as one would type it."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(value_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def field_docs(cls: type) -> dict[str, str]:
    """Return field -> the string below it in the source, for the class and its bases; a subclass's own wins."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        body = _class_body(base)
        for node, after in pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and _is_string(after):
                docs[node.target.id] = inspect.cleandoc(after.value.value)  # type: ignore[attr-defined]
    return docs


def table(rows: list[Option], terminal_width: int) -> list[str]:
    """Return a line per option: usage, default and the first sentence of its description, as much as fits."""
    usage = max((len(row.short_usage) for row in rows), default=0)
    default = min(DEFAULT_WIDTH, max((len(row.default) for row in rows), default=0))
    lines = []
    for row in rows:
        head = f"  {row.short_usage:<{usage}}  {row.default:<{default}}  "
        lines.append((head + shorten(sentence(row.description), terminal_width - len(head))).rstrip())
    return lines


def details(rows: list[Option], terminal_width: int) -> Iterator[str]:
    """Yield every option with its whole description and its default."""
    for row in rows:
        yield f"  {row.usage}"
        text = f"{row.description} Default: {row.default}." if row.default else row.description
        yield from textwrap.wrap(text, terminal_width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)


def sentence(text: str) -> str:
    """Return the first sentence, or what comes before a semicolon, without the full stop."""
    ends = [end for mark in (". ", "; ") if (end := text.find(mark)) > 0]
    return text[: min(ends)] if ends else text.removesuffix(".")


def shorten(text: str, terminal_width: int) -> str:
    """Return as many whole words as fit, with three dots where some are missing."""
    return text if len(text) <= terminal_width else textwrap.shorten(text, max(terminal_width, 10), placeholder=" ...")


def terminal_width() -> int:
    """Return the width to write for: the terminal's, from 80 to 120, and 100 where there is none."""
    return min(120, max(80, shutil.get_terminal_size((100, 24)).columns))


def _default_text(cls: type, field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return value_text(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "needed"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    presets: Mapping[str, Mapping[str, Any]] = getattr(cls, "PRESETS", {})
    if field.default is None and any(field.name in values for values in presets.values()):
        return ", ".join(f"{value_text(values.get(field.name))} ({preset})" for preset, values in presets.items())
    return value_text(field.default)


def _hints(cls: type) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except NameError:  # an annotation that only a type checker can resolve
        return {}


def _named(kind: Any) -> str:
    if kind is inspect.Parameter.empty:
        return "VALUE"
    return getattr(kind, "__name__", str(kind)).replace("typing.", "")


def _class_body(cls: type) -> list[ast.stmt]:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return _classes(file).get(cls.__qualname__.rpartition(".")[2], []) if file and file.endswith(".py") else []


@cache
def _classes(file: str) -> dict[str, list[ast.stmt]]:
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return {}
    return {node.name: node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
