"""Attach probes to a model's layers for as long as a ``with`` block lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from .isolation import is_compiled, named_modules, unwrap
from .observing.again import NetworkReadings
from .observing.distributed import Processes, ProcessesError, process_group
from .observing.entry_points import require_methods
from .observing.gathering import Gathering
from .observing.guide import Guide
from .observing.hooks import IN_TRANSFORM
from .observing.observer import Observer
from .observing.passes import Mask
from .observing.reading import Coverage, Reading
from .probes import DEFAULT_PROBES, Probe, make_probes
from .probes.network import Again, LossAgain, NetworkProbe
from .structure.functional import slices_of
from .structure.layers import Layer, weight_layers_of
from .structure.recycled import last_recycled
from .structure.wirings import Wiring

UNITS = "units"
Layers = Sequence[str] | Literal["units"] | None
"""The layers to measure: globs of names, the layers of hidden units, or None for every hidden layer."""
COMPILED = (
    "Monitor cannot see inside a compiled model: hooks added after compilation never run. Call the eager module for "
    "the steps to be measured, or use plasticity.measure(model, batch), which does."
)


class Monitor:
    """Measure a model while the ``with`` block runs it.

    ``probes``: name -> probe, or names from ``PROBES``; each layer gets its own copies. ``layers``: globs of layer
    names (default: every hidden layer; output layers only when named). ``passes``: ``"all"`` counts every forward pass;
    ``"training"`` counts a pass once its gradient arrives, so acting, target and evaluation passes are left out.
    A pass that raises does not count. ``wiring``: of the model, if known; otherwise the first pass is traced, and each
    that goes another way. ``mask``: bool tensor of the leading shape of the layers' outputs, False for padded tokens,
    or a function that returns it for the arguments of a pass; may be set between passes. ``calls``: methods by which
    training calls the model beside ``forward``, such as ``("evaluate_actions",)``. ``strict``: raise when a probe fails
    instead of warning once and going on without it. ``deferred``: what passes show counts from :meth:`commit` on.
    ``owner``: whose private passes count too (see ``isolation``). ``objective``: computes the loss of the last pass
    anew, or its parts by name, for network probes that need it. ``fused``: projections whose neurons go apart at once,
    as queries, keys and values of one weight do, are read in ``"parts"``, ``qkv_proj.0`` and so on, or as a
    ``"whole"``.

    ``processes``: of a model in ``DistributedDataParallel``. ``"own"`` measures this process's share of the batch.
    ``"all"``, to be given in all processes, adds up their sums: activity and gradient scores are then those of the
    whole batch (ranks are of each process's own share).

    Raises ValueError for a compiled model, whose hooks would silently never fire (one wrapped by ``torch.compile`` may
    be given with ``passes="all"``: then it is the eager module inside that has to be called), and for globs that match
    no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        *,
        layers: Layers = None,
        passes: Literal["all", "training"] = "all",
        wiring: Wiring | None = None,
        mask: Mask = None,
        calls: Sequence[str] = (),
        strict: bool = False,
        deferred: bool = False,
        owner: object | None = None,
        processes: Literal["own", "all"] = "own",
        objective: LossAgain | None = None,
        fused: Literal["parts", "whole"] = "parts",
    ) -> None:
        if processes not in ("own", "all"):
            raise ValueError(f"processes is 'own' or 'all', got {processes!r}")
        if passes not in ("all", "training"):
            raise ValueError(f"passes is 'all' or 'training', got {passes!r}")
        self.model, group = unwrap(model), process_group(model)
        self._processes = Processes(group) if group is not None and processes == "all" else None
        self.probes = make_probes(probes)
        self.layers, self.passes, self.strict, self.fused = layers, passes, strict, fused
        self._compiled = is_compiled(model)
        if owner is None and (is_compiled(self.model) or (self._compiled and passes == "training")):
            raise ValueError(COMPILED)
        self._check_globs()
        self._guide = Guide(self.model, wiring, self.selected, strict)
        of_networks = {name: probe for name, probe in self.probes.items() if isinstance(probe, NetworkProbe)}
        of_layers = {name: probe for name, probe in self.probes.items() if name not in of_networks}
        self._network_readings, self.objective = NetworkReadings(of_networks, strict), objective
        gathering = Gathering(of_layers, strict, deferred, partial(last_recycled, self.model))
        self._observer = Observer(self.model, gathering, passes, owner, self._guide)
        self._gathering, self._intake = gathering, self._observer.intake
        self.mask, self._observer.calls = mask, require_methods(self.model, calls)

    def _check_globs(self) -> None:
        if isinstance(self.layers, str):
            if self.layers != UNITS:
                raise ValueError(f"layers is a list of globs, or {UNITS!r}; got the text {self.layers!r}")
            return
        modules = named_modules(self.model)
        names = [*weight_layers_of(modules), *slices_of(modules)]
        whole = [glob.rpartition(".")[0] for glob in self.layers or () if glob.rpartition(".")[2].isdecimal()]
        of_parts = any(fnmatchcase(name, glob) for name in names for glob in whole)  # that it has parts, a pass tells
        if self.layers is not None and not of_parts and not any(self._matches(name) for name in names):
            raise ValueError(f"no layer matches {', '.join(self.layers)}; there are {', '.join(names)}")

    # -- life ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Monitor:
        return self.attach()

    def __exit__(self, *exc: object) -> None:
        self.detach()

    @property
    def wiring(self) -> Wiring | None:
        """The wiring of the model, as far as the passes of the block showed it; None before the first."""
        return self._guide.wiring

    @property
    def attached(self) -> bool:
        """True if hooks are on the model."""
        return self._observer.attached

    @property
    def num_passes(self) -> int:
        """How many passes were counted since the last :meth:`reset`."""
        return self._observer.gathering.num_passes

    @property
    def seconds(self) -> float:
        """Wall-clock time spent in hooks and on taking in what they saw."""
        return self._observer.seconds + self._observer.intake.seconds

    @property
    def share(self) -> float:
        """Share of the training steps, in [0, 1], that are measured; high ones get a compiled graph of their own."""
        return self._observer.share

    @share.setter
    def share(self, share: float) -> None:
        self._observer.share = share

    @property
    def inputs(self) -> tuple[tuple, dict] | None:
        """The positional and named arguments of the last pass that counted, detached."""
        return self._observer.intake.inputs

    @property
    def method(self) -> str:
        """The method by which the last pass that counted called the model."""
        return self._observer.intake.method

    @property
    def mask(self) -> Mask:
        """The tokens that count: a bool tensor of the leading shape of the layers' outputs, or a function."""
        return self._observer.mask

    @mask.setter
    def mask(self, mask: Mask) -> None:
        rode = self._observer.can_ride
        self._observer.mask, self._observer.intake.mask_fitted = mask, False
        if self.attached and self._observer.can_ride != rode:  # hooks are looked at anew only when they are new
            self.detach()
            self.attach()

    def attach(self) -> Monitor:
        """Put the hooks on; does nothing if they are. What was gathered before stays."""
        if not self.attached:
            self._guide.error = None
            self._observer.attach()
        return self

    def detach(self) -> None:
        """Take every hook off; does nothing if none are on. What was gathered stays readable."""
        self._observer.detach()

    def reset(self) -> None:
        """Forget everything gathered."""
        self._observer.intake.reset()

    def mark_stale(self) -> None:
        """Let the next pass that counts replace what is pending, if ``deferred``: it belongs to another loss."""
        self._observer.intake.stale = True

    def commit(self) -> None:
        """Take in what passes showed since the last time, if ``deferred``."""
        if self._intake.unfinished:
            self._intake.flush()
        if self._gathering.pending:
            self._gathering.commit()

    def leave_out(self, last_step_only: bool) -> None:
        """Leave out, or take in again, the probes that look at a window's last step only."""
        if self._observer.gathering.leave_out(last_step_only) and self.attached:
            self.detach()
            self.attach()

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered."""
        self._observer.intake.flush()
        return self._observer.gathering.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._observer.gathering.load_state_dict(state, self._device())

    def ways(self) -> dict[str, Any]:
        """Return the ways that passes took through the model, as plain data."""
        return self._guide.state_dict()

    def load_ways(self, state: Mapping[str, Any]) -> None:
        """Know the ways of the run that is resumed, :meth:`ways`, and with them every consumer of each layer."""
        self._guide.load_state_dict(state)

    def memory(self) -> list[list[Any]]:
        """Return what probes remember of earlier readings."""
        return self._observer.gathering.remembered()

    def load_memory(self, state: Sequence[Sequence[Any]]) -> None:
        """Go on from :meth:`memory`."""
        self._observer.gathering.remember(state, self._device())

    def _device(self) -> torch.device | None:
        return next((p.device for p in self.model.parameters()), None)

    # -- results -------------------------------------------------------------------------------------------------------

    def selected(self, wired: Wiring) -> list[Layer]:
        """Return the layers to measure: the hidden ones, or those whose names match the globs."""
        if self.layers == UNITS:
            return [layer for layer in wired.hidden if layer.has_units]
        chosen = wired.hidden if self.layers is None else list(wired.layers.values())
        found = []
        for layer in chosen:
            parts = layer.parts if self.fused == "parts" else []
            if self.layers is None or self._matches(layer.name):
                found += parts or [layer]
            else:
                found += [part for part in parts if self._matches(part.name)]
        return found

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, glob) for glob in self.layers or ())

    def require_readable(self) -> None:
        """Raise RuntimeError if what was called so far shows that nothing can be read: see :meth:`read`."""
        if self._guide.error or (not self.num_passes and self._observer.cannot_read):
            raise RuntimeError(f"no data: {self._guide.error or self._why_nothing()}")

    def read(self) -> Reading:
        """Return what was measured since the last :meth:`reset`; raise RuntimeError if nothing was."""
        self._observer.intake.flush()
        if self._guide.error or self.wiring is None or not self.num_passes:
            raise RuntimeError(f"no data: {self._guide.error or self._why_nothing()}")
        shape = self._observer.intake.mask_shape
        if self.mask is not None and shape is not None and not self._observer.intake.mask_fitted:
            raise ValueError(f"the mask of shape {tuple(shape)} does not have the leading shape of any layer's output")
        layers = self.selected(self.wiring)
        try:
            reading = self._observer.gathering.reading(self.wiring, layers, self._processes)
        except ProcessesError:
            self._processes = None  # the others are not there: waiting for them again would cost minutes
            raise
        if self._network_readings.probes:
            args, kwargs = self.inputs or ((), {})
            self._network_readings.add_to(reading, Again(self.model, args, kwargs, self.method, self.objective))
        return reading

    def coverage(self) -> list[Coverage]:
        """Return, for every weight layer and probe, whether there is a value and if not, why."""
        return self.read().coverage

    def _why_nothing(self) -> str:
        if self._compiled:
            return f"a compiled model runs without hooks. {COMPILED}"
        if self._observer.mask_error:
            return f"the mask of no pass could be found: {self._observer.mask_error}"
        if methods := self._observer.strays:
            how = "its call" if "forward" in methods else "forward"
            return (
                f"training called {type(self.model).__name__} by {', '.join(methods)} and not by {how}; "
                f"pass calls={tuple(methods)!r}"
            )
        if parts := self._observer.stray_parts:
            return (
                f"training called parts of {type(self.model).__name__} ({', '.join(parts)}) and never the whole; "
                "let a method of it call them, and pass calls= with its name"
            )
        if self._observer.was_hidden:
            return f"every pass ran {IN_TRANSFORM}; run those to be measured outside"
        if self.passes == "training":
            return (
                "no forward pass with gradients enabled was followed by a backward pass while attached; a function "
                "that was compiled and run before calls the model without hooks: call it without torch.compile"
            )
        return f"{type(self.model).__name__} was not called while attached; monitor the module whose forward is called"
