"""Options that are picked by name from a dict, to which users may add entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OneOf:
    """Mark a field as a name from `registry`: ``norm: Annotated[str, OneOf(NORMS)] = "none"``.

    The command line offers the names that the registry has when it is called. The config checks them with `pick`.
    """

    registry: Mapping[str, Any]


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry `name`; raise ValueError that lists the names and the closest one. `what`: the option's name."""
    if name in registry:
        return registry[name]
    close = get_close_matches(str(name), registry, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{what} is one of {', '.join(registry)}, got {name!r}{hint}")
