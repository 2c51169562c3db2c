"""Arguments of a loss: tensors, and dataclasses of tensors or None such as a batch; graphs take them as a flat list."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class Chosen:
    """A batch to be made of some rows of a larger one: by a graph within itself, else by `plain`."""

    rows: Any
    """A dataclass of tensors or None; the first dimension of each is the rows."""
    index: Tensor


def plain(one: Any) -> Any:
    """Return an input as a loss takes it."""
    if not isinstance(one, Chosen):
        return one
    return type(one.rows)(**{name: x if x is None else x[one.index] for name, x in vars(one.rows).items()})


def fields_of(one: Any) -> dict[str, Any]:
    """Return the tensors of an input by name, and None where there is none."""
    if isinstance(one, Tensor):
        return {"": one}
    return {**vars(one.rows), "": one.index} if isinstance(one, Chosen) else vars(one)


def tensors_of(inputs: Sequence[Any]) -> list[Tensor]:
    """Return all tensors in order, contiguous, as graphs expect them."""
    return [x.contiguous() for one in inputs for x in fields_of(one).values() if x is not None]


def signature(inputs: Sequence[Any]) -> Hashable:
    """Return what a graph depends on: which tensors there are, their shapes and types."""
    return tuple([(n, x.shape, x.dtype) for one in inputs for n, x in fields_of(one).items() if x is not None])


def filled(inputs: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """Return what `inputs` look like with other `tensors` in them, as a loss takes them."""
    rest, found = iter(tensors), []
    for one in inputs:
        fields = {name: None if x is None else next(rest) for name, x in fields_of(one).items()}
        if isinstance(one, Tensor):
            found.append(fields[""])
        elif isinstance(one, Chosen):
            index = fields.pop("")
            found.append(plain(Chosen(type(one.rows)(**fields), index)))
        else:
            found.append(type(one)(**fields))
    return found
