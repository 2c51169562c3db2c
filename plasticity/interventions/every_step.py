"""The base of methods that act in every step of an optimizer: their networks, their clock, and what they log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules, unwrap
from plasticity.structure.layers import weight_layers_of
from plasticity.value_types import require

from .intervention import Intervention


@dataclass
class EveryStep(Intervention):
    """A method that acts in every step; :meth:`attach` puts it on one network, :meth:`measured` says what to log."""

    STATE: ClassVar[tuple[str, ...]] = ("updates",)

    networks: tuple[str, ...] = ()
    """Names or globs of the networks to act on; empty for all."""
    log_every: int = 1000
    """Updates between two logs of what the method does; 0 for never."""
    seed: int = 0
    """Seed of the method's own random numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(type(self).__name__, {"log_every >= 0": self.log_every >= 0, **self.rules()}, self)
        self.updates = 0
        self.chosen: dict[str, nn.Module] = {}
        """Network -> the module on which the method acts."""
        self.calls: Mapping[str, Sequence[str]] = {}
        """Network -> methods by which it is called, beside ``forward``."""

    def rules(self) -> dict[str, bool]:
        """Return rules that the settings must keep, and whether they do; a subclass says its own."""
        return {}

    def on_train_start(self, ctx: Context) -> None:
        """Attach the method to every network; ValueError for what is missing, or a network that no optimizer trains."""
        self.updates, self.calls = 0, ctx.calls
        self.chosen = {name: unwrap(network) for name, network in self.choose(ctx, self.networks).items()}
        for need in self.NEEDS:
            ctx.require(need, type(self).__name__)
        for name, network in self.chosen.items():
            ctx.optimizer_of(name)
            self.attach(ctx, name, network)

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Put the method on one network."""
        raise NotImplementedError

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Count the update, and now and then log what the method does."""
        self.updates += 1
        if self.log_every and self.updates % self.log_every == 0:
            self.log(ctx, {**self.measured(metrics), **self.costs()})

    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return what to log by name, given the metrics of an update."""
        return {}


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the weight layers of a network by name: Linear layers and convolutions."""
    return weight_layers_of(named_modules(network))


def copy_into_(kept: dict[str, Any], saved: dict[str, Any]) -> None:
    """Copy saved tensors into those of the same place, in nested dicts: graphs that read them stay right.

    Places are those that were saved: a layer that a network got later, or lost, has none or keeps what it had.
    """
    for key in [key for key in kept if key not in saved]:
        del kept[key]
    for key, value in saved.items():
        if isinstance(value, dict):
            copy_into_(kept.setdefault(key, {}), value)
        elif key in kept:
            kept[key].copy_(value)
        else:
            kept[key] = value.clone()
