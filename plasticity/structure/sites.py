"""Places where the neurons of a layer can be observed in a running model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from einops import rearrange
from torch import Tensor

from .labels import Replay

Side = Literal["input", "output"]
Event = tuple[str, Side]
"""The name of a module that begins ("input") or ends ("output"): a pass is a sequence of events."""


@dataclass(frozen=True)
class Site:
    """Where the neurons of one call of a layer can be observed: an input or output of some module."""

    since: tuple[Event, ...]
    """The events of the pass from the end of the layer's call to the site: where they recur, the site holds."""
    key: int | str
    """Position or name of the argument; position in the output, where that is a sequence."""
    axis: int
    size: int
    """The length of that axis when traced."""
    columns: Tensor | None = None
    member: tuple[int, int] | None = None
    """The axis, counted from the end, and the index of what is one layer's, where several lie in one tensor."""
    replay: Replay = ()
    """Operations to repeat on it, where the model applies its activation out of every module's sight."""

    @property
    def event(self) -> Event:
        """The event at which the neurons are seen."""
        return self.since[-1]

    @property
    def module(self) -> str:
        """The module at whose input or output they are seen."""
        return self.event[0]

    def same_as(self, other: Site) -> bool:
        """Return whether both are one site, whose operations to repeat may be other objects."""
        fields = ("since", "key", "axis", "size", "member")
        alike = all(getattr(self, field) == getattr(other, field) for field in fields)
        mine, theirs = (len(self.replay), self.columns is None), (len(other.replay), other.columns is None)
        return alike and mine == theirs and (self.columns is None or torch.equal(self.columns, other.columns))  # type: ignore[arg-type]

    def fits(self, value: object) -> TypeGuard[Tensor]:
        """Return whether a value can be what was seen when the site was traced."""
        if not isinstance(value, Tensor):
            return False
        if self.member is not None and (value.dim() < -self.member[0] or value.shape[self.member[0]] <= self.member[1]):
            return False
        value = self.of(value)
        return value.dim() >= -self.axis and value.shape[self.axis] == self.size

    def of(self, tensor: Tensor) -> Tensor:
        """Return what is the layer's of a tensor, or of its gradient."""
        return tensor if self.member is None else tensor.select(*self.member)

    def read(self, tensor: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the activations in ``tensor`` as (samples, neurons)."""
        tensor = self.of(tensor)
        for step in self.replay:
            tensor = step(tensor)
        return by_neuron(tensor, self.axis, self.columns, mask)


def by_neuron(tensor: Tensor, axis: int, columns: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Return ``tensor`` as (samples, neurons): positions in time or space count as samples.

    ``columns`` (neurons, copies) picks where each neuron lies along ``axis``; copies count as samples too. ``mask``,
    bool: which positions to keep, where it fits (see :func:`fits`).
    """
    rows = tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])
    if mask is not None and fits(mask, tensor, axis):
        rows = rows[mask.flatten().to(rows.device)]
    if columns is None:
        return rows
    return rearrange(rows[:, columns.to(rows.device)], "rows neurons copies -> (rows copies) neurons")


def fits(mask: Tensor, tensor: Tensor, axis: int) -> bool:
    """Return whether ``mask`` has the shape of ``tensor`` without ``axis``, be it flattened."""
    positions = [size for d, size in enumerate(tensor.shape) if d != axis % tensor.dim()]
    return positions in ([*mask.shape], [mask.numel()])
