"""Probes and interventions as guests of a training loop of another package: what its callbacks share."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .callback import Callback, Context, Writer, end, fire, name_of, start
from .isolation import is_compiled
from .measuring import Measure
from .storage.nested import flatten, unflatten
from .storage.tensorfile import read_tensors, write_tensors
from .writers.destinations import OpenLog, require_destinations

Log = str | Path | Writer | Sequence[str | Path | Writer] | None
"""Destinations of what is logged beside the loop's own: as in :func:`plasticity.watch`."""


class Guest:
    """Run a measurement and interventions in a loop that calls :meth:`begin`, the updates, and :meth:`end`.

    Raises TypeError for a ``log`` that is neither folder nor writer.
    """

    def __init__(self, measure: Measure | None, interventions: Sequence[Callback], log: Log) -> None:
        self.measure = measure
        self.callbacks: list[Callback] = [*([] if measure is None else [measure]), *interventions]
        if log is not None:
            require_destinations(log)
        self._log_to: list[Any] = [] if log is None else [log] if isinstance(log, (str, Path, Writer)) else list(log)
        self.ctx: Context | None = None
        self._log: OpenLog | None = None

    @property
    def last(self) -> dict[str, Any]:
        """The latest reading of every network."""
        return {} if self.measure is None else self.measure.last

    def begin(self, ctx: Context, host: Writer, state: Mapping[str, Any] | None = None) -> None:
        """Start everything; ``host`` writes to the loop's own log, ``state`` is that of the run that goes on.

        Raises ValueError for compiled networks, for methods that replace modules, and where a method lacks something.
        """
        require_eager(ctx)
        require_unstructured(self.callbacks, ctx)
        log = OpenLog([host, *self._log_to])
        ctx.writer = log.writer
        try:
            start(self.callbacks, ctx, [None if state is None else state.get(name) for name in self._named()])
        except BaseException:
            log.close()
            raise
        ctx.writer.settings(self.settings())
        self._log, self.ctx = log, ctx

    def settings(self) -> dict[str, Any]:
        """Return how networks are measured, and the hyperparameters of the interventions."""
        watcher = None if self.measure is None else self.measure.watcher
        found = {} if watcher is None else {"watch": watcher.settings()}
        return found | {n: c.settings() for n, c in self._named().items() if hasattr(c, "settings")}

    def begin_update(self, step: int) -> None:
        """Say that the update begins after which the loop will count ``step``."""
        if self.ctx is not None:
            self.ctx.step = step
            fire(self.callbacks, "on_update_start", self.ctx)

    def end_update(self) -> None:
        """Say that it is over."""
        if self.ctx is not None:
            fire(self.callbacks, "on_update_end", self.ctx, {})
            fire(self.callbacks, "on_step_end", self.ctx)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback by name."""
        return {name: callback.state_dict() for name, callback in self._named().items()}

    def num_steps(self) -> int:
        """Return how many steps of the optimizers were seen in this run."""
        watcher = None if self.measure is None else self.measure.watcher
        return 0 if watcher is None else max(watcher.steps(), default=0)

    def end(self) -> None:
        """Take everything off, and close the files of ``log``; more than once is fine."""
        ctx, self.ctx = self.ctx, None
        if ctx is not None:
            end(self.callbacks, ctx)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _named(self) -> dict[str, Callback]:
        """Return the callbacks by name, with a number where several have one."""
        found: dict[str, Callback] = {}
        for callback in self.callbacks:
            name, number = name_of(callback), 1
            while (key := name if number == 1 else f"{name} {number}") in found:
                number += 1
            found[key] = callback
        return found


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
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is a number of steps, at least 1; got {value!r}")


def require_eager(ctx: Context) -> None:
    """Raise ValueError for a compiled network: neither its passes are seen nor its modules edited."""
    for name, network in (*ctx.networks.items(), *ctx.targets.items()):
        if is_compiled(network):
            raise ValueError(
                f"the network {name} of {ctx.name} is compiled, and hooks added after torch.compile never run: train "
                f"without torch.compile while plasticity looks on, or put the module that was compiled back "
                f"(compiled._orig_mod)"
            )


def require_unstructured(callbacks: Iterable[Callback], ctx: Context) -> None:
    """Raise ValueError for a method that replaces modules: the loop has made its optimizer, and loaded its weights."""
    for callback in callbacks:
        if type(callback).restructure is not Callback.restructure:
            raise ValueError(
                f"{name_of(callback)} replaces modules of the network, but {ctx.name} holds its optimizer and saves "
                f"the model as it was: use a method that edits weights in place, such as ReDo, Reset, ShrinkPerturb"
            )


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
