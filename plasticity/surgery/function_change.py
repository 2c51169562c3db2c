"""How much an edit changed what a network computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plasticity.isolation import call_of, undisturbed, unwrap
from plasticity.structure.labels import tensors_in

T = TypeVar("T")


def function_change(
    network: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    change: Callable[[], T],
    method: str = "forward",
) -> tuple[T, float]:
    """Return ``change()`` and how much it changed the network's function on one input, ||after - before|| / ||before||.

    The norms run over all floating-point tensors in the output, in evaluation mode and with the same random numbers
    before and after; running the network leaves no trace. 0 without any change, inf where the output was 0 before, NaN
    where it is not finite. ``method``: the method by which the network is called.
    """
    model = unwrap(network)
    return change_of(model, lambda: call_of(model, method)(*args, **kwargs), change)


def change_of(model: nn.Module, run: Callable[[], Any], change: Callable[[], T]) -> tuple[T, float]:
    """Return the same for a network that ``run()`` runs, any number of times."""
    before = _outputs(model, run)
    result = change()
    difference = float((_outputs(model, run) - before).norm())
    return result, difference / norm if (norm := float(before.norm())) else (float("inf") if difference else 0.0)


def _outputs(model: nn.Module, run: Callable[[], Any]) -> Tensor:
    # The edits themselves must lie outside: leaving the block restores the buffers that they reset.
    with undisturbed(model, owner=object()), torch.no_grad():
        found = [t for t in tensors_in(run()) if t.is_floating_point()]
        if not found:
            raise ValueError(f"the output of {type(model).__name__} holds no floating-point tensor to compare")
        return torch.cat([t.detach().flatten().to("cpu", torch.float64) for t in found])
