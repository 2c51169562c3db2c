"""One forward pass of an observed model: the modules that ran in it, and what it shows until it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plasticity.structure.sites import Event

from .gradients import Arrivals
from .hooks import Seen

Mask = Tensor | Callable[..., Tensor | None] | None
"""The positions that count, or a function that returns them for the arguments of a pass."""
Place = tuple[str, str, int, bool]
"""A kind of sight, a layer, the position of the end of its call in a pass, and whether that is computed again."""


@dataclass
class Kept:
    """Tensors seen in an unknown part of a pass, before it is known to which layer their neurons belong."""

    tensors: list[tuple[int, int | str, Tensor]] = field(default_factory=list)
    """The position of an event, an argument or a position in the output, and a copy of the tensor there."""
    arrivals: dict[tuple[int, int | str], list[Callable[[Tensor], None]]] = field(default_factory=dict)
    """Functions that take the gradient of such a tensor, once its layer is known."""


@dataclass
class Pass:
    """One forward pass of the model: in training mode what it shows waits here until its gradient arrives."""

    method: str
    """The method of the model by which it was called."""
    inputs: tuple[tuple, dict]
    mask: Tensor | None
    parameters: list[Tensor]
    """The parameters that train, in this pass: a traced one has others in their place."""
    repeated: bool = False
    """True if it runs inside a backward pass, where the pass it repeats was not seen: whole-model checkpointing."""
    random: Any = None
    """The state of the random generators before the pass, where its way depends on them."""
    events: list[Event] = field(default_factory=list)
    again: list[Event] = field(default_factory=list)
    """The events of parts that a backward pass computes again: checkpointing."""
    lengths: dict[Place, int] = field(default_factory=dict)
    """The number of events that lead to the sight that was taken: the longest tells most about the way."""
    seen: dict[Place, Seen] = field(default_factory=dict)
    kept: Kept | None = None
    counted: bool = False
    gradients: Arrivals = field(default_factory=Arrivals)

    def takes(self, place: Place, length: int) -> bool:
        """Return whether a sight is taken: unless a longer one was."""
        if self.lengths.get(place, 0) >= length:
            return False
        self.lengths[place] = length
        return True


def mask_for(mask: Mask, args: tuple, kwargs: dict) -> Tensor | None:
    """Return the mask of a pass as bool, None where every position counts; TypeError where it is no tensor."""
    found = mask if mask is None or isinstance(mask, Tensor) else mask(*args, **kwargs)
    if found is not None and not isinstance(found, Tensor):
        raise TypeError(f"a mask is a tensor, or a function that returns one or None; got {type(found).__name__}")
    return found if found is None or found.dtype == torch.bool else found.bool()
