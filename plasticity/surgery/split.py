"""Split a neuron: others become copies of it that share its outgoing weights, and the function stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from plasticity.structure.layers import Layer
from plasticity.structure.partners import partners
from plasticity.structure.slices import Slice
from plasticity.structure.wirings import Wiring

from .entries import by_group, incoming_entries, outgoing_entries
from .initialisers import bias_of, weight_of
from .optimizer_state import clear_state_


def split_refusal(wired: Wiring, layer: Layer) -> str | None:
    """Return why neurons of a layer cannot be split, besides what forbids to recycle them; None if they can."""
    if not layer.activation or layer.activation.rstrip("_") not in ("relu", "leaky_relu"):
        return f"a split is exact for relu and leaky_relu; its activation is {layer.activation}"
    if any(isinstance(la.module, Slice) for la in (layer, *(wired.layers[c.layer] for c in layer.consumers))):
        return "slices of a parameter that several layers share are not split"
    if together := partners(wired, layer):
        return f"its neurons make units with those of {', '.join(sorted(together))}"
    grouped = [c.layer for c in layer.consumers if getattr(wired.layers[c.layer].module, "groups", 1) > 1]
    if grouped or getattr(layer.module, "groups", 1) > 1:
        return f"groups of a convolution see different inputs: {', '.join(grouped) or layer.name}"
    return None


@torch.no_grad()
def split_(
    wired: Wiring,
    layer: Layer,
    neuron: int,
    into: Sequence[int],
    scales: Tensor,
    optimizers: Iterable[Optimizer] = (),
    shares: Callable[[int], Tensor] | None = None,
) -> dict[Tensor, Tensor]:
    """Let the neurons ``into`` become scaled copies of ``neuron``, which all take a part of its output.

    Copy k gets ``scales[k]`` > 0 times the incoming weights and bias, and 1 / scales[k] times a share of the outgoing
    weights, of which ``neuron`` keeps the last. ``shares(outputs)``: those of a layer behind, (copies + 1, outputs),
    each column with the sum 1; None for equal ones. What the copies did before is lost. Exact for activations with
    f(a z) = a f(z) and without a norm. ``optimizers`` forget the copies' weights. Returns parameter -> entries that
    belong to the copies. Source: ReBorn.
    """
    optimizers, scales = list(optimizers), scales.double().cpu()
    mask = torch.zeros(layer.num_neurons, dtype=torch.bool, device="cpu")
    mask[list(into)] = True
    weight, bias = weight_of(layer.module), bias_of(layer.module)
    rows = by_group(layer.module, weight)
    for k, scale in zip(into, scales.tolist(), strict=True):
        rows[0, k] = rows[0, neuron] * scale
        if bias is not None:
            bias[k] = bias[neuron] * scale
    copied = {weight: incoming_entries(layer.module, mask)}
    if bias is not None:
        copied[bias] = mask.to(bias.device)
    for consumer in layer.consumers:
        module, columns = wired.layers[consumer.layer].module, consumer.columns.cpu()
        view = by_group(module, weight_of(module))
        own = (columns == neuron).nonzero().flatten()
        whole = view[0, :, own.to(view.device)]  # (outputs, columns, *kernel)
        size = (len(into) + 1, len(whole))
        parts = view.new_full(size, 1 / size[0]) if shares is None else shares(size[1]).to(view)
        *copied_parts, kept = parts.view(*size, *[1] * (whole.dim() - 1)) * whole
        for k, scale, part in zip(into, scales.tolist(), copied_parts, strict=True):
            view[0, :, (columns == k).nonzero().flatten().to(view.device)] = part / scale
        view[0, :, own.to(view.device)] = kept
        carried = (columns >= 0) & mask[columns.clamp(min=0)]
        entries = outgoing_entries(module, carried)
        copied[weight_of(module)] = copied.get(weight_of(module), entries) | entries
    for parameter, entries in copied.items():
        clear_state_(optimizers, parameter, entries)
    return copied
