"""Several losses of one network: whether their gradients pull the same way."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from .curvature import flat
from .gradient import cosine
from .network import Again, NetworkProbe, NotMeasurable


class LossCosine(NetworkProbe):
    """Cosine of the gradients of a network's losses, pair by pair.

    Range [-1, 1]; below 0 the losses fight. ``loss_cosine`` of each pair stands in the place of a layer, as
    ``policy:entropy``, that of the network is their mean; ``loss_cosine_low`` is that of the pair that fights most.
    Losses are the parts of the one that is minimised, with their weights and signs: those that an agent names, every
    term that a method adds, or what a loss function returns by name. Losses without a gradient here are left out.
    Source: Yu et al. 2020 (PCGrad, arXiv 2001.06782), definition 1.
    """

    KIND = "gradient"
    COST = "passes"
    WORSE = "below 0"
    SOURCE = "Yu et al. 2020"
    metrics = ("loss_cosine", "loss_cosine_low")

    def measure(self, again: Again) -> dict[str, Tensor | dict[str, Tensor]]:
        """Return the cosine of each pair of losses, and the smallest."""
        losses, parameters = again.losses(), again.parameters()
        gradients = {name: gradient_of(loss, parameters) for name, loss in losses.items()}
        there = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if len(there) < 2:
            reaching = ", ".join(there) or "none"
            raise NotMeasurable(f"it takes two losses to compare; of {', '.join(losses)}, {reaching} moves it")
        found = {f"{a}:{b}".replace("/", "."): cosine(there[a], there[b]) for a, b in combinations(there, 2)}
        values = torch.stack(list(found.values()))
        low = torch.where(values.isnan().any(), torch.nan, values.min())
        return {"loss_cosine": found, "loss_cosine_low": low}


def gradient_of(loss: Tensor, parameters: list[Tensor]) -> Tensor | None:
    """Return the gradient of a loss, flat and float64; None where it reaches none of the parameters, or is 0."""
    if not loss.requires_grad:
        return None
    parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    if all(part is None for part in parts):
        return None
    whole = flat(parts, parameters).detach().double()
    return whole if bool((whole != 0).any()) else None
