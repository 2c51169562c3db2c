"""Methods of a model by which training calls it, beside ``forward``: such a call is a pass, too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .hooks import Hook

MOST_STACKS = 64
"""So many call stacks are looked at, at most, for the methods by which a model is called."""
OF_TORCH = ("_wrapped_call_impl", "_call_impl", "inner")
"""Methods that a call of the model itself runs."""


def require_methods(model: nn.Module, methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods as a tuple; raise ValueError for one that the model does not have."""
    names = (methods,) if isinstance(methods, str) else tuple(methods)
    if missing := [name for name in names if not callable(getattr(model, name, None))]:
        raise ValueError(f"calls names methods of the model; {type(model).__name__} has no {', '.join(missing)}")
    return names


def calling_method(model: nn.Module) -> str | None:
    """Return the outermost method of ``model`` that is running, None if that is torch's own call or there is none.

    ``forward`` is returned where it was called by its name: then no hook runs.
    """
    found, frame = None, sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_varnames[:1] == ("self",) and frame.f_locals.get("self") is model:
            found = frame.f_code.co_name
    return None if found in OF_TORCH else found


class EntryPoint:
    """A method of one model object that tells an observer when it begins and ends; in a copy, the method itself.

    Several observers stack them on a method, and take them off in any order: one below others only falls silent.
    """

    def __init__(self, observer: Any, model: nn.Module, method: str, called: str = "") -> None:
        """``called``: the method by which the model is called to run this one; by default the method itself."""
        self._model, self._method = model, method
        self._call: Callable[..., Any] = getattr(model, method)
        self._begin, self._end = Hook(observer, "begin", called or method), Hook(observer, "end", called or method)
        self._own = vars(model).get(method)
        self._silent = False
        vars(model)[method] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._silent:
            return self._call(*args, **kwargs)
        self._begin(self._model, args, kwargs)
        try:
            output = self._call(*args, **kwargs)
        except BaseException:
            self._end(self._model, args, None)
            raise
        self._end(self._model, args, output)
        return output

    def remove(self) -> None:
        """Put back what was there."""
        self._silent = True
        while isinstance(top := vars(self._model).get(self._method), EntryPoint) and top._silent:
            del vars(self._model)[self._method]
            if top._own is not None:
                vars(self._model)[self._method] = top._own

    def is_of(self, model: nn.Module) -> bool:
        """Return whether it is a method of this model."""
        return self._model is model

    def __deepcopy__(self, memo: dict) -> Any:
        return getattr(type(self._model), self._method).__get__(memo.get(id(self._model), self._model))

    def __reduce__(self) -> tuple:
        return getattr, (self._model, self._method)


def runs_without_hooks(model: nn.Module) -> bool:
    """Return whether the class of a model has a ``__call__`` of its own, as AgileRL's have: torch's runs the hooks."""
    return type(model).__call__ is not nn.Module.__call__


def is_nested(model: nn.Module) -> bool:
    """Return whether a call of ``model``, or of a method that counts as one, runs within another that still runs."""
    running, frame = 0, sys._getframe(1)
    while frame.f_back is not None and running < 2:
        frame = frame.f_back
        if frame.f_code is CALL:
            running += frame.f_locals.get("self") is model
        elif frame.f_code is ENTRY:
            running += frame.f_locals["self"].is_of(model)
    return running > 1


CALL, ENTRY = nn.Module._call_impl.__code__, EntryPoint.__call__.__code__
"""The code that runs a call of a module, and one of a method that counts as such."""
