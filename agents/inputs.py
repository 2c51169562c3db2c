"""Arguments of a loss: tensors, and dataclasses of tensors or None such as a batch; graphs take them as a flat list."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor

SHAPE, TYPE = attrgetter("shape"), attrgetter("dtype")


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


class Inputs:
    """The arguments of a loss as graphs take them: a list of tensors."""

    def __init__(self, given: Sequence[Any]) -> None:
        self.given = given
        fields = [fields_of(one) for one in given]
        there = [name for part in fields for name, x in part.items() if x is not None]
        self.tensors = [x.contiguous() for part in fields for x in part.values() if x is not None]
        """All tensors in order, contiguous."""
        self.key: Hashable = (*there, *map(SHAPE, self.tensors), *map(TYPE, self.tensors))
        """The dependence of a graph on them: which tensors there are, their shapes and types."""

    def gathered(self) -> list[Any]:
        """Return the arguments as a loss takes them."""
        return [gathered(one) for one in self.given]

    def filled(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return what the arguments look like with other `tensors` in them, as a loss takes them."""
        rest = iter(tensors)
        return [
            gathered(filled(one, {name: None if x is None else next(rest) for name, x in fields_of(one).items()}))
            for one in self.given
        ]


def fields_of(one: Any) -> dict[str, Any]:
    """Return the tensors of an input by name, and None where there is none."""
    if isinstance(one, Tensor):
        return {"": one}
    return {**one.rows, **one.more, "": one.index} if isinstance(one, Chosen) else vars(one)


def filled(one: Any, fields: Mapping[str, Any]) -> Any:
    """Return an input with other fields."""
    if isinstance(one, Tensor):
        return fields[""]
    if not isinstance(one, Chosen):
        return type(one)(**fields)
    rows, more = ({name: fields[name] for name in part} for part in (one.rows, one.more))
    return Chosen(one.kind, rows, fields[""], more)
