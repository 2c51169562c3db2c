"""The base of methods that look at networks on their training passes: their watcher, and how an edit is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from plasticity.callback import Context
from plasticity.isolation import call_of, unwrap
from plasticity.monitor import Monitor
from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.watching import Watcher

from .intervention import Intervention


@dataclass
class Watches(Intervention):
    """A method that gets readings of the training passes, after every step of the optimizer or those that are due."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._watcher: Watcher | None = None
        self._networks: dict[str, nn.Module] = {}

    def watch(
        self,
        ctx: Context,
        probes: Mapping[str, Probe],
        take: Callable[[str, Reading, int], None],
        due: Callable[[str, int], bool] | None,
    ) -> None:
        """Start to watch the chosen networks, ``_networks``; ``take`` and ``due`` get (network, ..., step).

        ``due``: which steps are looked at; None for every one.
        """
        self._watcher = Watcher(
            self._networks,
            list(ctx.optimizers.values()),
            self.named(take),
            every=1,
            due=due,
            probes=probes,
            strict=True,
            read=self.named(Monitor.read),
            require=self.named(Monitor.require_readable),
            calls=ctx.calls,
            masks=ctx.masks,
            fused="whole",  # surgery knows layers, not parts of them
            processes="all",  # data-parallel replicas treat the same neurons
        )

    def monitor(self, network: str) -> Monitor:
        """Return the monitor that saw the last pass of a network."""
        assert self._watcher is not None
        return self._watcher.monitors[network]

    def runner(self, ctx: Context, network: str) -> Callable[[], Any]:
        """Return what runs a network on the inputs of its last pass."""
        monitor = self.monitor(network)
        args, kwargs = monitor.inputs or ((), {})
        return partial(call_of(unwrap(self._networks[network]), monitor.method), *args, **kwargs)

    def seconds(self) -> float:
        """Return the wall-clock time spent on watching and acting; that of a step that is not over counts later."""
        return 0.0 if self._watcher is None else self._watcher.total_seconds

    def on_train_end(self, ctx: Context) -> None:
        """Take every hook off."""
        super().on_train_end(ctx)
        if self._watcher is not None:
            self._watcher.close()
