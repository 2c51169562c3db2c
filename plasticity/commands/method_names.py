"""Methods of a benchmark as text: names, options after a colon, several joined by plus signs."""

from __future__ import annotations

from dataclasses import fields

from plasticity.interventions import INTERVENTIONS

ORACLE, NONE = "oracle", "none"


def split_methods(text: str) -> tuple[str, ...]:
    """Return the methods of a text; options after a comma belong to the method before them, where it has such ones."""
    methods: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if methods and takes(methods[-1], part):
            methods[-1] += f",{part}"
        else:
            methods.append(part)
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"--methods needs at least one method, each once; got {text!r}")
    return tuple(methods)


def takes(method: str, part: str) -> bool:
    """Return whether a part of a text is one more option of a method."""
    name, colon, _ = method.rpartition("+")[-1].partition(":")
    kind = INTERVENTIONS.get(name.replace("-", "_"))
    option, equals, _ = part.partition("=")
    return bool(colon and equals) and kind is not None and option.replace("-", "_") in {f.name for f in fields(kind)}


def method_arguments(method: str) -> list[str]:
    """Return the options of ``plasticity train`` that switch a method on."""
    found: list[str] = []
    for part in method.split("+"):
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
    """Return the name under which a method stands in published tables."""
    return method.partition(":")[0].removeprefix("optimizer=").replace("-", "_")
