"""Readings of a Q network's outputs, by name: as mean returns, or as distributions of the return (`c51.py`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, smooth_l1_loss

from .c51 import C51
from .choices import pick
from .hl_gauss import HLGauss, Quantiles, TwoHot

LOSSES: dict[str, Callable[..., Tensor]] = {"huber": smooth_l1_loss, "mse": mse_loss}
"""Name -> `loss(output, target, reduction="none")`, of errors of mean returns."""


class Returns(Protocol):
    """How outputs (..., num_atoms), or (...) where num_atoms is 1, stand for a return."""

    num_atoms: int

    def q(self, output: Tensor) -> Tensor:
        """Return the mean returns: the shape of `output` without its axis of atoms."""

    def target(self, reward: Tensor, discount: Tensor, following: Tensor) -> Tensor:
        """Return what (s, a) is moved towards; `following`: outputs at (s', a'); the discount is 0 after an end."""

    def losses(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (batch,) and the errors (batch,), detached, that set priorities in replay."""


class Mean:
    """Outputs are mean returns."""

    num_atoms = 1

    def __init__(self, loss: str = "huber") -> None:
        self.loss = pick(LOSSES, loss, "loss")

    def q(self, output: Tensor) -> Tensor:
        """Return the mean returns, any shape."""
        return output

    def target(self, reward: Tensor, discount: Tensor, following: Tensor) -> Tensor:
        """Return r + discount * Q(s', a'); all (batch,), and discount is 0 after a termination."""
        return reward + discount * following

    def losses(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (batch,), and the errors Q(s, a) - y (batch,) that set priorities in replay."""
        return self.loss(output, target, reduction="none"), (output - target).detach()


def _mean(config: Any, device: torch.device) -> Mean:
    return Mean(getattr(config, "loss", "mse"))


def _on_grid(kind: type[C51], config: Any, device: torch.device) -> C51:
    return kind(config.v_min, config.v_max, config.num_atoms, device)


def _quantiles(config: Any, device: torch.device) -> Quantiles:
    return Quantiles(config.num_atoms, device)


RETURNS: dict[str, Callable[[Any, torch.device], Returns]] = {
    "mean": _mean,
    "c51": partial(_on_grid, C51),
    "two_hot": partial(_on_grid, TwoHot),
    "hl_gauss": partial(_on_grid, HLGauss),
    "quantiles": _quantiles,
}
"""Name -> `make(config, device)`; the config is the agent's."""
