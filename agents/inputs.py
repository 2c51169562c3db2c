"""Arguments of a loss: tensors, and dataclasses of tensors or None such as a batch; graphs take them as a flat list."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Chosen:
    """A batch yet to be made of some rows of tensors: by a graph within itself, else by `gathered`."""

    kind: type
    """The dataclass that it will be."""
    rows: dict[str, Tensor]
    """Its fields; the first dimension of each is the rows."""
    index: Tensor
    """The rows to take, (batch,)."""
    more: dict[str, Tensor] = field(default_factory=dict)
    """Fields that are (batch, ...) already."""


def gathered(one: Any) -> Any:
    """Return an input as a loss takes it."""
    if not isinstance(one, Chosen):
        return one
    return one.kind(**{name: x.index_select(0, one.index) for name, x in one.rows.items()}, **one.more)


def fields_of(one: Any) -> dict[str, Any]:
    """Return the tensors of an input by name, and None where there is none."""
    if isinstance(one, Tensor):
        return {"": one}
    return {**one.rows, **one.more, "": one.index} if isinstance(one, Chosen) else vars(one)


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
            rows, more = ({name: fields[name] for name in part} for part in (one.rows, one.more))
            found.append(gathered(Chosen(one.kind, rows, fields[""], more)))
        else:
            found.append(type(one)(**fields))
    return found
