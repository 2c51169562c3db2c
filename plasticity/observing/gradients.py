"""Gradients of the loss: which backward passes count, and the sum of what arrives at one tensor in several of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from .hooks import backward_pass


class Backward(NamedTuple):
    """A backward pass that may be of the loss."""

    number: int
    final: bool
    """True if the graph is freed, so that no other gradient can arrive."""
    accumulates: bool
    """True if it is a ``backward()``, which writes to ``.grad``, and not an ``autograd.grad``."""
    differentiable: bool
    """True if its gradients will be differentiated again."""


class Backwards:
    """Tell the backward passes of a loss from those of anything else.

    ``backward()`` is of the loss. ``autograd.grad`` is where it returns gradients of the model's parameters; those of
    inputs or features (a gradient penalty, a physics-informed loss) are a part of the model's output.
    """

    def __init__(self) -> None:
        self._number = -1
        self._known: Backward | None = None

    def now(self, parameters: Iterable[Tensor]) -> Backward | None:
        """Return the backward pass now running, None if it is not of the loss; ``parameters``: of the model."""
        number = backward_pass()
        if number != self._number:
            self._number, self._known = number, _classified(number, parameters)
        return self._known


def _classified(number: int, parameters: Iterable[Tensor]) -> Backward | None:
    reached = _reached(parameters)
    if reached is None:
        return None
    keeps = torch._C._autograd._get_current_graph_task_keep_graph()
    return Backward(number, not keeps, reached == "accumulated", torch.is_grad_enabled())


def _reached(parameters: Iterable[Tensor]) -> str | None:
    """Return how the backward pass now running reaches a parameter, "accumulated" or "returned"; None if it does not.

    Where no parameter trains, every backward pass counts.
    """
    nothing_trains = True
    for parameter in parameters:
        nothing_trains = False
        try:
            # torch has no public name for it.
            if torch._C._will_engine_execute_node(get_gradient_edge(parameter).node):
                return "accumulated"
        except RuntimeError:  # the node is one whose gradient `autograd.grad` returns
            return "returned"
    return "accumulated" if nothing_trains else None


@dataclass
class Arrivals:
    """The gradients of one forward pass: what arrives at one place is added up before it is looked at."""

    _waiting: dict[Hashable, tuple[Tensor, Callable[[Tensor], Any]]] = field(default_factory=dict)
    _of_loss: bool = False
    """True if a ``backward()`` has arrived."""
    _provisional: bool = False
    """True if an ``autograd.grad`` has arrived whose gradients will be differentiated again."""
    _decided: tuple[int, bool] = (-1, False)

    def accept(self, backward: Backward) -> bool:
        """Return whether the gradients of a backward pass count.

        Gradients of parameters that are differentiated again (meta-learning, Hessian products) count only until another
        backward pass shows that they were not those of the loss.
        """
        if self._decided[0] != backward.number:
            self._decided = backward.number, self._decide(backward)
        return self._decided[1]

    def _decide(self, backward: Backward) -> bool:
        if backward.accumulates:
            if self._provisional:
                self._waiting.clear()
            self._of_loss, self._provisional = True, False
            return True
        if self._of_loss or self._provisional:
            return False
        self._provisional = backward.differentiable
        return True

    def add(self, place: Hashable, gradient: Tensor, look: Callable[[Tensor], Any], final: bool) -> None:
        """Add a gradient, and ``look`` at the sum once it is ``final``."""
        if place in self._waiting:
            gradient = gradient + self._waiting.pop(place)[0]
        if final:
            look(gradient)
        else:
            self._waiting[place] = gradient.clone(), look

    def flush(self) -> None:
        """Look at what has arrived so far."""
        waiting, self._waiting = self._waiting, {}
        for gradient, look in waiting.values():
            look(gradient)
