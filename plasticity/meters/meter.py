"""The base of all meters: when they measure, isolation from training, and the log."""

from __future__ import annotations

import dataclasses
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from plasticity.callback import Callback, Context, note
from plasticity.isolation import undisturbed
from plasticity.tags import ALL, UNMEASURED, plasticity_tag
from plasticity.told import Told
from plasticity.value_types import require_types

T = TypeVar("T")
Measured = Mapping[str, Mapping[str, Tensor | str]]
"""Network -> metric -> value, 0-D, or the reason why there is none, as text."""

MeterKey = tuple[str, str]
"""A network and a metric."""
NO_FORWARD = "the run does not say how to run it: Context.forward has no entry of this name"

FIRST = 2
"""The first update that is measured: before it there is one in which states can be held out."""
PERIOD, LONG_PERIOD = 1000, 10
"""Updates between two measurements; the second without a replay buffer, where an update takes many gradient steps."""


@dataclass
class Meter(Callback):
    """Measure networks every so many updates and log ``plasticity/<network>/<metric>/all``; fields are flags.

    A value that is missing or NaN is logged as NaN, and its reason once as the event ``unmeasured``. Subclasses write
    :meth:`measure` and, to compare the networks before and after one update, :meth:`before`. Both run
    in evaluation mode, without gradients, with buffers and global random states restored afterwards; they draw random
    numbers from ``self.generator`` alone, and never write to a network. An error becomes one warning, and the meter is
    off from then on.
    """

    NAME: ClassVar[str] = ""
    """The flag on the command line."""
    NEEDS: ClassVar[tuple[str, ...]] = ()
    """Attributes of the context without which the meter cannot work."""

    span: ClassVar[int] = 1
    """Updates from the look before to the measurement."""
    nan_reason: ClassVar[str] = "non-finite values"
    """The meaning of a NaN."""

    every: int | None = None
    """Updates between two measurements; None: 1,000, or 10 without a replay buffer, where one update is long."""
    networks: tuple[str, ...] = ()
    """Names or globs of the networks to measure; empty for all."""
    seed: int = 0
    """Seed of the meter's own random numbers."""
    strict: bool = False
    """Raise when measuring fails, in place of one warning after which the meter is off."""

    def __post_init__(self) -> None:
        require_types(self)
        if self.every is not None and self.every < 1:
            raise ValueError(f"{type(self).__name__} needs every >= 1 updates, got {self.every}")
        self.updates = 0
        self._told = Told()
        self.failure = ""
        """The error that switched the meter off; empty while it works."""
        self.generator = torch.Generator().manual_seed(zlib.crc32(f"{self.NAME}/{self.seed}".encode()))

    # -- to write ------------------------------------------------------------------------------------------------------

    def hold(self, ctx: Context) -> None:
        """Draw data one update before the one that is measured: they are in no batch of the latter."""

    def before(self, ctx: Context) -> None:
        """Look at the networks right before the update that is measured."""

    def measure(self, ctx: Context) -> Measured:
        """Return network -> metric -> value, 0-D, or text, why there is none; right after the measured update."""
        raise NotImplementedError(f"{type(self).__name__} has no measure()")

    # -- events --------------------------------------------------------------------------------------------------------

    def on_train_start(self, ctx: Context) -> None:
        """Check that the run lends all that is needed; ValueError names the missing part."""
        ctx.require("networks", type(self).__name__)
        for need in self.NEEDS:
            ctx.require(need, type(self).__name__)
        self.chosen(ctx)

    def on_update_start(self, ctx: Context) -> None:
        """Look at the networks before an update that is measured."""
        if self._is_due(ctx, self.updates + self.span):
            self._guarded(ctx, self.before)
        if self._is_due(ctx, self.updates + self.span + 1):
            self._guarded(ctx, self.hold)

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Measure and log, if it is due."""
        self.updates += 1
        if self._is_due(ctx, self.updates):
            self._log(ctx, self.measure)

    def chosen(self, ctx: Context) -> dict[str, nn.Module]:
        """Return the networks to measure by name; ValueError if ``networks`` matches none."""
        found = {n: m for n, m in ctx.networks.items() if not self.networks or self._matches(n)}
        if not found:
            there, wanted = ", ".join(ctx.networks), ", ".join(self.networks)
            raise ValueError(f"{type(self).__name__} finds no network {wanted}; {ctx.name} has {there}")
        return found

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the clock, the generator's state, the error that switched it off, and the reasons that were told."""
        state = {"updates": self.updates, "generator": self.generator.get_state(), "failure": self.failure}
        return {**state, "told": self._told.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.updates, self.failure = state["updates"], state["failure"]
        self.generator.set_state(state["generator"])
        self._told.load_state_dict(state.get("told", {}))

    def settings(self) -> dict[str, Any]:
        """Return the fields by name."""
        return dataclasses.asdict(self)

    # -- in private ----------------------------------------------------------------------------------------------------

    def _is_due(self, ctx: Context, update: int) -> bool:
        period = self.every or (LONG_PERIOD if ctx.buffer is None else PERIOD)
        return update > self.span and (update - FIRST) % period == 0

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.networks)

    def _log(self, ctx: Context, measure: Callable[[Context], Measured]) -> None:
        """Measure and log the values; tell why there is none, once."""
        numbers, reasons = self._guarded(ctx, lambda ctx: self._split(measure(ctx))) or ({}, {})
        if numbers:
            ctx.log({plasticity_tag(network, metric): value for (network, metric), value in numbers.items()})
        for network in dict.fromkeys(network for network, _ in reasons):
            gaps = {f"{ALL} ({metric})": reason for (one, metric), reason in reasons.items() if one == network}
            if new := self._told.new(network, gaps):
                ctx.event(UNMEASURED, {"network": network, **new})

    def _split(self, values: Measured) -> tuple[dict[MeterKey, float], dict[MeterKey, str]]:
        """Return the values on the host, brought there at once, and the reasons of those that are NaN."""
        if not isinstance(values, Mapping) or not all(isinstance(one, Mapping) for one in values.values()):
            raise TypeError(f"{type(self).__name__}.measure() must return network -> metric -> value, got {values!r}")
        found = {(n, m): v for n, by_metric in values.items() for m, v in by_metric.items()}
        reasons = {place: value for place, value in found.items() if isinstance(value, str)}
        there = {place: value for place, value in found.items() if not isinstance(value, str)}
        for (_, metric), value in there.items():
            if not isinstance(value, Tensor) or value.dim():
                raise TypeError(
                    f"{type(self).__name__}.measure() must return 0-D tensors, or text, why there is no value; "
                    f"{metric} is {value!r}"
                )
        numbers = torch.stack([v.double() for v in there.values()]).tolist() if there else []
        measured = dict(zip(there, numbers, strict=True))
        reasons |= {place: self.nan_reason for place, value in measured.items() if math.isnan(value)}
        return {place: measured.get(place, math.nan) for place in found}, reasons

    def _guarded(self, ctx: Context, act: Callable[[Context], T]) -> T | None:
        """Return what ``act`` returns, without a trace in the networks; None where it fails or has failed before."""
        if self.failure:
            return None
        try:
            with isolated(ctx, self):
                return act(ctx)
        except Exception as error:
            if self.strict:
                note(error, f"raised by the meter {self.NAME or type(self).__name__}")
                raise
            self.failure = f"{type(error).__name__}: {error}"
            message = f"meter {self.NAME or type(self).__name__!r} failed and is off from now on: {self.failure}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
            for name in [name for name in ctx.networks if not self.networks or self._matches(name)]:
                ctx.event(UNMEASURED, {"network": name, f"{ALL} ({self.NAME})": f"the meter failed: {self.failure}"})
            return None


@contextmanager
def isolated(ctx: Context, owner: object) -> Iterator[None]:
    """Restore on exit all that running the networks of ``ctx`` could have moved; within, there are no gradients."""
    with ExitStack() as stack:
        for module in {id(m): m for m in (*ctx.networks.values(), *ctx.targets.values())}.values():
            stack.enter_context(undisturbed(module, owner))
        stack.enter_context(torch.no_grad())
        yield
