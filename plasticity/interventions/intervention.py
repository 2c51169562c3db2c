"""The base of all interventions: presets, the choice of networks, a generator of their own, events, hooks."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from plasticity.callback import Callback, Context, name_of, note
from plasticity.isolation import copied, unwrap
from plasticity.surgery.function_change import change_of
from plasticity.value_types import require_types

from .stopwatch import Stopwatch, time_events

T = TypeVar("T")
SAMPLES = 64
"""Past transitions on which the change of the function is measured, where they can be looked at."""


class Listener:
    """The handle of a function that a context calls: it stands in one of its lists until :meth:`remove`."""

    def __init__(self, functions: list[Any], function: Callable[..., Any]) -> None:
        self._functions, self._function = functions, function
        functions.append(function)

    def remove(self) -> None:
        """Take the function out of the list."""
        self._functions[:] = [one for one in self._functions if one != self._function]


CLAIMED = {
    "set_noise": "the exploration noise, which drm leaves alone with noise=False (--drm.no-noise)",
    "set_exploitation": "the share of an expectile in targets, which drm leaves alone with exploitation=0",
    "set_replay_ratio": "the updates per environment step",
    "set_horizon": "the rewards summed before bootstrapping, and the discount",
    "newest": "the share of the newest transitions that are replayed",
}
"""Parts of a run that only one method can set, and how to leave some alone."""


class Claim:
    """The handle of a claim to a part of a run: it stands until :meth:`remove`."""

    def __init__(self, claims: dict[str, str], part: str, name: str) -> None:
        self._claims, self._part = claims, part
        claims[part] = name

    def remove(self) -> None:
        """Give the part back."""
        self._claims.pop(self._part, None)


@dataclass
class Intervention(Callback):
    """A callback written as a dataclass: its fields are its hyperparameters, hence its flags.

    A field that is None takes its value from ``PRESETS[preset]``. Random numbers come from a generator of the
    intervention's own, so that switching it on moves nobody else's.
    """

    NAME: ClassVar[str] = ""
    """The flag on the command line and the name of its events."""
    KIND: ClassVar[str] = "other"
    """The group in lists: reset, penalty, optimizer, architecture, topology, data, or a word of your own."""
    NEEDS: ClassVar[tuple[str, ...]] = ("networks", "optimizers")
    """Parts of a run that the method cannot do without, for lists and pages."""
    EAGER: ClassVar[str] = ""
    """The part of a compiled update that is eager because of the method; empty for none, but for a first pass."""
    STATE: ClassVar[tuple[str, ...]] = ()
    """Attributes that change in training and are saved and loaded as they are: numbers, text, flat dicts of them."""
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Preset -> values of the fields that are None."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        time_events(cls)

    def __post_init__(self) -> None:
        preset = getattr(self, "preset", None)
        if preset is not None and preset not in self.PRESETS:
            near = get_close_matches(str(preset), self.PRESETS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{type(self).__name__} has the presets {', '.join(self.PRESETS)}; got {preset!r}{hint}")
        for name, value in self.PRESETS.get(preset or "", {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        require_types(self, skip=["preset"])  # a subclass may have others
        self.counts: dict[str, int] = {}
        """Cumulative numbers of what was done, logged with every event."""
        self.stopwatch = Stopwatch()
        self._handles: list[Any] = []
        self._kept: dict[str, nn.Module] = {}
        # Not the seed itself: after torch.manual_seed(seed) a redraw would repeat the initial weights.
        self.generator = torch.Generator().manual_seed(zlib.crc32(f"{self.NAME}/{getattr(self, 'seed', 0)}".encode()))

    def choose(self, ctx: Context, networks: tuple[str, ...] = ()) -> dict[str, nn.Module]:
        """Return the run's networks whose names match the globs, all for an empty tuple; ValueError if none does."""
        ctx.require("networks", type(self).__name__)
        found = {n: net for n, net in ctx.networks.items() if not networks or any(fnmatchcase(n, g) for g in networks)}
        if not found:
            there, wanted = ", ".join(ctx.networks), ", ".join(networks)
            raise ValueError(f"{type(self).__name__} finds no network {wanted}; {ctx.name} has {there}")
        return found

    def hook(self, handle: Any) -> None:
        """Keep the handle of a hook, to be removed when training ends."""
        self._handles.append(handle)

    def claim(self, ctx: Context, part: str) -> None:
        """Be the one that sets a part of the run until training ends; ValueError where another method does."""
        if other := ctx.claims.get(part):
            raise ValueError(f"{name_of(self)} and {other} would both set {CLAIMED.get(part, part)}: use one of them")
        self.hook(Claim(ctx.claims, part, name_of(self)))

    def keep_copy(self, name: str, module: nn.Module) -> nn.Module:
        """Return a frozen copy of a module; its weights are saved and loaded with the state, under ``name``."""
        self._kept[name] = copied(module).requires_grad_(False)
        return self._kept[name]

    def on_train_end(self, ctx: Context) -> None:
        """Take every hook off, and log what the method has cost, unless training was cut and may go on."""
        if not ctx.interrupted:
            self.log(ctx, self.costs())
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def named(self, hook: Callable[..., T]) -> Callable[..., T]:
        """Return ``hook``, for an optimizer or a watcher to call: timed, and its errors bear the method's name."""

        @functools.wraps(hook)
        def call(*args: Any) -> T:
            try:
                with self.stopwatch:
                    return hook(*args)
            except Exception as error:
                note(error, f"raised by {name_of(self)}")
                raise

        return call

    def log(self, ctx: Context, values: Mapping[str, float]) -> None:
        """Log values by name under ``interventions/<name>/``."""
        ctx.log({f"interventions/{self.NAME}/{key}": value for key, value in values.items()})

    def costs(self) -> dict[str, float]:
        """Return what the method costs, for the log: ``seconds``, and ``parameters_added`` where there are some."""
        added = {"parameters_added": float(number)} if (number := self.parameters_added()) else {}
        return {**added, "seconds": self.seconds()}

    def report(self, ctx: Context, details: Mapping[str, Any], **counts: int) -> None:
        """Log an application: an event with details, cumulative counters ``interventions/<name>/<count>``, costs."""
        for key, count in counts.items():
            self.counts[key] = self.counts.get(key, 0) + count
        self.log(ctx, {**{key: float(self.counts[key]) for key in counts}, **self.costs()})
        ctx.event(self.NAME, {**details, **counts})

    def alter(self, ctx: Context, network: str, edit: Callable[[], T]) -> tuple[T, float]:
        """Edit a network; return what ``edit()`` returns, and the function change, which is logged.

        The change is ||after - before|| / ||before|| of the outputs on the same inputs, as
        ``interventions/<name>/<network>/function_change``; NaN, and not logged, where the network cannot be run yet.
        """
        model, run = unwrap(ctx.networks[network]), self.runner(ctx, network)
        if run is None:
            return edit(), math.nan
        result, moved = change_of(model, run, edit)
        self.log(ctx, {f"{network}/function_change": moved})
        return result, moved

    def runner(self, ctx: Context, network: str) -> Callable[[], Any] | None:
        """Return what runs a network on the inputs on which its change is measured; None where there are none."""
        run, model = ctx.forward.get(network), unwrap(ctx.networks[network])
        if run is None or ctx.peek is None:
            return None
        batch = ctx.peek(SAMPLES, self.generator)
        return functools.partial(run, model, batch)

    def seconds(self) -> float:
        """Return the wall-clock time spent in events and hooks since this process started the run."""
        return self.stopwatch.seconds

    def idle(self) -> str:
        """Return why the method has not acted in this run though it has a schedule; empty where it has acted."""
        return ""

    def parameters_added(self) -> int:
        """Return how many numbers the method adds to what is trained, or keeps beside it, now; 0 for none."""
        return numbers_in(self._kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state, counters, ``STATE`` and the modules that are kept; subclasses add theirs."""
        kept = {name: dict(module.state_dict()) for name, module in self._kept.items()}
        changing = {name: copy.copy(getattr(self, name)) for name in self.STATE}
        common = {"generator": self.generator.get_state(), "counts": dict(self.counts), **changing}
        return common | ({"kept": kept} if kept else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.generator.set_state(state["generator"])
        self.counts = dict(state["counts"])
        for name in self.STATE:
            setattr(self, name, copy.copy(state[name]))
        for name, weights in state.get("kept", {}).items():
            self._kept[name].load_state_dict(weights)

    def without_replaced(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a saved state without the kept copies of networks whose modules were replaced after the copy was made.

        For methods that begin anew with such a network: the copy made at the start of a resumed run is that beginning.
        """
        here = {name: shapes(module.state_dict()) for name, module in self._kept.items()}
        kept = {name: weights for name, weights in state.get("kept", {}).items() if shapes(weights) == here[name]}
        return {**state, "kept": kept}

    def settings(self) -> dict[str, Any]:
        """Return the resolved hyperparameters."""
        return dataclasses.asdict(self)


def never_acted(methods: Mapping[str, Callback]) -> dict[str, str]:
    """Return name -> why, of the methods that have not acted by their schedule or logged values."""
    mute = {name: one for name, one in methods.items() if isinstance(one, Intervention) and not one.counts}
    return {name: why for name, one in mute.items() if (why := one.idle())}


def shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shapes of tensors by name."""
    return {name: tensor.shape for name, tensor in weights.items()}


def numbers_in(kept: Any) -> int:
    """Return how many numbers the tensors and modules hold that stand in nested dicts and lists."""
    if isinstance(kept, Tensor):
        return kept.numel()
    if isinstance(kept, nn.Module):
        return sum(p.numel() for p in kept.parameters())
    if isinstance(kept, Mapping):
        return sum(map(numbers_in, kept.values()))
    return sum(map(numbers_in, kept)) if isinstance(kept, (list, tuple)) else 0
