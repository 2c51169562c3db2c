"""What hooks are made of: callables that stay with their model, and the passes they are called in."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .isolation import foreign_pass


@dataclass
class Pass:
    """One forward pass of the model: in training mode its activations wait here until its gradient arrives."""

    inputs: tuple[tuple, dict]
    repeated: bool = False
    """Whether it runs inside a backward pass, where the pass it repeats was not seen: whole-model checkpointing."""
    calls: Counter[str] = field(default_factory=Counter)
    staged: list[tuple[str, Tensor]] = field(default_factory=list)
    counted: bool = False


class Hook:
    """A module hook that does not drag its observer along: inert in a copy of the model and after unpickling."""

    def __init__(self, observer: Any, method: str, name: str) -> None:
        self._observer, self._method, self._name = weakref.ref(observer), method, name

    def __call__(self, *args: Any) -> None:
        observer = self._observer()
        if observer is not None and not foreign_pass(observer.owner):
            getattr(observer, self._method)(self._name, *args)

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return inert

    def __reduce__(self) -> tuple:
        return get_inert, ()


def inert(*args: Any) -> None:
    """Do nothing: what a hook becomes in a copy of the model."""


def get_inert() -> Callable[..., None]:
    """Return :func:`inert`, for pickle."""
    return inert


def backward_pass() -> int:
    """Return a number for the backward pass now running, -1 outside; torch has no public name for it."""
    return torch._C._current_graph_task_id()


def in_backward() -> bool:
    """Return whether a backward pass is running."""
    return backward_pass() != -1
