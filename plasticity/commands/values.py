"""Values of options as topics: ``plasticity help hadamard`` says which options take it, and what it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from .contents import SWITCHED, registry, same_name, subject
from .options import Option, options
from .presets import FLAG, PRESETS


def option_values() -> Iterator[tuple[str, str, Option]]:
    """Yield (value, owner, option) of every value that an option of an agent, a method or a meter lists."""
    owned = [(agent, options(config)) for agent, (_, config) in registry("agents").items()]
    for kind in SWITCHED:
        owned += [("", options(thing, f"--{name.replace('_', '-')}.")) for name, thing in registry(kind).items()]
    for owner, rows in owned:
        for option in rows:
            yield from ((value, owner, option) for value in option.choices if value not in ("True", "False"))


def value_pages(topic: str) -> Iterator[str]:
    """Yield what there is to say of a value: every option that takes it, its summary; nothing if none does."""
    found: dict[tuple[str, str], tuple[Option, list[str]]] = {}
    for value, owner, option in option_values():
        if same_name(value, topic):
            found.setdefault((value, option.flag), (option, []))[1].append(owner)
    for (value, flag), (option, owners) in found.items():
        owner, more = owners[0], f" of {', '.join(owners)}" if owners[0] else ""
        whole = "" if owner else f" plasticity help {flag[2:].partition('.')[0]} says more."
        yield f"{value}: a value of {flag}{more}. {option.description}{whole}"
        if summary := _summary(owner, flag, value):
            yield f"  {summary}"
    for name, presets in PRESETS.items():
        if same_name(name, topic):
            yield f"{name}: a value of {FLAG} of plasticity train"
            yield from (f"  {one.agent} {one.arguments}; {one.notes}" for one in presets)


def _summary(agent: str, flag: str, value: str) -> str:
    """Return the first paragraph on an entry of the registry from which an agent's option is chosen."""
    if not agent:
        return ""
    hint = get_type_hints(registry("agents")[agent][1], include_extras=True)[flag[2:].replace("-", "_")]
    entry = next((marked[value] for marked in _registries(hint) if value in marked), None)
    meant = subject(getattr(entry, "make", entry))
    known = inspect.isclass(meant) or inspect.isroutine(meant)
    return " ".join((inspect.getdoc(meant) or "").split("\n\n")[0].split()) if known else ""


def _registries(hint: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the registries that a type is marked with, also inside a union."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(marked := getattr(part, "registry", None), Mapping):
            yield marked
        else:
            yield from _registries(part)
