"""Settings against the types of their fields, or of a function's parameters: one check for all that is configured."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class OrInfinite:
    """A mark on a float that may be infinite: ``Annotated[float, OrInfinite()]``."""


def require_types(settings: Any, skip: Collection[str] = ()) -> None:
    """Raise TypeError or ValueError for a field of a dataclass with a value that its type does not allow.

    Checked are bool, int, float, str, None, Literal, and tuples and unions of them; fields of other types are not. An
    int is a float, too, but a float is no int, and True is neither. What means the same becomes Python's own, as
    :func:`own_value` says. A float must be finite unless it is marked :class:`OrInfinite`. ``skip``: fields that are
    checked elsewhere.
    """
    given = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name not in skip}
    for name, value in _required(type(settings).__name__, given, _field_types(settings.__class__)).items():
        if value is not given[name]:
            object.__setattr__(settings, name, value)  # also of frozen ones


def require(name: str, rules: Mapping[str, bool], settings: Any) -> None:
    """Raise ValueError with all rules, text -> whether it holds, that do not hold, and the settings that they name."""
    if broken := ", ".join(rule for rule, holds in rules.items() if not holds):
        words = set(re.findall(r"\w+", broken))
        given = [f"{f.name}={getattr(settings, f.name)!r}" for f in dataclasses.fields(settings) if f.name in words]
        raise ValueError(f"{name} needs {broken}; got {', '.join(given) or settings}")


def checked(init: F) -> F:
    """Return an ``__init__`` that checks its arguments first, as :func:`require_types` does fields."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments.update(_required(type(self).__name__, bound.arguments, get_type_hints(init)))
        init(*bound.args, **bound.kwargs)

    return cast(F, call)


def own_value(value: Any, kind: Any) -> Any:
    """Return a value of Python's own that means the same to a type: records, checkpoints and hashes take these alone.

    numpy's scalars become bool, int, float or str, sequences and vectors of numpy tuples where the type is one, and
    paths text where the type is text. Everything else is returned as it is.
    """
    kinds = list(_parts(kind))
    vector = isinstance(value, np.ndarray) and value.ndim == 1
    if isinstance(value, np.generic):
        return value.item()
    if (vector or isinstance(value, Sequence)) and not isinstance(value, (str, bytes)):
        found = next((get_args(part) for part in kinds if get_origin(part) is tuple), None)
        return tuple(own_value(one, found[0]) for one in value) if found else value
    return os.fspath(value) if isinstance(value, os.PathLike) and str in kinds else value


def _required(name: str, given: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as :func:`own_value` makes them; TypeError or ValueError for one that does not fit its type."""
    values = {key: own_value(value, hints.get(key)) for key, value in given.items()}
    for key, value in values.items():
        if needed := misfit(value, hints.get(key)):
            unlisted = isinstance(value, str) and "one of" in needed
            endless = isinstance(value, float) and "finite" in needed
            message = f"{name} takes {key} as {needed}; got {value!r}{_advice(key, value, hints[key])}"
            raise ValueError(message) if unlisted or endless else TypeError(message)
    return values


def misfit(value: Any, kind: Any, infinite: bool = False) -> str:
    """Return what a type asks for, in words, where a value does not fit it; empty where it does, or nobody knows."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return misfit(value, args[0], any(isinstance(mark, OrInfinite) for mark in args[1:]))
    if origin in (Union, types.UnionType):
        misfits = [misfit(value, arg, infinite) for arg in args]
        return "" if "" in misfits else " or ".join(misfits)
    if origin is Literal:
        return "" if value in args else f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return _misfit_of_tuple(value, args)
    return _misfit_of_plain(value, kind, infinite)


def _misfit_of_plain(value: Any, kind: Any, infinite: bool) -> str:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind is int:
        return "" if number and isinstance(value, Integral) else "a whole number"
    if kind is float and infinite:
        return "" if number and not math.isnan(value) else "a number"
    if kind is float:
        return "" if number and (isinstance(value, Integral) or math.isfinite(value)) else "a finite number"
    if kind is str:
        return "" if isinstance(value, str) else "text"
    if kind is type(None):
        return "" if value is None else "None"
    return ""


def _misfit_of_tuple(value: Any, args: tuple[Any, ...]) -> str:
    """Return what ``tuple[X, ...]`` or ``tuple[X, Y]`` asks for where a value does not fit."""
    kinds = args[:1] * len(value) if isinstance(value, (tuple, list)) and args[-1:] == (Ellipsis,) else args
    if not isinstance(value, (tuple, list)):
        return "a tuple" if args[-1:] == (Ellipsis,) else f"a tuple of {len(args)}"
    if len(value) != len(kinds):
        return f"a tuple of {len(kinds)}"
    misfits = [needed for one, kind in zip(value, kinds, strict=True) if (needed := misfit(one, kind))]
    return f"a tuple, each {misfits[0]}" if misfits else ""


def _advice(key: str, value: Any, kind: Any) -> str:
    """Return what to pass, where that can be told."""
    for part in _parts(kind):
        if get_origin(part) is tuple and not isinstance(value, (tuple, list)) and not misfit((value,), part):
            return f"; pass {key}=({value!r},)"
        if get_origin(part) is Literal and (near := get_close_matches(str(value), map(str, get_args(part)), 1)):
            return f"; did you mean {near[0]!r}?"
        if part is int and isinstance(value, float) and value.is_integer():
            return f"; pass {key}={int(value)}"
    return ""


def _parts(kind: Any) -> Iterator[Any]:
    """Yield the members of a union, or the type itself."""
    if get_origin(kind) in (Union, types.UnionType, Annotated):
        for arg in get_args(kind):
            yield from _parts(arg)
    else:
        yield kind


@functools.cache
def _field_types(cls: type) -> dict[str, Any]:
    """Return field -> type, of the class and its bases; without those of a class with names of a type checker alone."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        with suppress(NameError, TypeError, AttributeError):
            found |= get_type_hints(base, include_extras=True)
    return found
