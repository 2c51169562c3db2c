"""Weight layers as plain data: their neurons, the layers that consume them, and the norms that they pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils import parametrize

from plasticity.isolation import undisturbed

from .sites import Site
from .slices import Slice

CONVOLUTIONS: dict[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
SIZES = ("out_features", "out_channels", "nf")
"""Attributes that hold the number of neurons of a layer, of which each kind of layer has one."""
WIDE = (torch.float32, torch.float64)
"""The dtypes in which values are taken as they are."""
NORM_MODULES = (
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

RETURNED = "its neurons are returned to the caller, who may use them"
"""The remark on a layer that is consumed and returned."""


class Untraced(nn.Module):
    """A module into which traces do not look: its output is that of its first input, with something added aside.

    Its method keeps it in step with edits of what feeds it.
    """


LAST_AXIS_NORMS = (nn.LayerNorm, nn.RMSNorm)
"""Norms whose gains lie along the last axis; those of the others lie along axis 1."""


def neuron_axis(module: nn.Module) -> int | None:
    """Return the axis, counted from the end, along which a weight layer's neurons lie; None for other modules."""
    if isinstance(module, (nn.Linear, Slice)) or is_conv1d(module):
        return -1
    return next((-1 - dims for kind, dims in CONVOLUTIONS.items() if isinstance(module, kind)), None)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is GPT-2's Conv1D: a Linear whose weight is (inputs, neurons)."""
    if type(module).__name__ != "Conv1D":
        return False
    weight, size = module._parameters.get("weight"), getattr(module, "nf", None)
    return weight is not None and weight.dim() == 2 and weight.shape[1] == size


def inputs_first(module: nn.Module) -> bool:
    """Return whether the first axis of a layer's weight are its inputs, and the second its neurons."""
    if isinstance(module, Slice):
        return module.neurons_last
    return bool(getattr(module, "transposed", False)) or is_conv1d(module)


def num_neurons(module: nn.Module) -> int:
    """Return the number of neurons of a weight layer: output features or channels."""
    own = map(vars(module).get, SIZES)  # first: a module takes long to say that it lacks an attribute
    return int(next(filter(None, own), 0) or next(filter(None, (getattr(module, name, 0) for name in SIZES)), 0))


def num_inputs(module: nn.Module) -> int:
    """Return the number of inputs of a weight layer: features or channels."""
    if is_conv1d(module):
        return module._parameters["weight"].shape[0]  # type: ignore[union-attr]
    return int(getattr(module, "in_features", 0) or getattr(module, "in_channels", 0))


def adapted(module: nn.Module) -> nn.Module | None:
    """Return the layer inside an adapter (LoRA and others of peft), whose neurons are those of base and adapter."""
    base = getattr(module, "base_layer", None)
    while isinstance(base, nn.Module) and neuron_axis(base) is None:
        base = getattr(base, "base_layer", None)
    return base if isinstance(base, nn.Module) else None


def weight_layers_of(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the weight layers among modules by name; an adapter stands for the layer inside it, and for its parts."""
    found: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in modules.items():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if base := adapted(module):
            found[name] = base
            inside.append(f"{name}.".removeprefix("."))
        elif neuron_axis(module) is not None:
            found[name] = module
    return found


def weight_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight-shaped tensor of a Linear or convolution as (neurons, inputs)."""
    if not inputs_first(module):
        return weight.flatten(1)
    groups = int(getattr(module, "groups", 1))
    return rearrange(weight, "(group inputs) neurons ... -> (group neurons) (inputs ...)", group=groups)


def by_group(module: nn.Module, weight: Tensor) -> Tensor:
    """View a tensor of the weight's shape as (groups, neurons of the group, inputs of the group, *kernel)."""
    grouped = weight.unflatten(0, (getattr(module, "groups", 1), -1))
    return grouped.transpose(1, 2) if inputs_first(module) else grouped


def spread(view: Tensor, vector: Tensor, dim: int) -> Tensor:
    """Spread a vector over the groups and dimension ``dim`` of a view by groups, so that it broadcasts."""
    shape = [len(view)] + [1] * (view.dim() - 1)
    shape[dim] = view.shape[dim]
    return vector.to(view.device).view(shape)


def current_weight(module: nn.Module) -> Tensor | None:
    """Return the weight that a layer computes with, also a parametrised one; None where it is no parameter."""
    if isinstance(module, Slice):
        return module.weight
    if parametrize.is_parametrized(module, "weight"):
        with undisturbed(module, module), torch.no_grad():  # a parametrisation may draw numbers and change buffers
            return module.weight  # type: ignore[return-value]
    return module._parameters.get("weight")


def weight_parameter(module: nn.Module) -> Tensor | None:
    """Return the parameter that holds the weight of a layer, maybe among others; None where it is computed."""
    return module.parameter if isinstance(module, Slice) else module._parameters.get("weight")


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or better: half-precision sums overflow and round; of complex ones the magnitude."""
    if tensor.is_complex():
        tensor = tensor.abs()
    return tensor if tensor.dtype in WIDE else tensor.float()


@dataclass(frozen=True)
class Consumer:
    """A weight layer that receives the neurons of another."""

    layer: str
    columns: Tensor
    """(input features or channels of the consumer,) the index of the neuron each one carries, or -1."""
    summed: bool
    """True if the columns carry a residual stream: other layers, or the input, are added in."""
    product: bool
    """True if the columns carry the neurons multiplied with others: a gate."""
    joined: bool = False
    """True if the columns carry the neurons added to those of other layers before one activation."""

    def same_as(self, other: Consumer) -> bool:
        """Return whether both say the same."""
        flags = ("layer", "summed", "product", "joined")
        alike = all(getattr(self, flag) == getattr(other, flag) for flag in flags)
        return alike and torch.equal(self.columns, other.columns)

    def shares(self, other: Consumer) -> bool:
        """Return whether both carry parts of the same units: factors of a product, or summands."""
        return (self.product and other.product) or (self.joined and other.joined)


@dataclass(frozen=True)
class Norm:
    """A normalisation that the neurons of a layer pass through; ``entries`` is like :attr:`Consumer.columns`."""

    module: str
    entries: Tensor
    before: bool = False
    """True if it stands before the neurons' activation."""


@dataclass
class Layer:
    """One Linear or convolution and what becomes of its neurons (a neuron of a convolution is a channel)."""

    name: str
    module: nn.Module
    axis: int
    num_neurons: int
    adapter: bool = False
    """True if an adapter (LoRA) around the module adds to its neurons."""
    num_calls: int = 0
    """Calls in one pass; the most of all passes that were traced."""
    consumers: list[Consumer] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    """Where its activations are observed: in a single pass, one site per call."""
    inputs: list[Site] = field(default_factory=list)
    """Where the input of its activation is observed: its own output, or what comes out of the last norm before."""
    own: Site | None = None
    """Where the layer's own output is observed; None where it was not called."""
    activation: str | None = None
    """The first non-linear operation on the neurons; None where there is none."""
    gated: bool = False
    """True if its neurons are factors of gated units (SwiGLU, GLU), and observed as these products."""
    condensed: bool = False
    """True if its activations are observed only after samples were added up, pooled or left out, or values changed."""
    is_output: bool = False
    """True if the neurons are what the model returns and nothing else consumes them."""
    writes_to_stream: bool = False
    """True if the neurons are added to something: then they have no columns of their own."""
    borrowed_by: str = ""
    """The operation outside of the layer that takes its weights, too, as the decoder of a tied autoencoder does."""
    besides: str = ""
    """Another parameter that it computes with, or a change of its weight, in words."""
    unresolved: list[str] = field(default_factory=list)
    """Operations that could not be followed, in words."""
    parts: list[Layer] = field(default_factory=list)
    """Of a fused projection, such as queries, keys and values from one weight: each part as a layer to read."""
    rows: Tensor | None = None
    """The neurons of the module that are those of this part; None for all."""

    @property
    def is_hidden(self) -> bool:
        """True if the layer was called and is not an output layer."""
        return self.num_calls > 0 and not self.is_output

    @property
    def has_units(self) -> bool:
        """True if its neurons are hidden units: behind an activation, or factors of gated units."""
        return self.activation is not None or self.gated

    def of_weight(self, weight: Tensor) -> Tensor:
        """Return a tensor of the shape of the module's weight as (neurons, inputs)."""
        if isinstance(self.module, Slice) and weight.dim() == 3:
            weight = weight[self.module.index]
        rows = weight_rows(self.module, weight)
        return rows if self.rows is None else rows[self.rows.to(rows.device)]

    def divided(self, divisions: list[Tensor]) -> list[Layer]:
        """Return a layer for each part of the neurons, named by its place in their order."""
        return [self._part(index, rows) for index, rows in enumerate(divisions)]

    def _part(self, index: int, rows: Tensor) -> Layer:
        def narrowed(site: Site) -> Site:
            return replace(site, columns=rows[:, None])

        return replace(
            self,
            name=f"{self.name}.{index}",
            num_neurons=len(rows),
            rows=rows,
            parts=[],
            consumers=[],
            norms=[],
            own=None if self.own is None else narrowed(self.own),
            sites=list(map(narrowed, self.sites)),
            inputs=list(map(narrowed, self.inputs)),
            unresolved=[*self.unresolved],
        )

    @property
    def remarks(self) -> list[str]:
        """Return the peculiarities of the layer, in words."""
        flags = {
            "never called": self.num_calls == 0,
            "output": self.is_output,
            "writes to a residual stream": self.writes_to_stream,
            "factor of a gated unit": self.gated,
            "seen behind a pool, a sum, a selection of samples or a change of values": self.condensed,
            f"called {self.num_calls} times": self.num_calls > 1,
            f"weights also taken by {self.borrowed_by}": bool(self.borrowed_by),
            f"computes with {self.besides}": bool(self.besides),
            f"{len(self.parts)} parts": bool(self.parts),
        }
        return [text for text, holds in flags.items() if holds] + self.unresolved

    def note(self, text: str) -> None:
        """Add to :attr:`unresolved` what is not there yet."""
        if text not in self.unresolved:
            self.unresolved.append(text)

    def add_consumer(self, consumer: Consumer) -> None:
        """Add a consumer that is not there yet."""
        if not any(consumer.same_as(other) for other in self.consumers):
            self.consumers.append(consumer)

    def add_norm(self, norm: Norm) -> None:
        """Add a norm that is not there yet."""
        if all(other.module != norm.module for other in self.norms):
            self.norms.append(norm)


def union(layers: list[Layer]) -> Layer:
    """Return one layer as several passes show it: with every consumer, norm and site that it has in any of them."""
    ran = [layer for layer in layers if layer.num_calls] or layers[:1]
    first = ran[0]
    found = Layer(first.name, first.module, first.axis, first.num_neurons, first.adapter, rows=first.rows)
    # Also by passes in which the layer itself does not run.
    found.borrowed_by = next(filter(None, (layer.borrowed_by for layer in layers)), "")
    for layer in ran:
        found.own = found.own or layer.own
        found.num_calls = max(found.num_calls, layer.num_calls)
        found.activation = found.activation or layer.activation
        found.gated, found.condensed = found.gated or layer.gated, found.condensed or layer.condensed
        found.writes_to_stream |= layer.writes_to_stream
        found.besides = found.besides or layer.besides
        found.sites += [site for site in layer.sites if not any(map(site.same_as, found.sites))]
        found.inputs += [site for site in layer.inputs if not any(map(site.same_as, found.inputs))]
        for consumer in layer.consumers:
            found.add_consumer(consumer)
        for norm in layer.norms:
            found.add_norm(norm)
        for text in layer.unresolved:
            found.note(text)
    divisions = {tuple(tuple(part.rows.tolist()) for part in layer.parts) for layer in ran}  # type: ignore[union-attr]
    if len(divisions) == 1 and not found.has_units:
        found.parts = [union(list(same)) for same in zip(*(layer.parts for layer in ran), strict=True)]
    found.is_output = all(layer.is_output for layer in ran) and bool(first.num_calls)
    if not found.is_output and any(layer.is_output for layer in ran):
        found.note(RETURNED)
    return found
