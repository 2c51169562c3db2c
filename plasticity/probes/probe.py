"""The base of all probes: statistics of one layer, gathered signal by signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

SIGNALS = FORWARD, PREACTIVATION, PRE, LINEAR, POST, WEIGHT, WEIGHT_BEFORE, WEIGHT_GRADIENT = (
    "on_forward",
    "on_preactivation",
    "on_backward",
    "on_linear_gradient",
    "on_activation_gradient",
    "on_weight",
    "on_weight_before",
    "on_weight_gradient",
)
OF_WEIGHTS = frozenset({WEIGHT, WEIGHT_BEFORE, WEIGHT_GRADIENT})
"""Signals whose rows are neurons, not samples."""

NO_EARLIER = "there is no earlier reading to compare with"
"""The reason of a probe that compares two readings, at the first."""

Summand = Callable[[Tensor], Tensor]
"""A pure function of the rows of one signal in one pass."""


class Probe:
    """Gather statistics of one layer. A monitor keeps a copy for every layer and feeds it.

    Either name functions whose results are added up, in :meth:`sums`, or override the methods of the signals that you
    need; then write :meth:`compute`. Only the signals that are used get a hook. A layer has a value once every signal
    of the probe has arrived. Rows are detached, in float32 or better, (samples, neurons): a convolution's channels are
    its neurons, and its positions count as samples, as do the time steps of a sequence. Rows may be the model's own
    memory: never change them in place, and copy what is kept (results of arithmetic are copies). Never call
    ``.item()``: a reading brings all results to the host at once.
    """

    KIND: ClassVar[str] = ""
    """The family, for lists."""
    WORSE: ClassVar[str] = ""
    """The bad side: "higher", "lower", or words."""
    COST: ClassVar[str] = ""
    """The cost class: "sums" of what a pass shows, "weights" at a reading, "rows" that are kept and decomposed, "pass"
    (runs the network once more), "passes" (many times)."""
    SOURCE: ClassVar[str] = ""
    """Paper or code of the definition."""

    per_neuron = False
    """True if :meth:`scores` gives a number per neuron and :meth:`compute` a fraction of neurons."""
    last_step_only = False
    """True if a reading over a window of optimizer steps is of the last step alone."""
    nan_reason = "non-finite values"
    """The meaning of a NaN result."""
    activation: str | None = None
    """The activation function of the layer, as torch names the operation ("relu", "tanh"), "gated" for factors of gated
    units, None without one; known while results are made."""
    activation_dtype: torch.dtype | None = None
    """The dtype of the layer's activations before they were widened to float32; None where nothing says it. Known with
    results."""
    memory: Any = None
    """The result of :meth:`remember` at the last reading of this layer; None at the first. Known with results."""
    recycled: Sequence[int] = ()
    """The neurons of the layer that methods recycled last, before the passes of the reading. Known with results."""

    # -- signals -------------------------------------------------------------------------------------------------------

    def sums(self) -> Mapping[str, Summand]:
        """Return signal -> function of its rows; the results, of one shape, are added up over passes in float64.

        The sums are :meth:`total`. Prefer this to the methods: sums are computed inside compiled updates, kept over a
        window and a resumed run, and added up over processes. For several sums of one signal, stack them.
        """
        return {}

    def on_forward(self, activations: Tensor) -> None:
        """Take the layer's activations, (samples, neurons)."""
        self._sum(FORWARD, activations)

    def on_preactivation(self, z: Tensor) -> None:
        """Take the layer's linear output, before norm and activation function, (samples, neurons)."""
        self._sum(PREACTIVATION, z)

    def on_backward(self, gradients: Tensor) -> None:
        """Take dL/d(input of the activation function), (samples, neurons): behind a norm that stands before it."""
        self._sum(PRE, gradients)

    def on_linear_gradient(self, gradients: Tensor) -> None:
        """Take dL/d(linear output), before norm and activation function, (samples, neurons)."""
        self._sum(LINEAR, gradients)

    def on_activation_gradient(self, gradients: Tensor) -> None:
        """Take dL/d(activation), (samples, neurons)."""
        self._sum(POST, gradients)

    def on_weight(self, weight: Tensor) -> None:
        """Take the layer's weight, (neurons, inputs), once for every reading: as it is when the reading is taken."""
        self._sum(WEIGHT, weight)

    def on_weight_before(self, weight: Tensor) -> None:
        """Take the weight as it was before the optimizer steps of the window, (neurons, inputs), once for a reading.

        Arrives with :meth:`on_weight` where a watched optimizer made steps; their difference is the real step.
        """
        self._sum(WEIGHT_BEFORE, weight)

    def on_weight_gradient(self, gradients: Tensor) -> None:
        """Take dL/dW of one backward pass, (neurons, inputs)."""
        self._sum(WEIGHT_GRADIENT, gradients)

    @property
    def signals(self) -> frozenset[str]:
        """The names of the signals that this probe uses."""
        return signals_with_rows(type(self)) | frozenset(self.sums())  # type: ignore[arg-type]

    @classmethod
    def takes_rows(cls, signal: str) -> bool:
        """Return whether the method of a signal is overridden: it gets the rows, also where there is a sum."""
        return getattr(cls, signal) is not getattr(Probe, signal)

    # -- sums over passes ----------------------------------------------------------------------------------------------

    def total(self, signal: str) -> Tensor:
        """Return the sum over passes of what :meth:`sums` names for ``signal``, float64; RuntimeError without data."""
        return self._gathered(signal)[0]

    def num_samples(self, signal: str) -> int:
        """Return the number of samples in :meth:`total`; for signals of weights, the number of passes."""
        return self._gathered(signal)[1]

    def add(self, signal: str, value: Tensor, num_samples: int) -> None:
        """Add to :meth:`total` and :meth:`num_samples`."""
        # float64: sums over many passes lose the small ones in float32.
        total, count = self._sums.get(signal, (None, 0))
        self._sums[signal] = (value.double() if total is None else total + value.double(), count + num_samples)

    def combine(self, add: Callable[[Tensor], Tensor]) -> None:
        """Replace what was gathered by what all processes have; ``add`` returns the sum of a tensor over them."""
        for signal, (total, count) in sorted(self._sums.items()):
            number = int(add(torch.tensor(count, device=total.device)))
            self._sums[signal] = add(total), number

    @property
    def _sums(self) -> dict[str, tuple[Tensor, int]]:
        return self.__dict__.setdefault("_totals", {})  # subclasses need not call __init__

    def _gathered(self, signal: str) -> tuple[Tensor, int]:
        found = self._sums.get(signal)
        if found is None:
            raise RuntimeError(f"{type(self).__name__} has seen no data of {signal}")
        return found

    def _sum(self, signal: str, rows: Tensor) -> None:
        if (function := self.sums().get(signal)) is not None:
            if not len(rows):
                raise ValueError(f"{type(self).__name__} needs at least one sample")
            self.add(signal, function(rows), num_samples_in(signal, rows))

    # -- life ----------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything gathered so far."""
        self._totals: dict[str, tuple[Tensor, int]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, to go on from in the middle of a window: here, all attributes."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        vars(self).update(state)

    # -- results -------------------------------------------------------------------------------------------------------

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Return the result, 0-D on the model's device; several results that share work come as a dict by name."""
        raise NotImplementedError(f"{type(self).__name__} has no compute()")

    def why_not(self) -> str:
        """Return why the layer has no value though all signals arrived, such as its activation; empty: it has one.

        A layer without a value is left out of that of the network.
        """
        return ""

    def remember(self) -> Any:
        """Return what the next reading of this layer needs of this one: plain values and tensors, None for nothing."""
        return None

    def of_network(self, values: Sequence[float], neurons: Sequence[int]) -> float:
        """Return the value of the network from those of its layers: by default their mean, of fractions by neurons."""
        weights = neurons if self.per_neuron else [1] * len(values)
        total = sum(weight * value for weight, value in zip(weights, values, strict=True))
        return total / sum(weights) if weights else torch.nan

    def details(self) -> dict[str, Any]:
        """Return what belongs beside the value, such as the number of samples: plain values by name."""
        return {}

    def scores(self) -> Tensor:
        """Return a number per neuron, (neurons,), which interventions consume."""
        raise NotImplementedError(f"{type(self).__name__} has no score per neuron")


def num_samples_in(signal: str, rows: Tensor) -> int:
    """Return the number of samples in the rows of a signal; 1 for weights, whose rows are neurons."""
    return 1 if signal in OF_WEIGHTS else rows.shape[0]


@cache
def signals_with_rows(kind: type[Probe]) -> frozenset[str]:
    """Return the signals of which probes of a class get the rows."""
    return frozenset(signal for signal in SIGNALS if kind.takes_rows(signal))
