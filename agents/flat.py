"""Parameters as views of one vector, and likewise their gradients and what Adam keeps of them.

Modules, `.grad` and the optimizer's state are what they are without: ordinary tensors of their own shapes, which hooks,
surgery and checkpoints read and write. That they are neighbours in memory lets a graph take them as one input, and lets
one kernel step them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, compress, pairwise
from typing import Any

import torch
from torch import Tensor

from .native import places_of

STATE = ("exp_avg", "exp_avg_sq", "step")


class Flat:
    """The parameters that a step trains as one vector, `weights`, with `gradients` and, of Adam, `moments` beside it.

    Raises ValueError for parameters of several types or devices, and for those that share their memory: moved into a
    vector, they would part.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        kinds = {(p.dtype, p.device) for p in self.parameters}
        if len(kinds) != 1:
            raise ValueError(f"the parameters of one step are of {len(kinds)} types or devices: {kinds or 'none'}")
        ranges = sorted((p.data_ptr(), p.data_ptr() + p.numel() * p.element_size()) for p in self.parameters)
        if any(end > begin for (_, end), (begin, _) in pairwise(ranges)):
            raise ValueError("parameters of one step share their memory")
        self.sizes = [p.numel() for p in self.parameters]
        self.weights = self._joined(self.parameters)
        self.gradients = torch.zeros_like(self.weights)
        self._gradients = self.views(self.gradients)
        for parameter, view in zip(self.parameters, self.views(self.weights), strict=True):
            parameter.data = view
        self._places = places_of(self.parameters)
        self.moments: list[Tensor] = []
        self.counters: Tensor | None = None
        self.rate = torch.zeros((), dtype=torch.float64, device=self.weights.device)
        """The learning rate, where a graph reads it."""
        self._lr: float | None = None
        self._state: list[Any] = []
        self._ids = [-1]  # of nothing
        self._version = -1
        self._even = False

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector, each in the shape of its parameter."""
        return [part.view(p.shape) for part, p in zip(vector.split(self.sizes), self.parameters, strict=True)]

    def holds(self) -> bool:
        """Return whether the parameters still are where they were put."""
        return places_of(self.parameters) == self._places

    def vectors(self, adam: bool) -> list[Tensor]:
        """Return weights and gradients, and with `adam` all that its step needs besides."""
        assert not adam or self.counters is not None
        return [self.weights, self.gradients, *([*self.moments, self.counters, self.rate] if adam else ())]  # type: ignore[list-item]

    def set_rate(self, lr: float) -> None:
        """Set the learning rate."""
        if lr != self._lr:
            self._lr = float(lr)  # a tensor may change in place
            self.rate.fill_(lr)

    def give_gradients(self, reached: Sequence[bool]) -> list[Tensor]:
        """Make the vector's parts the `.grad` of parameters that are reached, None that of others; return the former.

        As after `backward`: optimizers leave a parameter without a gradient alone, with its state.
        """
        for parameter, gradient, has in zip(self.parameters, self._gradients, reached, strict=True):
            if parameter.grad is not (wanted := gradient if has else None):
                parameter.grad = wanted
        return [*compress(self.parameters, reached)]

    def take_state(self, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Take in Adam's state where it is not the vectors' already; return whether all counters are equal."""
        if [*map(id, chain.from_iterable(map(dict.values, state.values())))] != self._ids and not self._move(state):
            return False
        assert self.counters is not None
        if self.counters._version != self._version:  # someone wrote to them
            self._even = bool((self.counters == self.counters[0]).all())
            self._version = self.counters._version
        return self._even

    def noticed(self) -> None:
        """Note that the counters have moved together."""
        assert self.counters is not None
        self._version = self.counters._version

    def is_even(self) -> bool:
        """Return whether nobody else has moved the counters since they were equal."""
        return self.counters is None or (self._even and self.counters._version == self._version)

    def _move(self, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Make views of Adam's state; return whether there is one for every parameter."""
        own = [state.get(parameter, {}) for parameter in self.parameters]
        if not all(all(name in one for name in STATE) for one in own):
            return False
        self.moments = [self._joined([one[name] for one in own]) for name in STATE[:2]]
        self.counters = torch.stack([one["step"] for one in own])
        vectors = (*map(self.views, self.moments), self.counters.unbind())
        for one, *parts in zip(own, *vectors, strict=True):
            one.update(zip(STATE, parts, strict=True))
        self._state = [value for one in state.values() for value in one.values()]  # kept, and with them their ids
        self._ids, self._version = [*map(id, self._state)], -1
        return True

    @staticmethod
    def _joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the memory of tensors, in order, as vectors: one for all that are neighbours."""
    found: list[tuple[Tensor, int]] = []
    end = -1
    for tensor in tensors:
        one = tensor.detach()
        if not one.is_contiguous():
            raise ValueError("a parameter is not contiguous")
        base = one.untyped_storage().data_ptr()
        if found and one.data_ptr() == end and found[-1][0].untyped_storage().data_ptr() == base:
            found[-1] = found[-1][0], found[-1][1] + one.numel()
        else:
            found.append((one, one.numel()))
        end = one.data_ptr() + one.numel() * one.element_size()
    return [first.as_strided((length,), (1,)) for first, length in found]
