"""Methods of a benchmark as text: names, options after a colon, several joined by plus signs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches

from plasticity.interventions import INTERVENTIONS

ORACLE, NONE = "oracle", "none"


def split_methods(text: str) -> tuple[str, ...]:
    """Return the methods of a text, spelled with hyphens.

    Options after a comma belong to the method before them, where it has such ones.
    """
    methods: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if methods and takes(methods[-1], part):
            methods[-1] += f",{part}"
        else:
            methods.append(part)
    methods = [spelled(method) for method in methods]
    for method in methods:
        flags = [word for word in method_arguments(method) if word.startswith("--")]
        if twice := [flag for flag in dict.fromkeys(flags) if flags.count(flag) > 1]:
            raise ValueError(f"{method!r} says {', '.join(twice)} more than once")
        names = [part.partition(":")[0] for part in joined_methods(method)]
        if "" in names or (method not in (NONE, ORACLE) and {NONE, ORACLE} & {*names}):
            raise ValueError(f"{method!r}: several methods are joined as in redo+nap; none and oracle stand alone")
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"--methods needs at least one method, each once; got {text!r}")
    return tuple(methods)


def joined_methods(method: str) -> list[str]:
    """Return the methods that plus signs join; one in front of a digit belongs to a number, as in 1e+3."""
    return re.split(r"\+(?!\d)", method)


def spelled(method: str) -> str:
    """Return a method with hyphens in the names of methods and options, so that it has one name in tables."""
    parts = (part.partition(":") for part in joined_methods(method))
    return "+".join(f"{_hyphened(name)}:{_hyphened(options)}".removesuffix(":") for name, _, options in parts)


def _hyphened(options: str) -> str:
    keys = (option.partition("=") for option in options.split(",") if option)
    return ",".join(key.replace("_", "-") + equals + value for key, equals, value in keys)


def takes(method: str, part: str) -> bool:
    """Return whether a part of a text is one more option of a method."""
    name, colon, _ = joined_methods(method)[-1].partition(":")
    kind = INTERVENTIONS.get(name.replace("-", "_"))
    option, equals, _ = part.partition("=")
    return bool(colon and equals) and kind is not None and option.replace("-", "_") in {f.name for f in fields(kind)}


def meant(method: str, methods: Sequence[str]) -> str:
    """Return the option that was probably meant by an option that stands behind those of another method, as words."""
    before = joined_methods(methods[max(0, methods.index(method) - 1)])[-1]
    name, colon, _ = before.partition(":")
    kind, option = INTERVENTIONS.get(name.replace("-", "_")), method.partition("=")[0]
    if kind is None or not colon or before == method:
        return ""
    near = get_close_matches(option.replace("-", "_"), [f.name for f in fields(kind)], 1)
    return f"; as an option of {name}, did you mean {near[0]}?" if near else ""


def method_arguments(method: str) -> list[str]:
    """Return the options of ``plasticity train`` that switch a method on."""
    found: list[str] = []
    for part in joined_methods(method):
        name, _, options = part.partition(":")
        if name in (NONE, ORACLE):
            continue
        if "=" in name:
            option, _, value = name.partition("=")
            found += [f"--{option.replace('_', '-')}", value]
            continue
        flag = f"--{name.replace('_', '-')}"
        found.append(flag)
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            found += [f"{flag}.{key.replace('_', '-')}", value]
    return found


def published_name(method: str) -> str:
    """Return the name under which a method stands in published tables; of several methods joined, all of the text."""
    return (
        method
        if len(joined_methods(method)) > 1
        else method.partition(":")[0].removeprefix("optimizer=").replace("-", "_")
    )
