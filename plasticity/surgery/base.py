"""Go back to a base: fuse a model with an earlier one, or overwrite some of its neurons with those it had.

Rejuvenation (arXiv 2606.09932): a fine-tuned model regains plasticity by fusion with its base over all tensors (0.5 was
best), or by overwriting the few units that changed its predictions most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from operator import index

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.isolation import named_modules, named_parameters, unwrap
from plasticity.structure.layers import neuron_axis, num_inputs, num_neurons

from .derived import renew_derived_
from .entries import incoming_entries, outgoing_entries
from .initialisers import bias_of, weight_of
from .optimizer_state import SurgeryError, clear_state_

Base = nn.Module | Mapping[str, Tensor]
"""A model, or its parameters by name, such as a state dict."""


@torch.no_grad()
def fuse(model: nn.Module, base: Base, alpha: float = 0.5) -> list[str]:
    """Mix a model with a base in place, theta <- (1 - alpha) theta + alpha base; return the names of what moved.

    Every parameter, frozen ones included; buffers stay. ``alpha`` in [0, 1]; 1 goes back to the base. The optimizer's
    state is left alone. Raises SurgeryError, with nothing changed, for a base that lacks a parameter or has another
    shape.
    """
    if not (isinstance(alpha, (Real, Tensor)) and 0 <= alpha <= 1):
        raise SurgeryError(f"alpha is the share of the base, in [0, 1]; got {alpha!r}")
    own = named_parameters(unwrap(model))
    theirs = _parameters(base, own)
    for name, parameter in own.items():
        parameter.lerp_(theirs[name], alpha)
    renew_derived_(unwrap(model))
    return list(own)


@torch.no_grad()
def reset_to(
    model: nn.Module,
    base: Base,
    units: Mapping[str, Tensor | Sequence[int]],
    *,
    outgoing: Iterable[str] = (),
    factor: float = 1.0,
    optimizers: Iterable[Optimizer] = (),
) -> dict[str, list[int]]:
    """Overwrite neurons of a model with those of a base, in place; return their indices by layer.

    ``units``: layer -> its neurons, by index or as a bool mask. Their incoming weights and biases move by ``factor`` in
    [0, 1] towards the base's, 1 for all the way. ``outgoing``: layers of which the units are inputs instead, and their
    columns move (attention's and an MLP's output projections, in the paper). Gradients of these entries become 0, and
    ``optimizers`` forget them.

    Raises SurgeryError, with nothing changed, for a layer that is no Linear or convolution, an index that it lacks or
    that is no whole number, ``outgoing`` beyond ``units``, and a base that lacks its parameters.
    """
    if not (isinstance(factor, (Real, Tensor)) and 0 <= factor <= 1):
        raise SurgeryError(f"factor is in [0, 1]; got {factor!r}")
    module, columns, optimizers = unwrap(model), set(outgoing), list(optimizers)
    if unknown := columns - units.keys():
        raise SurgeryError(f"outgoing are layers of units, here {', '.join(units)}; got {', '.join(sorted(unknown))}")
    edits, done = [], {}
    for layer, chosen in units.items():
        part = named_modules(module).get(layer)
        if part is None or neuron_axis(part) is None:
            known = [n for n, m in named_modules(module).items() if neuron_axis(m) is not None]
            raise SurgeryError(f"{layer} is no Linear or convolution; there are {', '.join(known)}")
        mask = _mask(layer, chosen, num_inputs(part) if layer in columns else num_neurons(part))
        done[layer] = mask.nonzero().flatten().tolist()
        entries = outgoing_entries(part, mask) if layer in columns else incoming_entries(part, mask)
        edits.append((f"{layer}.weight".removeprefix("."), weight_of(part), entries))
        if layer not in columns and (bias := bias_of(part)) is not None:
            edits.append((f"{layer}.bias".removeprefix("."), bias, mask.to(bias.device)))
    theirs = _parameters(base, {name: parameter for name, parameter, _ in edits})
    for name, parameter, where in edits:
        parameter.copy_(torch.where(where, parameter.lerp(theirs[name], factor), parameter))
        if parameter.grad is not None:
            parameter.grad.masked_fill_(where, 0)
        clear_state_(optimizers, parameter, where)
    renew_derived_(module)
    return done


def _parameters(base: Base, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the base's parameters of the same names, on the devices of ``own``."""
    found = named_parameters(unwrap(base)) if isinstance(base, nn.Module) else base
    shapes = {name: tuple(found[name].shape) if name in found else None for name in own}
    wrong = [
        f"{n} {shapes[n] or 'missing'} for {tuple(p.shape)}" for n, p in own.items() if shapes[n] != tuple(p.shape)
    ]
    if wrong:
        raise SurgeryError(f"the base does not fit the model: {', '.join(wrong[:4])}")
    return {name: found[name].detach().to(p.device, p.dtype) for name, p in own.items()}


def _mask(layer: str, chosen: Tensor | Sequence[int], size: int) -> Tensor:
    """Return units as a bool mask (size,) on the CPU."""
    if isinstance(chosen, Iterable) and not isinstance(chosen, (Tensor, str)):
        chosen = list(chosen)
        if chosen and all(isinstance(i, (bool, np.bool_)) for i in chosen):
            chosen = torch.tensor(list(map(bool, chosen)))  # else they would be taken for the neurons 1 and 0
    if isinstance(chosen, Tensor) and chosen.dtype == torch.bool:
        if chosen.shape != (size,):
            raise SurgeryError(f"{layer} needs a mask of shape ({size},); got {tuple(chosen.shape)}")
        return chosen.cpu()
    try:
        indices = [index(i) for i in chosen]
    except TypeError as error:
        raise SurgeryError(f"{layer} needs units as whole numbers, or as a bool mask; got {chosen!r}") from error
    if wrong := [i for i in indices if not 0 <= i < size]:
        raise SurgeryError(f"{layer} has the units 0 to {size - 1}; got {wrong}")
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    mask[indices] = True
    return mask
