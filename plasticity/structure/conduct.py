"""Layers of the user's own that do more than multiply by their weight, found by running them.

A method that edits neurons relies on three things: column ``j`` of a weight takes up input ``j`` and nothing else does,
an input of 0 adds nothing, and row ``i`` writes neuron ``i`` and nothing else. Torch's own layers hold to all. A class
with a ``forward`` of its own may add its input, move it, normalise its output or compute with the norm of its weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.isolation import undisturbed

from .layers import by_group, is_conv1d, neuron_axis, num_inputs, num_neurons, spread

SAMPLES_RUN = 2
"""Samples that are run, of those that a layer was called with."""


def is_torchs(module: nn.Module) -> bool:
    """Return whether a layer runs a forward of torch's, or of GPT-2's Conv1D."""
    own = "forward" in vars(module) or not type(module).forward.__module__.startswith("torch.nn.")
    return not own or is_conv1d(module)


def strays(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> str:
    """Return, in words, what a layer does that its weight does not tell; "" if nothing is seen.

    Its ``forward`` runs some more times without hooks: a set of columns of the weight is 0, and the inputs that they
    take up change, or are 0 with all columns there: its output must not change. A set of rows changes: no other neuron
    may. The sets are the digits of the places, so that any two places are told apart. Nothing is seen of a layer that
    cannot be run so.
    """
    weight, axis = module._parameters.get("weight"), neuron_axis(module)
    x = args[0] if args else None
    if not (isinstance(x, Tensor) and weight is not None and weight.is_floating_point() and x.is_floating_point()):
        return ""
    assert axis is not None
    if x.shape[axis] != num_inputs(module):
        return f"an input of another size than {num_inputs(module)}"
    if output.shape[axis] != num_neurons(module):
        return f"another size than {num_neurons(module)} of its output"
    x = x[:SAMPLES_RUN] if x.dim() > -axis else x
    if not bool(x.isfinite().all()):  # 0 times such a number is none
        return ""
    bias = module._parameters.get("bias")

    def run(inputs: Tensor, **parameters: Tensor) -> Tensor:
        with undisturbed(module, module, evaluate=False), torch.no_grad(), _having(module, parameters):
            return module.forward(inputs.clone(), *args[1:], **kwargs)

    def at(places: Tensor) -> Tensor:
        return places.to(x.device).view([-1] + [1] * (-axis - 1))

    try:
        for inputs in _sets(num_inputs(module)):
            cut = by_group(module, weight.detach().clone()).masked_fill(spread(by_group(module, weight), inputs, 2), 0)
            cut = _like(module, weight, cut)
            without = run(x, weight=cut)
            if _differ(without, run(torch.where(at(inputs), x / 2 + 1, x), weight=cut)):
                return "its input besides its weight"
            if _differ(without, run(x.masked_fill(at(inputs), 0))):
                return "a change of its input"
        before = run(x)
        for rows in _sets(num_neurons(module))[:-1]:
            view = by_group(module, weight.detach().clone())
            new = {"weight": _like(module, weight, torch.where(spread(view, rows, 1), view / 2 + 1, view))}
            if bias is not None and bias.shape == rows.shape:
                new["bias"] = torch.where(rows.to(bias.device), bias.detach() + 1, bias.detach())
            if _differ(before.masked_fill(at(rows), 0), run(x, **new).masked_fill(at(rows), 0)):
                return "other neurons' weights"
    except Exception:  # a forward that checks what it is given, or needs more of it
        return ""
    return ""


def _sets(size: int) -> list[Tensor]:
    """Return sets of places, bool (size,): by each binary digit those with it and those without; all of them last."""
    places = torch.arange(size)
    digits = [(places >> k) % 2 == 1 for k in range(max(size - 1, 1).bit_length())]
    return [*digits, *(~digit for digit in digits), torch.ones(size, dtype=torch.bool)]


def _like(module: nn.Module, weight: Tensor, view: Tensor) -> Tensor:
    """Return what was viewed by groups in the shape of the weight."""
    found = torch.empty_like(weight)
    by_group(module, found).copy_(view)
    return found


def _differ(one: Tensor, other: Tensor) -> bool:
    size = float(one.abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
    return one.shape != other.shape or not torch.allclose(one, other, rtol=1e-4, atol=1e-5 * size, equal_nan=True)


@contextmanager
def _having(module: nn.Module, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module have other parameters inside the block."""
    before = {key: module._parameters[key] for key in parameters}
    try:
        for key, value in parameters.items():
            module._parameters[key] = nn.Parameter(value, requires_grad=False)
        yield
    finally:
        module._parameters.update(before)
