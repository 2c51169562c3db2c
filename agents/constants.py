"""The numbers and objects that a function would bake into a compiled graph, as a key that changes when they do."""

from __future__ import annotations

import dis
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from torch import nn

PLAIN_TYPES = (int, float, complex, str, bytes, type(None), np.generic)
FUNCTIONS = (FunctionType, MethodType, partial)
READS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")  # an attribute; by the version of Python
MAX_WRAPPED = 8  # decorators around a function
DEPTH = 2  # functions that functions close over; bounds what refers to itself


class Same:
    """One object as a key, equal to itself alone; it holds the object, so that no other one can take its place."""

    __slots__ = ("it",)

    def __init__(self, it: Any) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.it is other.it

    def __hash__(self) -> int:
        return id(self.it)


def constants_of(function: Callable[..., Any], depth: int = DEPTH) -> Hashable:
    """Return a key of the function, its defaults and partial arguments, and of what its code reads.

    That is the variables it closes over, and the attributes of its object, or of objects that it closes over, whose
    names are in its code or in the methods that this calls. Numbers and strings count by value, also in tuples, lists
    and dicts; everything else, such as a tensor, by identity: its contents are an input of a graph, not a constant.
    Not seen: globals, and what functions read that are more than `depth` closures away.
    """
    if isinstance(function, partial):
        return constants_of(function.func, depth), key_of(function.args, depth), key_of(function.keywords, depth)
    plain, owner = getattr(function, "__func__", function), getattr(function, "__self__", None)
    if not hasattr(plain, "__code__"):  # an object that can be called, or a function of C
        plain, owner = type(function).__call__, function
    if depth < 0 or not hasattr(plain, "__code__"):
        return Same(function)
    closed_over = [value for cell in plain.__closure__ or () for value in _contents(cell)]
    found = [Same(plain), Same(owner), key_of(plain.__defaults__, depth), key_of(plain.__kwdefaults__, depth)]
    found += [key_of(value, depth - 1) for value in closed_over]
    for it in (owner, *closed_over):
        if hasattr(it, "__dict__") and not isinstance(it, (nn.Module, *FUNCTIONS)):
            names = names_read(plain, type(it))
            found += [key_of(it.__dict__[name], depth - 1) for name in names if name in it.__dict__]
    return tuple(found)


def objects_read(function: Callable[..., Any]) -> tuple[Any, ...]:
    """Return the function, its object, and the attributes of that object whose names are in its code; cheap."""
    plain, owner = getattr(function, "__func__", function), getattr(function, "__self__", None)
    own = getattr(owner, "__dict__", None)
    if own is None or not isinstance(plain, FunctionType):
        return plain, owner
    return plain, owner, *[own[name] for name in names_read(plain, type(owner)) if name in own]


def reader_of(function: Callable[..., Any]) -> Callable[[], Iterable[Any]]:
    """Return what returns the attributes of the object of a method whose names are in its code; cheaper still."""
    plain, owner = getattr(function, "__func__", function), getattr(function, "__self__", None)
    own = getattr(owner, "__dict__", None)
    if own is None or not isinstance(plain, FunctionType):
        return tuple
    names = names_read(plain, type(owner))
    return lambda: map(own.get, names)


def key_of(value: Any, depth: int = DEPTH) -> Hashable:
    """Return a number with its type, the keys of what a container has, or the object itself."""
    if isinstance(value, PLAIN_TYPES):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), *(key_of(item, depth) for item in value)
    if isinstance(value, Mapping):
        return Same(value), *((name, key_of(item, depth)) for name, item in value.items())
    return constants_of(value, depth) if isinstance(value, FUNCTIONS) else Same(value)


def _contents(cell: CellType) -> Iterator[Any]:
    try:
        yield cell.cell_contents
    except ValueError:  # not assigned yet
        return


@lru_cache(maxsize=1024)
def names_read(function: Any, kind: type) -> tuple[str, ...]:
    """Return the names that a function reads, or methods of `kind` and its bases that it names, and so on.

    Also of methods that `kind` overrides: `super()` gets to them. Names that are only written are not among them.
    """
    names: set[str] = set()
    waiting = codes_of(function)
    while waiting:
        one = waiting.pop()
        waiting += [constant for constant in one.co_consts if isinstance(constant, CodeType)]
        for name in names_in(one) - names:
            names.add(name)
            for method in [vars(base)[name] for base in kind.__mro__ if name in vars(base)]:
                waiting += codes_of(method)
    return tuple(sorted(names))


def names_in(code: CodeType) -> set[str]:
    """Return the names of attributes that code reads, and the texts that may be names for `getattr`."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in READS}
    asks = {"getattr", "hasattr"}.intersection(code.co_names)
    return names | {one for one in code.co_consts if isinstance(one, str) and one.isidentifier()} if asks else names


def codes_of(function: Any) -> list[CodeType]:
    """Return the code of a function, method or property, and of what its decorators wrap."""
    found = []
    for _ in range(MAX_WRAPPED):
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            found.append(code)
        inner = [getattr(function, name, None) for name in ("__wrapped__", "fget", "func", "__func__")]
        function = next((one for one in inner if one is not None), None)
    return found
