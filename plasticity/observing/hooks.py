"""Hooks that stay with their model, and the recording of what they see while a pass is compiled."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from plasticity.isolation import foreign_pass, map_tensors

from .sums import Total, packed


class Recipient(NamedTuple):
    """The probe, layer and signal for which a tensor is seen."""

    probe: str
    layer: str
    signal: str
    num_samples: int
    reduced: bool
    """True if it is what the probe's ``reduce`` returned, which adds up over passes, and not the rows themselves."""


Seen = list[tuple[Recipient, Tensor]]
"""Tensors of one or more signals, with the probes that they are for."""


Parts = tuple[tuple[Recipient, ...], tuple[torch.Size, ...]]
"""The meaning of each tensor that a pass shows, and its shape where they are one vector; else no shapes."""


class Recording:
    """The tensors that hooks see of a pass that is compiled: their places in its graph, and what they show."""

    def __init__(
        self,
        deliver: Callable[[Recording, Sequence[Tensor]], None],
        total_of: Callable[[Parts, torch.device], Total],
    ) -> None:
        self.deliver: Callable[[Sequence[Tensor]], None] = partial(deliver, self)
        """Takes in what a graph computed for :meth:`tensors`, once it has added :meth:`sums`."""
        self._total_of = total_of
        self._tensors: list[Tensor] = []
        self._sums: Seen = []
        self.rows_at: list[tuple[Recipient, int]] = []
        """Entries of rows, with the positions of their tensors; the other tensors are arguments of the model."""
        self.parts: Parts = (), ()
        """Of what is summed, which is one vector."""
        self.total: Total | None = None
        """The sums so far; None where nothing is summed."""
        self.inputs: tuple[tuple, dict] = ((), {})
        """Arguments of the last pass that counts, with their positions in place of tensors."""
        self.num_passes = 0
        self.hooked_weights: set[str] = set()

    def count(self, inputs: tuple[tuple, dict]) -> None:
        """Note a pass that counts."""
        self.num_passes += 1
        self.inputs = map_tensors(inputs, lambda tensor: cast(Any, _Position(self._keep(tensor))))

    def take(self, seen: Iterable[tuple[Recipient, Tensor]]) -> None:
        """Note what a pass shows."""
        for entry, tensor in seen:
            if entry.reduced:
                self._sums.append((entry, tensor))
            else:
                self.rows_at.append((entry, self._keep(tensor)))

    def tensors(self) -> list[Tensor]:
        """Return the tensors that a graph is to compute, once the traced pass is over."""
        return self._tensors

    def sums(self) -> list[Tensor]:
        """Return what a graph is to add to :meth:`totals`, once the traced pass is over: one vector, or none."""
        if not self._sums:
            return []
        self.parts = tuple(entry for entry, _ in self._sums), tuple(tensor.shape for _, tensor in self._sums)
        return [packed([tensor for _, tensor in self._sums])]

    def totals(self) -> list[Tensor]:
        """Return where to, once the trace is over: vectors of float64 that stay the same."""
        if self._sums:
            self.total = self._total_of(self.parts, self._sums[0][1].device)
        return [] if self.total is None else [self.total.vector]

    def finish(self) -> None:
        """Let go of what was summed up; RuntimeError for what came after the traced pass."""
        if len(self.parts[0]) < len(self._sums):
            raise RuntimeError("gradients arrived behind the pass that was compiled")
        self._sums = []

    def arguments(self, tensors: Sequence[Tensor]) -> tuple[tuple, dict]:
        """Return the arguments of the last pass that a graph computed ``tensors`` for."""
        return _filled(self.inputs, tensors)

    def _keep(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        return len(self._tensors) - 1


class _Position(int):
    """The position of a tensor, in its place."""


def _filled(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Return ``value`` with tensors in the place of their positions."""
    if isinstance(value, _Position):
        return tensors[value].detach()
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_filled(item, tensors) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


class NoRide:
    """The observer behind a hook that sees nothing: the hook of a copied model, or one whose observer is gone."""

    model = None

    def key(self) -> str:
        """Return that there is nothing to see."""
        return ""

    def paused(self) -> AbstractContextManager[None]:
        """Change nothing."""
        return nullcontext()


class Hook:
    """A hook that does not drag its observer along: inert in a copy of the model and after unpickling."""

    def __init__(self, observer: Any, method: str, name: str) -> None:
        self._observer, self._method, self._name = weakref.ref(observer), method, name

    def __call__(self, *args: Any) -> None:
        observer = self._observer()
        if observer is None or observer.is_paused or foreign_pass(observer.owner):
            return
        start = perf_counter()
        getattr(observer, self._method)(self._name, *args)
        observer.seconds += perf_counter() - start

    @property
    def ride(self) -> Any | None:
        """The observer that a compiled graph can serve in this hook's place; None if the step has to be eager."""
        observer = self._observer()
        return NO_RIDE if observer is None else observer if observer.can_ride else None

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return inert

    def __reduce__(self) -> tuple:
        return get_inert, ()


NO_RIDE = NoRide()


def inert(*args: Any) -> None:
    """Do nothing: what a hook becomes in a copy of the model."""


inert.ride = NO_RIDE  # type: ignore[attr-defined]


def get_inert() -> Callable[..., None]:
    """Return :func:`inert`, for pickle."""
    return inert


def backward_pass() -> int:
    """Return a number for the backward pass now running, -1 outside; torch has no public name for it."""
    return torch._C._current_graph_task_id()


IN_TRANSFORM = "inside a transform (torch.func.vmap, grad, jvp or forward differentiation), where values are wrapped"


def is_hidden(gradient: Tensor | None = None) -> bool:
    """Return whether values are wrapped, as ``torch.func``, forward differentiation and batches of gradients do."""
    if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:  # type: ignore[attr-defined]
        return True
    return gradient is not None and torch._C._functorch.is_legacy_batchedtensor(gradient)


def in_backward() -> bool:
    """Return whether a backward pass is running."""
    return backward_pass() != -1
