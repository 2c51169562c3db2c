"""FIRE: Frobenius-isometry re-initialisation, the nearest isometry to every weight matrix.

Han et al. 2026, *FIRE: Frobenius-Isometry Reinitialization for Balancing the Stability-Plasticity Tradeoff*, ICLR 2026,
arXiv 2602.08040; code: github.com/isaac7778/FIRE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules
from plasticity.structure.layers import neuron_axis
from plasticity.surgery.entries import by_group
from plasticity.value_types import require

from .anchors import Anchors
from .intervention import numbers_in
from .whole import RESET_SCHEDULE, WholeNetwork


def polar(matrix: Tensor, iterations: int | None = None) -> Tensor:
    """Return the isometry nearest to a (batch of) matrix, U V^T of its singular value decomposition, in float64.

    ``iterations``: so many Newton-Schulz steps X <- 1.5 X - 0.5 X X^T X from W / ||W||_F instead, which is what the
    released code does, and far from an isometry where singular values are small. A zero matrix stays zero.
    """
    wide = matrix.double()
    zero = wide.flatten(-2).abs().amax(-1)[..., None, None] == 0
    if iterations is None:
        u, _, vh = torch.linalg.svd(wide, full_matrices=False)
        return torch.where(zero, wide, u @ vh)
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).masked_fill(zero, 1.0)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    return x


def isometry(module: nn.Module, weight: Tensor, iterations: int | None = None) -> Tensor:
    """Return the new weight of a Linear or convolution: sqrt(d_out / d_in) / kernel size * polar, slice by slice.

    Each position of a kernel, and each group of a convolution, is a matrix (neurons, inputs) of its own. Shape, dtype
    and device are those of ``weight``.
    """
    new = torch.empty_like(weight)
    view, out = by_group(module, weight), by_group(module, new)
    slices = view.flatten(3).movedim(-1, 1) if view.dim() > 3 else view[:, None]  # (groups, positions, out, in)
    positions, d_out, d_in = slices.shape[1:]
    found = polar(slices, iterations) * math.sqrt(d_out / d_in) / positions
    found = found.movedim(1, -1).unflatten(-1, view.shape[3:]) if view.dim() > 3 else found[:, 0]
    out.copy_(found)
    return new


@dataclass
class FIRE(WholeNetwork):
    """Replace every weight matrix by the nearest isometry.

    W <- sqrt(d_out / d_in) / k^2 * polar(W), k x k the kernel of a convolution, whose slices are treated one by one.
    Biases and norms stay, and so does what a neuron that is dead by its bias does. No random number is drawn.

    ``paper``: the exact polar factor. ``official``: ten Newton-Schulz iterations, as released: of a matrix of rank 32
    plus noise of 1e-3, 6 % of the singular values end in [0.9, 1.1]. ``official_dqn``: the same for convolutions, and
    Linear layers go back to their first weights. The paper applies it at boundaries: ``every=1, clock="tasks"`` in an
    environment with tasks. Its ViT variant (queries and keys only) is ``--fire.only`` with globs of their names.
    Compared with the released code, ten iterations on a convolution and two layers: equal to 5e-8.
    """

    NAME: ClassVar[str] = "fire"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": {**RESET_SCHEDULE, "linear": "polar", "clear": False, "sync_targets": False},
        "official": {**RESET_SCHEDULE, "linear": "polar", "iterations": 10, "clear": False, "sync_targets": False},
        "official_dqn": {
            **RESET_SCHEDULE,
            "linear": "initial",
            "iterations": 10,
            "clear": False,
            "sync_targets": False,
        },
    }

    preset: Literal["paper", "official", "official_dqn"] = "paper"
    """Defaults of the options that are None."""
    iterations: int | None = None
    """Newton-Schulz iterations in place of the exact polar factor; None: exact, or as the preset says."""
    linear: Literal["polar", "initial"] | None = None
    """Treatment of Linear layers: the nearest isometry, or their first weights."""
    only: tuple[str, ...] = ()
    """Globs of names of weights to treat; empty for the weights of all Linear and convolution layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("FIRE", {"iterations >= 1, or None": self.iterations is None or self.iterations >= 1}, self)
        self.first = Anchors()

    def prepare(self, ctx: Context) -> None:
        """Remember the first weights where Linear layers go back to them."""
        super().prepare(ctx)
        self.first = Anchors.at(self._networks) if self.linear == "initial" else Anchors()

    def parameters_added(self) -> int:
        """Return how many first weights are kept."""
        return numbers_in(self.first)

    def takes(self, name: str, parameter: Tensor, module: nn.Module) -> bool:
        """Take the weights of Linear layers and convolutions."""
        return (
            neuron_axis(module) is not None
            and name.endswith("weight")
            and (not self.only or any(fnmatchcase(name, glob) for glob in self.only))
        )

    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Replace the weights."""
        modules = named_modules(self._networks[network])
        for name, weight in parameters.items():
            module = modules[name.rpartition(".")[0]]
            if self.linear == "initial" and isinstance(module, nn.Linear) and self.first.fits(network, name, weight):
                weight.copy_(self.first[network][name])
                ctx.redrawn({weight: torch.ones_like(weight, dtype=torch.bool)})
            else:
                weight.copy_(isometry(module, weight, self.iterations))
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and first weights."""
        return {**super().state_dict(), "first": self.first.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.first.load_state_dict(state["first"], self._networks)
