"""The base of all probes: one layer's statistics, gathered signal by signal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

SIGNALS = FORWARD, PRE, POST, WEIGHT = "on_forward", "on_backward", "on_activation_gradient", "on_weight_gradient"
"""Activations; gradients before and after the activation function; gradients of the incoming weights."""


class Probe:
    """Gather statistics of one layer; a monitor keeps a copy for every layer and feeds it.

    Override the signals you need (only those get a hook) and :meth:`compute`. Tensors arrive detached, in float32 or
    better, as (samples, neurons): a convolution's channels are its neurons, and its positions count as samples, as do
    the time steps of a sequence. They may be the model's own memory: never change them in place, and copy what is kept
    (results of arithmetic are copies). Never call ``.item()``: a reading brings all results to the host at once.
    """

    per_neuron = False
    """Whether :meth:`scores` gives a number per neuron and :meth:`compute` a fraction of neurons."""
    last_step_only = False
    """Whether a reading over a window of optimizer steps is of the last step alone."""
    nan_reason = "non-finite values"
    """What a NaN result means."""

    @property
    def signals(self) -> frozenset[str]:
        """The names of the signals this probe wants: those it overrides."""
        return frozenset(s for s in SIGNALS if getattr(type(self), s) is not getattr(Probe, s))

    def reset(self) -> None:
        """Forget everything gathered so far."""

    def on_forward(self, activations: Tensor) -> None:
        """Take the layer's activations, (samples, neurons)."""

    def on_backward(self, gradients: Tensor) -> None:
        """Take dL/d(pre-activation), (samples, neurons)."""

    def on_activation_gradient(self, gradients: Tensor) -> None:
        """Take dL/d(activation), (samples, neurons)."""

    def on_weight_gradient(self, gradients: Tensor) -> None:
        """Take dL/dW of one backward pass, (neurons, inputs)."""

    def reduce(self, signal: str, rows: Tensor) -> Tensor:
        """Return what one pass adds to a sum over passes, in place of its rows; a pure function: it is compiled, too.

        Optional, together with :meth:`add`: then the methods of the signals are not called, unless a subclass has
        overridden them alone. It makes measuring at every update cheap.
        """
        raise NotImplementedError(f"{type(self).__name__} has no reduce()")

    def add(self, signal: str, total: Tensor, num_samples: int) -> None:
        """Take the sum over passes of what :meth:`reduce` returned, in float64, and how many samples were in them."""
        raise NotImplementedError(f"{type(self).__name__} has no add()")

    @classmethod
    def reduces(cls, signal: str) -> bool:
        """Return whether :meth:`reduce` stands for the method of a signal: whichever was overridden last does."""

        def depth(name: str) -> int:
            return next(i for i, kind in enumerate(cls.__mro__) if name in vars(kind))

        return cls.reduce is not Probe.reduce and depth("reduce") <= depth(signal)

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered, to go on from in the middle of a window: here, all attributes."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        vars(self).update(state)

    def combine(self, add: Callable[[Tensor], Tensor]) -> None:
        """Go over to what the probes of all processes have gathered; ``add`` returns the sum of a tensor over them.

        Without it, each process of data-parallel training has the result of its own share of the batch.
        """

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the result, 0-D on the model's device; several results that share work come as a dict by name."""
        raise NotImplementedError(f"{type(self).__name__} has no compute()")

    def scores(self) -> Tensor:
        """Return a number per neuron, (neurons,), which interventions consume."""
        raise NotImplementedError(f"{type(self).__name__} has no score per neuron")
