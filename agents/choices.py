"""Settings of an agent: options that are picked by name from a dict, to which users may add entries, and rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

from plasticity.value_types import OrInfinite as OrInfinite
from plasticity.value_types import require, require_types

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class OneOf:
    """Mark a field as a name from `registry`: ``norm: Annotated[str, OneOf(NORMS)] = "none"``.

    The command line offers the names that the registry has when it is called. `Settings` checks them.
    """

    registry: Mapping[str, Any]


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry `name`; raise ValueError that lists the names and the closest one. `what`: the option's name."""
    if name in registry:
        return registry[name]
    close = get_close_matches(str(name), registry, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{what} is one of {', '.join(registry)}, got {name!r}{hint}")


@dataclass(frozen=True)
class Settings:
    """Base of a config: values are of their types, every `OneOf` is a name of its registry, and every rule holds."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            for choice in _choices(hint) if value is not None else ():
                pick(choice.registry, value, name)
        require_types(self)
        require(type(self).__name__, self.rules(), self)

    def rules(self) -> dict[str, bool]:
        """Return text -> whether it holds; a subclass adds its own."""
        return {}


def _choices(hint: Any) -> Iterator[OneOf]:
    """Yield the markers of a type, also inside a union."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(part, OneOf):
            yield part
        else:
            yield from _choices(part)
