"""Measure every so many optimizer steps of a training loop, on the loop's own passes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from numbers import Integral
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

from torch import Tensor, nn
from torch.optim import Optimizer

from .callback import Writer
from .monitor import Layers, Monitor
from .observing.losses import StrayPasses
from .observing.reading import Reading, Readings
from .probes import DEFAULT_PROBES, Probe
from .probes.network import LossAgain
from .structure.optimizers import innermost, trainer
from .tags import network_prefix, score_tag

if TYPE_CHECKING:
    from .writers.destinations import OpenLog


class Watcher:
    """Read a monitor per network after one optimizer step in ``every``; call ``on_reading(network, reading, step)``.

    The clock is the step count of the optimizer that trains the network, and the first step is measured; or ``due(
    network, step)``, asked once per network and step, in order, says which are. A reading is of ``window`` steps, the
    last of them the one after which it is due: activity is that of all their samples, gradients of weights are summed,
    ranks are of the last step alone. With ``window=every``, every step is measured. Between windows there are no hooks.

    What passes show counts once the network's own optimizer steps. When *another* optimizer steps before, it is
    replaced by what the next pass shows: the actor's loss also runs through the critic, and must not count as the
    critic's.

    ``calls``, ``masks``: network -> the methods by which it is called beside ``forward``, and its mask, both as in
    :class:`Monitor`. ``read``: how a monitor is read, for errors of a name. ``require``: called with each monitor after
    the first step of its network, which is looked at though it is not due, so that what cannot be read fails there.
    ``objectives``: network -> a function that computes the loss of its last step anew, for probes that need it.
    ``fused``: as in :class:`Monitor`. ``warn_stray``: warn of passes of other losses, see :class:`StrayPasses`.

    Raises ValueError for a network that none of the optimizers trains, for a compiled one, and for a window that is
    longer than ``every``, or longer than a step where ``due`` decides.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        on_reading: Callable[[str, Reading, int], None],
        *,
        every: int = 500,
        window: int = 1,
        due: Callable[[str, int], bool] | None = None,
        probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
        layers: Layers = None,
        strict: bool = False,
        processes: Literal["own", "all"] = "own",
        calls: Mapping[str, Sequence[str]] | None = None,
        masks: Mapping[str, Any] | None = None,
        read: Callable[[Monitor], Reading] = Monitor.read,
        require: Callable[[Monitor], None] | None = None,
        objectives: Mapping[str, LossAgain] | None = None,
        fused: Literal["parts", "whole"] = "parts",
        warn_stray: bool = False,
    ) -> None:
        self._read, self._require = read, require
        calls, masks = calls or {}, masks or {}
        for name, steps in (("every", every), ("window", window)):
            if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
                raise ValueError(f"{name} is a whole number of optimizer steps, at least 1; got {steps!r}")
        if window > (every if due is None else 1):
            longest = f"every, which is {every}" if due is None else "1, because the steps are not known in advance"
            raise ValueError(f"window is a number of optimizer steps, from 1 to {longest}; got {window}")
        self.on_reading, self.strict = on_reading, strict
        self.every, self.window, self._known = every, window, due is None
        self.due = due or (lambda network, step: (step - 1) % every == 0)
        self.monitors = {
            name: Monitor(
                network,
                probes,
                layers=layers,
                passes="training",
                strict=strict,
                deferred=True,
                processes=processes,
                calls=calls.get(name, ()),
                mask=masks.get(name),
                objective=(objectives or {}).get(name),
                fused=fused,
            )
            for name, network in networks.items()
        }
        self._seconds = 0.0
        self._closed: dict[str, Any] | None = None
        self._trained_by = {name: _trainer(name, network, optimizers) for name, network in networks.items()}
        self._steps = dict.fromkeys(map(id, optimizers), 0)
        self._warned: set[str] = set()
        self._stray = {
            name: StrayPasses(name, network, self._trained_by[name]) for name, network in networks.items() if warn_stray
        }
        self._handles = [optimizer.register_step_post_hook(self._after_step) for optimizer in optimizers]
        last_only = [[probe.last_step_only for probe in monitor.probes.values()] for monitor in self.monitors.values()]
        if any(map(all, last_only)):
            self.window = 1
        # The share of steps that are measured, and of those that are measured as a window's last one is: all monitors
        # have the same probes. 0 where `due` decides, which is not known.
        alone = any(map(any, last_only))
        self._shares = (self.window / every, (1 if alone else self.window) / every) if self._known else (0.0, 0.0)
        self._inner: dict[str, int] = {}
        """Network -> the step before its next window, or the last but one of it; nothing begins or ends before that."""
        for name, monitor in self.monitors.items():
            self._arm(name, monitor, 1)
        self._unchecked = {n: not m.attached for n, m in self.monitors.items()} if require is not None else {}
        """Network that no step was seen of -> whether its first step is looked at for that alone."""
        for name in self._unchecked:
            self._inner[name] = 0
            self.monitors[name].attach()

    def steps(self) -> list[int]:
        """Return how many steps each optimizer has made, in the order in which they were given."""
        return list(self._steps.values())

    @property
    def total_seconds(self) -> float:
        """Wall-clock time spent so far: in hooks, on taking in what was seen, and on readings that are done."""
        return self._seconds + sum(monitor.seconds for monitor in self.monitors.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the clocks, the networks that the next step measures, and the statistics gathered of them so far.

        Valid between two updates; after :meth:`close`, the state at its call.
        """
        if self._closed is not None:
            return self._closed
        armed = {n: m for n, m in self.monitors.items() if m.attached and not self._unchecked.get(n)}
        states = {name: (monitor.num_passes, monitor.state_dict()) for name, monitor in armed.items()}
        gathered = {name: state for name, (passes, state) in states.items() if passes or "before" in state}
        memory = {name: kept for name, monitor in self.monitors.items() if (kept := monitor.memory())}
        state = {"steps": self.steps(), "armed": list(armed), "gathered": gathered, "settings": self._settings()}
        ways = {name: found for name, monitor in self.monitors.items() if (found := monitor.ways())}
        return {**state, **({"memory": memory} if memory else {}), **({"ways": ways} if ways else {})}

    def settings(self) -> dict[str, Any]:
        """Return how the networks are measured, as plain data."""
        probes = {name: sorted(monitor.probes) for name, monitor in self.monitors.items()}
        return {"every": self.every, "window": self.window, "probes": probes}

    def _settings(self) -> list[Any]:
        """Return the settings that another run has to share to go on with what was gathered."""
        return [self.every, self.window, {name: list(monitor.probes) for name, monitor in self.monitors.items()}]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; with other probes, or other steps to measure, from its clocks alone."""
        self._steps, self._unchecked = dict(zip(self._steps, state["steps"], strict=True)), {}
        self._inner = {}
        same = state.get("settings", self._settings()) == self._settings()  # 0.1.0 did not save them
        for name, monitor in self.monitors.items():
            monitor.detach()
            monitor.reset()
            monitor.load_memory(state.get("memory", {}).get(name, ()))
            monitor.load_ways(state.get("ways", {}).get(name, {}))
            if not same:
                self._arm(name, monitor, self._steps[id(self._trained_by[name])] + 1)
            elif name in state["armed"]:
                monitor.attach()
                step = self._steps[id(self._trained_by[name])] + 1
                last = self.window == 1 or self.due(name, step)
                monitor.leave_out(not last)
                monitor.share = self._shares[last]
            if same and (gathered := state.get("gathered", {}).get(name)):  # runs of earlier versions gathered one step
                monitor.load_state_dict(gathered)

    def close(self) -> None:
        """Take every hook off; does nothing the second time."""
        if self._closed is None:
            self._closed = self.state_dict()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for monitor in self.monitors.values():
            monitor.detach()
        for stray in self._stray.values():
            stray.detach()

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        start = perf_counter()
        self._steps[id(optimizer)] += 1
        step = self._steps[id(optimizer)]
        for stray in self._stray.values():
            stray.step()
        for name, monitor in self.monitors.items():
            if self._trained_by[name] is not optimizer:
                monitor.mark_stale()
                continue
            if step < self._inner.get(name, 0):
                monitor.commit()
                continue
            if monitor.attached:
                monitor.commit()
                if self._check_first(name, monitor):
                    monitor.detach()
                elif self.window == 1 or self.due(name, step):
                    self._collect(name, monitor, step)
            self._arm(name, monitor, step + 1)
        self._seconds += perf_counter() - start

    def _check_first(self, name: str, monitor: Monitor) -> bool:
        """Require, after its first step, that a network can be read; return whether that was all to do."""
        alone = self._unchecked.pop(name, None)
        if alone is not None and self._require is not None:
            self._require(monitor)
        return bool(alone)

    def _arm(self, name: str, monitor: Monitor, step: int) -> None:
        """Prepare for a step."""
        if not self._known:
            gathers = last = self.due(name, step)
        else:
            remaining = -(step - 1) % self.every
            gathers, last = remaining < self.window, remaining == 0
            self._inner[name] = step + remaining - (1 if gathers else self.window)
        if gathers and not monitor.attached:
            monitor.reset()
            monitor.leave_out(not last)
            monitor.attach()
        elif gathers and last:
            monitor.leave_out(False)
        monitor.share = self._shares[last]

    def _collect(self, name: str, monitor: Monitor, step: int) -> None:
        monitor.detach()
        try:
            self.on_reading(name, self._read(monitor), step)
        except Exception as error:
            if self.strict and _has_gradients(self._trained_by[name]):
                raise
            if name not in self._warned:
                self._warned.add(name)
                message = f"{name} was not measured at optimizer step {step}: {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)


def _has_gradients(optimizer: Optimizer) -> bool:
    """Return whether anything was there to step with: Lightning steps, too, where a training step returned None."""
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _trainer(name: str, network: nn.Module, optimizers: Sequence[Optimizer]) -> Optimizer:
    """Return the optimizer that holds a parameter of ``network``; raise ValueError if none does."""
    found = trainer(network, optimizers)
    if found is None:
        raise ValueError(f"none of the {len(optimizers)} optimizers trains {name}; pass the one that holds its weights")
    return found


class Session:
    """A running :func:`watch`: its latest readings, and ``close()``; also a ``with`` block."""

    def __init__(self) -> None:
        self.last = Readings()
        """Network -> its latest reading."""
        self.every = 1
        """Optimizer steps over which :meth:`log` averages."""
        self._sums: dict[str, list[Any]] = {}
        self._logged_at = 0
        self.watcher: Watcher | None = None
        self._closed = False
        self._log: OpenLog | None = None

    def __repr__(self) -> str:
        networks = ", ".join(self.watcher.monitors) if self.watcher is not None else "nothing"
        state = "closed" if self._closed else f"every {self.every} optimizer steps"
        return f"<watching {networks}, {state}>"

    def __str__(self) -> str:
        return f"{self!r}\n{self.last}"

    def _repr_html_(self) -> str:
        """Return the latest readings for a notebook, with sparklines of all of them."""
        return f"<p>{escape(repr(self)[1:-1])}</p>{self.last._repr_html_()}"

    def _take(self, network: str, reading: Reading, step: int) -> None:
        self.last.note(network, reading)
        if self._log is not None:
            log_reading(self._log.writer, network, reading, step)

    def log(self, **values: Any) -> None:
        """Log numbers of the loop, ``log(loss=loss)``, as ``losses/<name>``: means over ``every`` optimizer steps.

        ``values``: numbers or tensors of one element, which stay on their device until they are written. Does nothing
        without a ``log`` to write to. Raises TypeError for anything else.
        """
        for name, value in values.items():
            if not (value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, SupportsFloat)):
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"session.log({name}=...) takes a number, or a tensor of one element; got {found}")
        if self._log is None or self.watcher is None or self._closed:
            return
        for name, value in values.items():
            self._sums.setdefault(name, []).append(value.detach() if isinstance(value, Tensor) else value)
        if max(self.watcher.steps()) - self._logged_at >= self.every:
            self._write_means()

    def _write_means(self) -> None:
        assert self._log is not None
        assert self.watcher is not None
        self._logged_at = max(self.watcher.steps())
        means = {f"losses/{name}": sum(map(float, values)) / len(values) for name, values in self._sums.items()}
        self._sums.clear()
        if means:
            self._log.writer.log(self._logged_at, means)

    def close(self) -> None:
        """Take every hook off and close the files of ``log``, not writers that were given; harmless if repeated.

        Warns where no step of any optimizer was seen.
        """
        if self.watcher is not None:
            if not (self._closed or any(self.watcher.steps())):
                warnings.warn(
                    "nothing was measured: no step of the optimizer given to watch() was seen. Give it the optimizer "
                    "whose step() the loop calls: that of another object, or of a wrapper, is not seen",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self.watcher.close()
            self._closed = True
        if self._log is not None:
            self._write_means()
            self._log.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._closed |= kind is not None  # a loop that raised has other worries
        self.close()


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int = 500,
    window: int = 1,
    probes: Mapping[str, Probe] | Sequence[str] = DEFAULT_PROBES,
    log: str | Path | Writer | Sequence[str | Path | Writer] | None = "runs/plasticity",
    layers: Layers = None,
    strict: bool = False,
    processes: Literal["own", "all"] = "own",
    calls: Mapping[str, Sequence[str]] | Sequence[str] = (),
    mask: Any = None,
    loss: LossAgain | Mapping[str, LossAgain] | None = None,
) -> Session:
    """Measure ``model`` in your own training loop, once in ``every`` optimizer steps, and write what is seen.

    Goes before the loop, which stays as it is. The probes see the loop's own forward and backward passes between two
    steps of the optimizer; a pass counts when its gradient arrives. Several networks: pass a mapping by name, and every
    optimizer there is. ``window``: over how many steps a reading is taken (see :class:`Watcher`); with ``window=every``
    every step is measured. ``log``: the folder for TensorBoard and JSON lines, the next free name where it holds a run;
    a writer of your own, which stays open; or several of these. None writes nothing. ``processes``: under
    ``DistributedDataParallel``, ``"own"`` measures this process's share, in one process or in several with a ``log``
    each; ``"all"``, given in every process, the whole batch. ``calls``: methods by which the loop calls the model
    beside ``forward``, ``("evaluate_actions",)``; ``mask``: the tokens that count, a tensor or a function of the
    arguments of a pass (see :class:`Monitor`). ``loss``: computes the loss of the last batch anew, such as ``lambda:
    loss_fn(model(inputs), targets)`` of the loop's own variables, for probes of the loss' curvature. These also by
    network, ``{"policy": ("evaluate_actions",)}``. Costs nothing between windows.

    Warns, once, of passes of several losses between two steps of an optimizer (:class:`StrayPasses`). Raises TypeError
    for a ``model`` that is neither network nor mapping, a ``log`` that is neither folder nor writer, and an
    ``optimizer`` that is none (the one inside a wrapper is used).
    """
    if log is not None:
        from .writers.destinations import OpenLog, require_destinations

        require_destinations(log)
    networks = _networks(model)
    optimizers = _optimizers(optimizer)
    session = Session()
    session.every = every
    session.watcher = Watcher(
        networks,
        optimizers,
        session._take,
        every=every,
        window=window,
        probes=probes,
        layers=layers,
        strict=strict,
        processes=processes,
        calls=_given("calls", calls or None, networks),
        masks=_given("mask", mask, networks),
        objectives=_given("loss", loss, networks),
        warn_stray=True,
    )
    if log is not None:  # only now: refused arguments leave no folder behind
        session._log = OpenLog(log, {"watch": session.watcher.settings()})
    return session


def _networks(model: Any) -> dict[str, nn.Module]:
    """Return the networks by name; TypeError for anything else, such as a list, which has no names."""
    if isinstance(model, nn.Module):
        return {"model": model}
    networks = dict(model) if isinstance(model, Mapping) else {}
    if networks and all(isinstance(network, nn.Module) for network in networks.values()):
        return networks
    found = type(model).__name__
    if isinstance(model, Mapping):
        wrong = {name: type(n).__name__ for name, n in networks.items() if not isinstance(n, nn.Module)}
        found = (
            f"a mapping with {', '.join(f'{n}: {kind}' for n, kind in wrong.items())}" if wrong else "an empty mapping"
        )
    raise TypeError(
        "watch() needs a network, or a mapping of networks by name, such as watch({'actor': actor, 'critic': critic}, "
        f"optimizers); got {found}"
    )


def _optimizers(given: Any) -> list[Optimizer]:
    """Return the optimizers among what was given; that of a wrapper is the one it holds as ``optimizer``."""
    if isinstance(given, Optimizer) or isinstance(getattr(given, "optimizer", None), Optimizer):
        return [innermost(given)]
    if isinstance(given, Iterable) and not isinstance(given, Tensor | str):
        return [optimizer for one in given for optimizer in _optimizers(one)]
    raise TypeError(f"watch() needs an optimizer, or a sequence of them; got {type(given).__name__}")


def _given(option: str, value: Any, networks: Mapping[str, nn.Module]) -> Mapping[str, Any]:
    """Return an option by network: a value for one network, or for all, need not name them; ValueError for others."""
    if not isinstance(value, Mapping):
        return {} if value is None else dict.fromkeys(networks, value)
    if len(value) == len(networks) == 1:
        return dict(zip(networks, value.values(), strict=True))
    if unknown := value.keys() - networks.keys():
        raise ValueError(f"{option} names {', '.join(sorted(unknown))}; the networks are {', '.join(networks)}")
    return value


def log_reading(writer: Writer, network: str, reading: Reading, step: int) -> None:
    """Write a reading's values as scalars and its scores as histograms."""
    writer.log(step, reading.flat(network_prefix(network)))
    for probe, by_layer in reading.scores.items():
        for layer, scores in by_layer.items():
            writer.histogram(step, score_tag(network, probe, layer), scores.tolist())
