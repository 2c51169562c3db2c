"""Probes and interventions as guests of a training loop of another package: what its callbacks share."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .callback import Callback, Context, Writer, end, fire, name_of, start
from .interventions import Intervention
from .interventions.intervention import never_acted
from .isolation import is_compiled
from .measuring import Measure
from .meters.fit_probe import FitProbe
from .storage.nested import flatten, unflatten
from .storage.tensorfile import read_tensors, write_tensors
from .writers.destinations import OpenLog, destinations_of, require_destinations

Log = str | Path | Writer | Sequence[str | Path | Writer] | None
"""Destinations of what is logged beside the loop's own: as in :func:`plasticity.watch`."""


class Guest:
    """Run a measurement, interventions and fit probes in a loop: :meth:`begin`, its updates, :meth:`end`.

    ``measure``: None for interventions alone. ``diagnose_every``: updates between two fit probes on copies, None for
    none. ``restructures``: methods may replace modules, because the loop takes over what :meth:`begin` leaves in the
    context. Raises TypeError or ValueError for interventions and destinations that cannot be worked with.
    """

    def __init__(
        self,
        measure: Measure | None,
        interventions: Sequence[Callback] = (),
        log: Log = None,
        diagnose_every: int | None = None,
        restructures: bool = False,
    ) -> None:
        self.measure, self._restructures = measure, restructures
        fit = [] if diagnose_every is None else [FitProbe(every=diagnose_every)]
        self.callbacks: list[Callback] = [*([] if measure is None else [measure]), *interventions, *fit]
        if log is not None:
            require_destinations(log)
        self._log_to = [] if log is None else destinations_of(log)
        self.ctx: Context | None = None
        """The context in which it began last; a loop that goes on begins in the same one."""
        self.is_running = self._is_updating = False
        self._told: set[str] = set()
        self._log: OpenLog | None = None
        self._skips = Skips()

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return {} if self.measure is None else self.measure.last

    def begin(self, ctx: Context, host: Writer | None, states: Mapping[str, Any] | None = None) -> None:
        """Start everything; ``host`` writes to the loop's own log, ``states`` are those of a run that goes on, by name.

        In the context of the last time, everything goes on from its present state. Raises ValueError for compiled
        networks, for methods that replace modules where the loop does not let them, for what a method lacks, and for
        states of other networks.
        """
        require_eager({**ctx.networks, **{f"{name}_target": net for name, net in ctx.targets.items()}}, ctx.name)
        self.require_structure(ctx.name)
        goes_on = ctx is self.ctx
        if not goes_on:
            self.close()
            self._log = OpenLog([self._skips, *([] if host is None else [host]), *self._log_to])
            ctx.writer = self._log.writer
        saved = None if goes_on or states is None else [states.get(name) for name in self.named()]
        try:
            start(self.callbacks, ctx, saved)
        except BaseException as error:
            if not goes_on:
                self.close()
            if saved is not None and isinstance(error, KeyError):
                raise self._unlike(error, ctx) from error
            raise
        self.ctx, self.is_running, self._is_updating = ctx, True, False
        if not goes_on and ctx.writer is not None:
            ctx.writer.settings(self.settings())

    @staticmethod
    def _unlike(error: KeyError, ctx: Context) -> ValueError:
        """Return the error for states that do not fit the networks: one looks up what the other lacks."""
        by = "; ".join([str(error), *getattr(error, "__notes__", [])])
        return ValueError(
            f"{ctx.name} cannot go on from the saved state, which is of other networks or layers ({by}). "
            f"The networks are {', '.join(ctx.networks)}: choose those of the run that was saved, "
            f"or begin without its state"
        )

    def require_structure(self, owner: str) -> None:
        """Raise ValueError for a method that replaces modules, where the loop would not see the new ones."""
        for callback in () if self._restructures else self.callbacks:
            if restructures(callback):
                raise ValueError(
                    f"{name_of(callback)} replaces modules of the network, but {owner} holds its optimizer and saves "
                    f"the model as it was: use a method that edits weights in place, such as ReDo, Reset, ShrinkPerturb"
                )

    def settings(self) -> dict[str, Any]:
        """Return how networks are measured, and the hyperparameters of the interventions."""
        watcher = None if self.measure is None else self.measure.watcher
        found = {} if watcher is None else {"watch": watcher.settings()}
        return found | {name: c.settings() for name, c in self.named().items() if hasattr(c, "settings")}

    def begin_update(self, step: int | None = None) -> None:
        """Say that an update begins, after which the loop will count ``step``; one that has begun is over."""
        self.end_update()
        if self.is_running and self.ctx is not None:
            self._is_updating = True
            self.ctx.step = self.ctx.step if step is None else step
            fire(self.callbacks, "on_update_start", self.ctx)

    def end_update(self) -> None:
        """Say that the update is over; does nothing where none has begun."""
        if self._is_updating and self.ctx is not None:
            self._is_updating = False
            fire(self.callbacks, "on_update_end", self.ctx, {})
            fire(self.callbacks, "on_step_end", self.ctx)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback by name."""
        return {name: callback.state_dict() for name, callback in self.named().items()}

    def named(self) -> dict[str, Callback]:
        """Return the callbacks by name; a second of one name has a number, ``redo_2``."""
        found: dict[str, Callback] = {}
        for callback in self.callbacks:
            name, number = name_of(callback), 1
            while (key := name if number == 1 else f"{name}_{number}") in found:
                number += 1
            found[key] = callback
        return found

    def end(self, no_step: str | None = None) -> None:
        """Take everything off; more than once is fine. ``log`` stays open until :meth:`close`.

        ``no_step``: why there may have been no optimizer step; where it is given, what was never measured and which
        methods never acted is told in one warning, once.
        """
        ctx, running = self.ctx, self.is_running
        self.is_running = self._is_updating = False
        if ctx is None or not running:
            return
        missed = [] if no_step is None else [*self._unmeasured(no_step), *self._idle()]
        end(self.callbacks, ctx)
        if missed:
            self._tell("missed", "; ".join(missed))

    def require_present(self, networks: Mapping[str, nn.Module]) -> None:
        """Warn, once, where a network of the loop is no longer the one that training began with."""
        held = {} if self.ctx is None else self.ctx.networks
        if gone := [name for name, network in networks.items() if held.get(name, network) is not network]:
            self._tell(
                "replaced",
                f"{', '.join(gone)} was replaced while training ran: the network from before is looked at, which "
                f"learns nothing more. Replace networks before training begins",
            )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(text, RuntimeWarning, stacklevel=4)

    def close(self) -> None:
        """Close the files of ``log``; more than once is fine."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def _unmeasured(self, no_step: str) -> list[str]:
        """Return what of the measurement never came about, and what to do."""
        watcher = None if self.measure is None else self.measure.watcher
        if watcher is None:
            return []
        steps = max(watcher.steps(), default=0)
        if not steps:
            return [f"nothing was measured: {no_step}"]
        if 1 < steps <= watcher.every:
            return [
                f"every={watcher.every} is not within the {steps} optimizer steps of this training, so only the first "
                f"of them was measured: pass every={max(steps // 10, 1)}, say"
            ]
        return []

    def _idle(self) -> list[str]:
        """Return which methods never came to act, by their schedule or on any layer, and why."""
        methods = {name: one for name, one in self.named().items() if isinstance(one, Intervention) and not one.counts}
        skipped = {name: self._skips.reasons.get(one.NAME) for name, one in methods.items()}
        idle = {**skipped, **never_acted(methods)}
        return [f"{name} never acted: {why}" for name, why in idle.items() if why]


class Skips(Writer):
    """Keep why methods have left layers alone, the first reason of each: the events ``<method>_skipped``."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def event(self, step: int, name: str, details: Mapping[str, Any]) -> None:
        """Keep the reason of a skip."""
        method, _, skipped = name.rpartition("_")
        if skipped == "skipped":
            self.reasons.setdefault(method, str(details.get("reason", details)))


def require_arguments(probes: Any, every: Any, interventions: Any, diagnose_every: Any = None) -> None:
    """Raise TypeError or ValueError for arguments of ``PlasticityCallback`` that it cannot work with."""
    if isinstance(probes, str) or not (isinstance(probes, Mapping) or hasattr(probes, "__iter__")):
        raise TypeError(f'probes is a list of names, ["dormancy", "grama"], or a dict of probes; got {probes!r}')
    if not (hasattr(interventions, "__iter__") and all(isinstance(one, Callback) for one in interventions)):
        raise TypeError(
            f"interventions is a list of methods, [ReDo(every=1000)], made by calling their classes; got "
            f"{interventions!r}"
        )
    for name, value in (("every", every), ("diagnose_every", diagnose_every)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} is a number of steps, at least 1; got {value!r:.80}")


def require_eager(networks: Mapping[str, nn.Module], owner: str) -> None:
    """Raise ValueError for a compiled network: neither its passes are seen nor its modules edited."""
    for name, network in networks.items():
        if is_compiled(network):
            raise ValueError(
                f"the network {name} of {owner} is compiled, and hooks added after torch.compile never run: train "
                f"without torch.compile while plasticity looks on, or put the module that was compiled back "
                f"(compiled._orig_mod)"
            )


def restructures(callback: Callback) -> bool:
    """Return whether a callback may replace modules."""
    return type(callback).restructure is not Callback.restructure


class Live:
    """A value that is computed when it is pickled or copied: what is saved is the plain value of that moment."""

    __slots__ = ("now",)

    def __init__(self, now: Callable[[], Any]) -> None:
        self.now = now

    def __reduce__(self) -> tuple[Any, ...]:
        return _plain, (self.now(),)


def _plain(value: Any) -> Any:
    return value


def as_text(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state as plain JSON values; tensors in the format of safetensors, in base64."""
    plain, tensors = flatten(dict(state))
    file: Any = io.BytesIO()
    write_tensors(file, {name: tensor.detach().cpu() for name, tensor in tensors.items()})
    return {"plain": plain, "tensors": base64.b64encode(file.getvalue()).decode()}


def from_text(text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of :func:`as_text`."""
    file: Any = _Bytes(base64.b64decode(text["tensors"]))
    return unflatten(text["plain"], read_tensors(file))


class _Bytes(io.BytesIO):
    """Bytes in memory, read as a tensor file is."""

    @property
    def size(self) -> int:
        return len(self.getbuffer())

    def read_into(self, buffer: Any) -> None:
        """Fill a buffer."""
        self.readinto(buffer)
