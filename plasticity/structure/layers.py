"""The connections of a model as plain data: its weight layers, who consumes them, and where they can be observed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plasticity.isolation import named_modules, undisturbed

from .labels import Replay

CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

LAST_AXIS_NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Norms whose gains lie along the last axis; those of the others lie along axis 1."""


def neuron_axis(module: nn.Module) -> int | None:
    """Return the axis, counted from the end, along which a weight layer's neurons lie; None for other modules."""
    if isinstance(module, nn.Linear):
        return -1
    return next((-1 - dims for kind, dims in CONVOLUTIONS.items() if isinstance(module, kind)), None)


def by_neuron(tensor: Tensor, axis: int, columns: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """Return ``tensor`` as (samples, neurons): positions in time or space count as samples.

    ``columns`` (neurons, copies) picks where each neuron lies along ``axis``; copies count as samples too. ``mask``,
    bool: which positions to keep, where it fits (see :func:`fits`).
    """
    rows = tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])
    if mask is not None and fits(mask, tensor, axis):
        rows = rows[mask.flatten().to(rows.device)]
    if columns is None:
        return rows
    return rearrange(rows[:, columns.to(rows.device)], "rows neurons copies -> (rows copies) neurons")


def fits(mask: Tensor, tensor: Tensor, axis: int) -> bool:
    """Return whether ``mask`` has the shape of ``tensor`` without ``axis``, be it flattened."""
    positions = [size for d, size in enumerate(tensor.shape) if d != axis % tensor.dim()]
    return positions in ([*mask.shape], [mask.numel()])


def weight_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight-shaped tensor of a Linear or convolution as (neurons, inputs)."""
    if not getattr(module, "transposed", False):
        return weight.flatten(1)
    groups: int = module.groups  # type: ignore[assignment]
    return rearrange(weight, "(group inputs) neurons ... -> (group neurons) (inputs ...)", group=groups)


def current_weight(module: nn.Module) -> Tensor | None:
    """Return the weight that a layer computes with, also a parametrised one; None where it is no parameter."""
    if parametrize.is_parametrized(module, "weight"):
        with undisturbed(module, module), torch.no_grad():  # a parametrisation may draw numbers and change buffers
            return module.weight  # type: ignore[return-value]
    return module._parameters.get("weight")


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision sums overflow and round."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


@dataclass(frozen=True)
class Consumer:
    """A weight layer that receives the neurons of another."""

    layer: str
    columns: Tensor
    """(input features or channels of the consumer,) the index of the neuron each one carries, or -1."""
    summed: bool
    """Whether the columns carry a residual stream: other layers, or the input, are added in."""
    product: bool
    """Whether the columns carry the neurons multiplied with others: a gate."""


@dataclass(frozen=True)
class Norm:
    """A normalisation that the neurons of a layer pass through; ``entries`` is like :attr:`Consumer.columns`."""

    module: str
    entries: Tensor


@dataclass(frozen=True)
class Site:
    """Where the activations of one call of a layer can be observed: an input or output of some module."""

    module: str
    side: Literal["input", "output"]
    key: int | str
    """Position or name of the argument; position in the output, where that is a sequence."""
    call: int
    """Which call of that module in a forward pass, from 0."""
    axis: int
    size: int
    """The length of that axis when traced."""
    columns: Tensor | None = None
    replay: Replay = ()
    """Operations to repeat on it, where the model applies its activation out of every module's sight."""

    def read(self, tensor: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the activations in ``tensor`` as (samples, neurons)."""
        for step in self.replay:
            tensor = step(tensor)
        return by_neuron(tensor, self.axis, self.columns, mask)


@dataclass
class Layer:
    """One Linear or convolution and what becomes of its neurons (a neuron of a convolution is a channel)."""

    name: str
    module: nn.Module
    axis: int
    num_neurons: int
    num_calls: int = 0
    consumers: list[Consumer] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    sites: dict[int, Site] = field(default_factory=dict)
    """Call number -> where its activations are observed."""
    activation: str | None = None
    """The first non-linear operation on the neurons; None where there is none."""
    is_output: bool = False
    """Whether the neurons are what the model returns and no weight layer consumes them."""
    writes_to_stream: bool = False
    """Whether the neurons are added to something: then they have no columns of their own."""
    unresolved: list[str] = field(default_factory=list)
    """What could not be followed, in words."""

    @property
    def is_hidden(self) -> bool:
        """Whether the layer was called and is not an output layer."""
        return self.num_calls > 0 and not self.is_output

    @property
    def remarks(self) -> list[str]:
        """What is special about the layer, in words."""
        flags = {
            "never called": self.num_calls == 0,
            "output": self.is_output,
            "writes to a residual stream": self.writes_to_stream,
            f"called {self.num_calls} times": self.num_calls > 1,
        }
        return [text for text, holds in flags.items() if holds] + self.unresolved

    def note(self, text: str) -> None:
        """Add to :attr:`unresolved` what is not there yet."""
        if text not in self.unresolved:
            self.unresolved.append(text)


@dataclass
class Wiring:
    """The weight layers of a model by name, in the order in which they were first called."""

    layers: dict[str, Layer]
    modules: dict[str, nn.Module] = field(default_factory=dict, repr=False)
    """Every module of the model by name: where norms and tied weights are found."""

    @property
    def hidden(self) -> list[Layer]:
        """The layers whose neurons are hidden units."""
        return [layer for layer in self.layers.values() if layer.is_hidden]

    def fits(self, model: nn.Module) -> bool:
        """Return whether the model still consists of the modules that were traced: True if these are not known."""
        if not self.modules:
            return True
        found = named_modules(model)
        return found.keys() == self.modules.keys() and all(found[n] is m for n, m in self.modules.items())

    def producers(self, consumer: str) -> list[tuple[Layer, Consumer]]:
        """Return the layers that feed ``consumer``, with the columns they feed."""
        return [(p, c) for p in self.layers.values() for c in p.consumers if c.layer == consumer]

    def __str__(self) -> str:
        rows = [("layer", "neurons", "activation", "feeds", "remarks")]
        for layer in self.layers.values():
            feeds = ", ".join(dict.fromkeys(c.layer for c in layer.consumers)) or "-"
            remarks = "; ".join(layer.remarks)
            rows.append((layer.name, str(layer.num_neurons), layer.activation or "-", feeds, remarks))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
