"""Names and summaries of what can be chosen, by kind: read from the registries' source, or from them once imported."""

from __future__ import annotations

import ast
import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

from plasticity.meanings import MEANINGS
from plasticity.source import Definition, class_constant, doc_of, given, page_at, papers, target, text_of, variable_doc

REGISTRIES = {
    "agents": ("plasticity.agents", "AGENTS"),
    "envs": ("plasticity.envs", "ENVS"),
    "probes": ("plasticity.probes", "PROBES"),
    "meters": ("plasticity.meters", "METERS"),
    "interventions": ("plasticity.interventions", "INTERVENTIONS"),
    "optimizers": ("plasticity.agents.optimizers", "OPTIMIZERS"),
    "writers": ("plasticity.writers", "WRITERS"),
}
"""Kind -> the module of its registry, and the name of the dict there."""

SWITCHED = ("interventions", "meters")
"""Kinds that ``plasticity train`` switches on by a bare flag each, and sets by dotted ones."""

GROUPS = {
    "reset": "fresh weights for neurons, layers or networks",
    "penalty": "terms added to the loss",
    "projection": "weights moved into a set after every step",
    "optimizer": "other steps, or what is done to the optimizer",
    "architecture": "other modules in the networks",
    "topology": "sparse networks whose connections change",
    "data": "what is collected, kept and replayed",
    "activity": "which neurons fire, and which get a gradient besides",
    "gradient": "gradients of neurons and weights",
    "rank": "how many directions features span",
    "weights": "size, distance, spectrum and change of weights",
    "curvature": "of the loss around the weights; costs many passes",
    "transformer": "attention, residual stream, experts, tokens",
    "other": "",
}
"""Group of methods or probes (``KIND``) -> what it holds, in the order in which they are listed."""


FACTS = {"WORSE": "worse", "NEEDS": "needs", "COST": "cost", "EAGER": "eager", "SOURCE": "source"}
"""Constant of a class -> its name in lists."""


@dataclass(frozen=True)
class Entry:
    """A name in a registry, the first line of what it stands for, the group of a method or probe, and its facts."""

    name: str
    summary: str
    group: str = ""
    facts: str = ""


def registry(kind: str) -> Mapping[str, Any]:
    """Return a registry, imported."""
    module, name = REGISTRIES[kind]
    return getattr(import_module(module), name)


def contents(kind: str) -> dict[str, Entry]:
    """Return the entries of a registry: as its source says, and once it is imported, what was added to it too."""
    entries = written(kind)
    if entries and REGISTRIES[kind][0] not in sys.modules:  # none: installed without its source
        return entries
    return {
        key: entries[key] if key in entries and not _is_foreign(value) else _described(key, value)
        for key, value in registry(kind).items()
    }


def _is_foreign(value: Any) -> bool:
    """Return whether somebody else's class or function has taken an entry's place."""
    return isinstance(value, type | FunctionType) and value.__module__.partition(".")[0] not in ("plasticity", "torch")


@cache
def written(kind: str) -> dict[str, Entry]:
    """Return the entries of a registry as its source writes them; nothing is imported."""
    module, name = REGISTRIES[kind]
    package, below = module.split(".")[:2], module.split(".")[2:]
    spec = find_spec(".".join(package))  # imports what is above: this package alone, which is light
    page = page_at(Path(spec.origin).parent.joinpath(*below)) if spec and spec.origin else None
    if page is None:
        return {}
    found = page.entries(name)
    whole = {id(meant.node): key for key, one in found.items() if not given(one) and (meant := target(one))}
    return {key: _read(key, one, whole) for key, one in found.items()}


def grouped(kind: str) -> dict[str, list[Entry]]:
    """Return the entries of a registry by group, in the order of ``GROUPS``; groups of somebody else's come last."""
    groups: dict[str, list[Entry]] = {group: [] for group in GROUPS}
    for entry in contents(kind).values():
        groups.setdefault(entry.group or "other", []).append(entry)
    return {group: entries for group, entries in groups.items() if entries}


def find(name: str, kinds: Iterable[str] | None = None) -> list[tuple[str, Entry]]:
    """Return (kind, entry) of everything called ``name``, with hyphens or underscores; ``kinds``: None for all."""
    chosen = REGISTRIES if kinds is None else kinds
    return [(kind, e) for kind in chosen for e in contents(kind).values() if same_name(e.name, name)]


def same_name(one: str, other: str) -> bool:
    """Return whether two names are the same but for case, and hyphens or underscores."""
    return _key(one) == _key(other)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"did you mean NAME? "`` for the name that was probably meant; empty if none is near."""
    keys = {_key(one): one for one in names}
    close = difflib.get_close_matches(_key(name), keys, 1)
    return f"did you mean {keys[close[0]]}? " if close else ""


def matching(globs: Iterable[str], names: Iterable[str], what: str) -> list[str]:
    """Return the names that match one of the globs, in their order; ValueError, with the nearest, for one without any.

    ``what``: the words for one name, such as "network of the agent".
    """
    globs, names = list(globs), list(names)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"no {what} is {glob!r}; {nearest(glob, names)}there are {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


def _read(name: str, definition: Definition, whole: Mapping[int, str]) -> Entry:
    """Return the entry of a name, from its source; ``whole``: node of a class -> the entry that is the class."""
    meant = target(definition)
    summary = _first(variable_doc(definition) or doc_of(meant))
    if meant is not None and (chosen := given(definition)) and id(meant.node) in whole:
        words = MEANINGS.get(name)
        summary = f"{words.about}." if words else f"As {whole[id(meant.node)]}, for {', '.join(chosen)} only."
    own = _of_method(name, ast.get_docstring(meant.page.tree) or "") if meant else {}
    facts = _facts(lambda key: class_constant(meant, key) or own.get(key, ""))
    return Entry(name, summary, class_constant(meant, "KIND"), facts)


def _described(name: str, thing: Any) -> Entry:
    thing = subject(thing)
    ours = inspect.isclass(thing) or inspect.isroutine(thing)  # an object has the docstring of its class
    summary = _first(inspect.getdoc(thing) or "" if ours else "")
    own = _of_method(name, getattr(sys.modules.get(getattr(thing, "__module__", "")), "__doc__", None) or "")
    facts = _facts(lambda key: text_of(getattr(thing, key, "")) or own.get(key, ""))
    return Entry(name, summary, getattr(thing, "KIND", ""), facts)


@cache
def costs() -> dict[str, float]:
    """Return method -> the time of an update with it over that without, as it was measured last; read from source."""
    page = page_at(Path(__file__).parents[1] / "interventions" / "costs")
    found = page.find("COSTS") if page else None
    return ast.literal_eval(found.node) if found and isinstance(found.node, ast.Dict) else {}


def _of_method(name: str, doc: str) -> dict[str, str]:
    """Return facts that do not stand in a method's class: the papers in its module's docstring, and its cost."""
    cost = costs().get(name)
    return {"SOURCE": papers(doc), "COST": "" if cost is None else f"{cost:.2f} times an update"}


def _facts(of: Callable[[str], str]) -> str:
    """Return what a class says of itself in constants: the bad side, the needs, the cost, the source."""
    return "; ".join(f"{word}: {text}" for key, word in FACTS.items() if (text := of(key)))


def subject(thing: Any) -> Any:
    """Return the class or function that an entry stands for: the first of a tuple, what a partial calls or is given."""
    if isinstance(thing, tuple):
        return subject(thing[0])
    if isinstance(thing, partial):
        return subject(thing.args[0] if thing.args and inspect.isclass(thing.args[0]) else thing.func)
    return thing


def _first(doc: str) -> str:
    return "".join(doc.splitlines()[:1]).replace("``", "")
