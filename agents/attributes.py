"""The attributes of modules that forwards read, which a compiled graph would bake in, as a key of their values."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from inspect import getattr_static
from operator import is_
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from .constants import FUNCTIONS, PLAIN_TYPES, Same, key_of, names_read

OF_CLASSES = (FunctionType, property, classmethod, staticmethod)
NO_RECORDS = (*FUNCTIONS, BuiltinFunctionType, ModuleType, type, Tensor, nn.Module)
MISSING = object()
Attribute = tuple[dict[str, Any], str]
"""The `vars` of an object, and the name of an attribute in it."""


class Attributes:
    """Attributes that forwards may read: of their own module or of another one, and of objects among these.

    Found by name in the code of `forward` and of the methods that it calls, whether the attribute is there yet or not.
    Not seen: attributes of classes, and what is in containers that change in place or in objects within objects.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        names = [names_in_forward(module) for module in modules]
        self._names = set[str]().union(*names)
        self._places: list[Attribute] = [
            (own, name)
            for module, by_itself in zip(modules, names, strict=True)
            for own in [vars(module)]
            for name in sorted({*by_itself, *self._names.intersection(own)})
            if not isinstance(getattr_static(type(module), name, None), OF_CLASSES)
            and not any(name in own[slot] for slot in ("_modules", "_parameters", "_buffers"))
        ]
        self._in_records: list[Attribute] = []
        self._found: list[Any] = []
        self._in_found: list[Any] = []
        self._key: Hashable = ()

    @property
    def records(self) -> list[dict[str, Any]]:
        """The `vars` of the objects among the attributes, such as a config."""
        return [record for record, _ in self._in_records]

    def key(self) -> Hashable:
        """Return a key of numbers, texts, lists and tuples by value, and of tensors by identity."""
        found = [own.get(name) for own, name in self._places]
        moved = not are(found, self._found)
        if moved:
            records = [vars(one) for one in found if hasattr(one, "__dict__") and not isinstance(one, NO_RECORDS)]
            self._in_records = [(own, name) for own in records for name in sorted(self._names.intersection(own))]
        in_found = [own.get(name) for own, name in self._in_records]
        if moved or not are(in_found, self._in_found):
            self._found, self._in_found, self._key = found, in_found, tuple(map(value_key, [*found, *in_found]))
        return self._key

    @contextmanager
    def restored(self) -> Iterator[list[str]]:
        """Restore on exit what has another key, within this block, and then list the names."""
        self.key()
        places, changed = [*self._places, *self._in_records], list[str]()
        before = [own.get(name, MISSING) for own, name in places]
        try:
            yield changed
        finally:
            for (own, name), old in zip(places, before, strict=True):
                now = own.get(name, MISSING)
                if now is old or value_key(now) == value_key(old):
                    continue
                changed.append(name)
                if old is MISSING:
                    del own[name]
                else:
                    own[name] = old


def are(some: list[Any], others: list[Any]) -> bool:
    """Return whether two lists hold the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


def value_key(value: Any) -> Hashable:
    """Return a key of a number, a text, a list or a tuple, by value, or of a tensor, by identity; None of all else."""
    if isinstance(value, (*PLAIN_TYPES, tuple, list)):
        return key_of(value)
    return Same(value) if isinstance(value, Tensor) else None


def names_in_forward(module: nn.Module) -> set[str]:
    """Return the names that a module's `forward` reads, that of its class and one put on the module."""
    kind, own = type(module), vars(module).get("forward")
    of_its_own = names_read.__wrapped__(own, kind) if own else ()  # a cache would keep what a function closes over
    return {*names_read(getattr_static(kind, "forward", None), kind), *of_its_own}
