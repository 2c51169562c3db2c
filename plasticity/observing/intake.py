"""Reduce what is seen of a model to what probes use, and hand it over once its pass counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from plasticity.probes.probe import FORWARD, LINEAR, POST, PRE, PREACTIVATION, WEIGHT_GRADIENT
from plasticity.structure.layers import Layer, precise
from plasticity.structure.sites import by_neuron, fits

from .gathering import Gathering
from .gradients import Backward, Backwards
from .hooks import Recipient, Recording, Seen, backward_pass, is_hidden
from .passes import Pass
from .sights import ACTIVATION, INPUT, OUTPUT, Sight

SHOWN = {ACTIVATION: (FORWARD, POST), INPUT: ("", PRE), OUTPUT: (PREACTIVATION, LINEAR)}
"""The signals that a kind of sight shows: of values, and of gradients."""

Arrive = Callable[[Tensor], None]
"""Takes in a gradient that has arrived."""


class Intake:
    """Hand what is seen to ``gathering``, or to a recording while a pass is compiled."""

    def __init__(self, gathering: Gathering) -> None:
        self.gathering = gathering
        self.recording: Recording | None = None
        self.mask_fitted = False
        """True if some layer's output had the shape of the mask."""
        self.mask_shape: torch.Size | None = None
        """The shape of the last mask of a pass."""
        self.stale = False
        """True if the next pass that counts replaces what is pending."""
        self.seconds = 0.0
        """Wall-clock time spent on gradients, and on what graphs deliver."""
        self._inputs: tuple[tuple, dict] | None = None
        self.method = "forward"
        """The method by which the last pass that counted called the model."""
        self._delivered: tuple[Recording, Sequence[Tensor]] | None = None
        self._backwards = Backwards()
        self._now: Backward | None = None
        """The backward pass of the last gradient that was taken in."""
        self._counted_in: Backward | None = None
        """The backward pass in which a pass was counted last."""
        self.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without passes, which stay with the original model."""
        left: dict[str, Any] = {
            "_delivered": None,
            "recording": None,
            "unfinished": {},
            "_arrived": {},
            "_inputs": self.inputs,
        }
        return {**self.__dict__, **left}

    @property
    def inputs(self) -> tuple[tuple, dict] | None:
        """Positional and named arguments of the last pass that counted, detached."""
        if self._delivered is not None:
            recording, tensors = self._delivered
            return recording.arguments(tensors)
        return self._inputs

    def forget(self) -> None:
        """Forget the gradients that wait for more."""
        self.unfinished: dict[int, Pass] = {}
        """Passes at which more gradients may arrive."""
        self._arrived: dict[str, tuple[Backward, Pass]] = {}
        """Layer -> the backward pass in which a gradient arrived at it last, and the forward pass that it is of."""

    def reset(self) -> None:
        """Forget everything gathered."""
        self.forget()
        self.gathering.reset()
        self.stale = False

    def flush(self) -> None:
        """Take in the gradients that have arrived so far, though more may arrive at the same passes."""
        for owner in self.unfinished.values():
            owner.gradients.flush()
        self.unfinished.clear()

    def deliver(self, plan: Recording, tensors: Sequence[Tensor]) -> None:
        """Take in what a graph computed of a recorded pass."""
        if plan.num_passes:
            start = perf_counter()
            if self.stale:
                self._replace_stale()
            self._inputs, self._delivered = None, (plan, tensors)
            self.gathering.take_recorded(plan, tensors)
            self.seconds += perf_counter() - start

    def count(self, owner: Pass) -> None:
        """Count a pass: hand over its activations."""
        if not owner.counted:
            owner.counted = True
            self.stale |= self._was_discarded(owner)
            self._counted_in = self._now
            if self.recording is not None:
                self.recording.count(owner.inputs)
            else:
                self._replace_stale()
                self._inputs, self._delivered, self.method = owner.inputs, None, owner.method
                self.gathering.count()
        for seen in owner.seen.values():
            self._take(seen)
        owner.seen.clear()

    def _was_discarded(self, owner: Pass) -> bool:
        """Return whether what is pending is of a loss whose gradients were zeroed before any step.

        So it is with the loss of another network, of an actor or a generator, that runs through this one.
        """
        before, now = self._counted_in, self._now
        if not (self.gathering.deferred and self.gathering.num_pending and before and now and owner.parameters):
            return False
        if self.recording is not None or before.number == now.number or not (before.accumulates and now.accumulates):
            return False
        return not any(p.grad is not None and bool(p.grad.any()) for p in owner.parameters)

    def _replace_stale(self) -> None:
        if self.stale:
            self.forget()
            self.gathering.drop()
        self.stale = False

    # -- forward -------------------------------------------------------------------------------------------------------

    def see(self, owner: Pass, sight: Sight, born: int, value: Tensor, again: bool) -> Arrive | None:
        """Look at one sight; return what is to be done with its gradient, None if nothing.

        ``born``: the position at which the layer's call ended; ``again``: whether a backward pass computes it again.
        """
        layer, kind, site, since = sight
        place, length = (kind, layer.name, born, again), len(since)
        if not owner.takes(place, length):
            return None
        shown, signal = SHOWN[kind]
        if shown in self.gathering.signals and not again:
            self._note_mask(owner, site.of(value), site.axis)
            if shown == FORWARD:
                self.gathering.dtypes[layer.name] = value.dtype
            tensor = precise(value.detach())
            if site.replay:
                with torch.no_grad():
                    rows = site.read(tensor, owner.mask)
            else:
                rows = _rows(site.of(tensor), site.axis, site.columns, owner.mask)
            # Rows may be overwritten in place before they are looked at.
            owner.seen[place] = cloned(self.gathering.look(layer.name, shown, rows))
        if signal == POST and (site.replay or POST not in self.gathering.signals):
            return None

        def look(gradient: Tensor) -> None:
            gradient = site.of(gradient)
            self._note_mask(owner, gradient, site.axis)
            self._take(self.gathering.look(layer.name, signal, _rows(gradient, site.axis, site.columns, owner.mask)))

        def arrive(gradient: Tensor) -> None:
            if owner.lengths[place] == length:
                if kind != ACTIVATION and self._now is not None:
                    self._arrived[layer.name] = self._now, owner
                if signal in self.gathering.signals and self._now is not None:
                    owner.gradients.add(place, precise(gradient.detach()), look, self._now.final)

        return arrive

    # -- backward ------------------------------------------------------------------------------------------------------

    def follow(self, tensor: Tensor, owner: Pass, arrive: Arrive, holds: Callable[[], bool]) -> None:
        """Call ``arrive`` with the gradient of a tensor that a backward pass of the loss brings, while it ``holds``."""
        if not tensor.requires_grad:
            return

        def hook(gradient: Tensor) -> None:
            if holds() and not is_hidden(gradient):
                start = perf_counter()
                if self._accepts(owner):
                    self.count(owner)
                    arrive(gradient)
                self.seconds += perf_counter() - start

        tensor.register_hook(hook)

    def _accepts(self, owner: Pass) -> bool:
        """Return whether the backward pass now running counts for a forward pass."""
        backward = self._backwards.now(owner.parameters)
        if backward is None or not owner.gradients.accept(backward):
            return False
        self._now = backward
        if not backward.final:
            self.unfinished[id(owner)] = owner
        return True

    def weigh(self, layer: Layer, gradient: Tensor) -> None:
        """Look at the gradient of a layer's weight, in a backward pass that reached the layer itself."""
        backward, owner = self._arrived.get(layer.name, (None, None))
        if backward is None or owner is None or backward.number != backward_pass():
            return

        def look(gradient: Tensor) -> None:
            seen = self.gathering.look(layer.name, WEIGHT_GRADIENT, layer.of_weight(gradient))
            # What is deferred is a copy: the gradient becomes `.grad`, which may be clipped in place.
            self._take(cloned(seen) if self.gathering.deferred else seen)

        owner.gradients.add(("weight", layer.name), precise(gradient.detach()), look, backward.final)

    def _take(self, seen: Iterable[tuple[Recipient, Tensor]]) -> None:
        (self.gathering if self.recording is None else self.recording).take(seen)

    def _note_mask(self, owner: Pass, tensor: Tensor, axis: int) -> None:
        if owner.mask is not None:
            self.mask_shape = owner.mask.shape
            self.mask_fitted |= fits(owner.mask, tensor, axis)


def cloned(seen: Seen) -> Seen:
    """Return what is seen with copies of rows."""
    return [(entry, tensor if entry.reduced else tensor.clone()) for entry, tensor in seen]


def _rows(tensor: Tensor, axis: int, columns: Tensor | None, mask: Tensor | None) -> Tensor:
    if axis == -1 and columns is None and mask is None and tensor.dim() == 2:
        return tensor  # already
    return by_neuron(tensor, axis, columns, mask)


def undivided(tensor: Tensor) -> Tensor:
    """Return the tensor that a view looks at, if it looks at all of it along the same last axis.

    An in-place activation on a view takes the view out of the graph, but not the tensor it looks at.
    """
    base = tensor._base
    if base is None or base.numel() != tensor.numel() or base.shape[-1:] != tensor.shape[-1:]:
        return tensor
    return base if base.is_contiguous() and tensor.is_contiguous() else tensor
