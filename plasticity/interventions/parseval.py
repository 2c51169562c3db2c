"""Parseval regularisation: keep the rows of hidden layers orthogonal.

Chung, Cherif, Precup & Meger 2024, *Parseval Regularization for Continual Reinforcement Learning*, arXiv 2412.07224.
Code: wechu/parseval_reg.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.structure.layers import weight_rows

from .every_step import layers_of
from .layer_depths import KnowsDepths
from .weight_penalty import WeightPenalty, total, trained


def parseval(rows: Tensor, scale: float, normalise: bool = False, groups: int = 1) -> Tensor:
    """Return ||W W^T - scale I||_F^2, 0-D, of a weight (neurons, inputs).

    ``normalise``: rows of norm 1 first. ``groups``: products count between neurons of one group only, out of so many
    groups of neighbours. Gradient without the options: 4 (W W^T - scale I) W. Raises ValueError for groups that do not
    divide the neurons.
    """
    if rows.shape[0] % groups:
        raise ValueError(f"groups must divide the neurons of every hidden layer; {groups} does not divide {len(rows)}")
    rows = rows / rows.norm(dim=1, keepdim=True) if normalise else rows
    grouped = rows.unflatten(0, (groups, -1))
    eye = torch.eye(grouped.shape[1], device=rows.device, dtype=rows.dtype)
    return (grouped @ grouped.transpose(1, 2) - scale * eye).square().sum()


@dataclass
class Parseval(WeightPenalty, KnowsDepths):
    """Keep the neurons of hidden layers orthogonal, and of one norm.

    Adds coef * sum over hidden layers of ||W W^T - scale I||_F^2 to the loss. Gradients then keep their size through
    the layers, which keeps the curvature, and with it the speed of learning, of a fresh network.

    Defaults: scale 2, the square of the gain sqrt(2) of orthogonal layers (where the penalty begins at 0); coef 1e-3
    (gridworld and MetaWorld in the code's main.py; 1e-4 for LunarLander and the quadruped). ``official`` also
    multiplies by (64 / neurons)^2 as the code does, whose coefficient was tuned at width 64. Differences: the code
    knows hidden layers by their names, and leaves the first one out; here a layer with more neurons than inputs, whose
    rows cannot be orthogonal, is left out, and so are output layers. Compared with the code's own function, ten steps
    of Adam, plain, with normalised rows, in groups, and per width: weights agree to 2e-16. Source: Chung et al. 2024,
    arXiv 2412.07224.
    """

    NAME: ClassVar[str] = "parseval"
    PRESETS: ClassVar = {"paper": {"per_width": False}, "official": {"per_width": True}}

    preset: Literal["paper", "official"] = "paper"
    """Defaults of the options that are None."""
    coef: float = 1e-3
    """Weight of the penalty; 0 switches it off."""
    scale: float = 2.0
    """Squared norm that every row is pulled to: the square of the initial gain."""
    normalise: bool = False
    """Scale rows to norm 1 first, so that only their directions count; scale should then be 1."""
    groups: int = 1
    """Groups of neighbouring neurons within which rows are orthogonal."""
    per_width: bool | None = None
    """Count a layer (64 / neurons)^2 times. None: as the preset says."""

    def rules(self) -> dict[str, bool]:
        """Return the rules of the settings."""
        return {**super().rules(), "scale > 0": self.scale > 0, "groups >= 1": self.groups >= 1}

    def begin(self, name: str, network: nn.Module) -> None:
        """Wait for the first pass, which shows the output layers."""
        self.find_depths(name, network)

    def on_update_start(self, ctx: Context) -> None:
        """Look at networks whose modules were replaced, such as by a plasticity injection, before a graph is traced."""
        for found in self.depths.values():
            if found.known:
                found.look()

    def ready(self, name: str) -> bool:
        """Return whether the output layers are known."""
        return self.depths[name].known

    def penalty(self, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over the hidden layers."""
        values = [
            parseval(rows, self.scale, self.normalise, self.groups) * ((64 / len(rows)) ** 2 if self.per_width else 1.0)
            for rows in self._hidden(name, parameters)
        ]
        return total(values, parameters)

    def idle(self) -> str:
        """Return that no layer is penalised, where that is so."""
        found = [self.ready(n) and not any(True for _ in self._hidden(n, trained(m))) for n, m in self.chosen.items()]
        return "no hidden layer has as many inputs as neurons, or more" if found and all(found) else ""

    def _hidden(self, name: str, parameters: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield the weights, (neurons, inputs), of the hidden layers whose rows can be orthogonal."""
        for layer, module in layers_of(self.chosen[name]).items():
            weight = parameters.get(f"{layer}.weight".removeprefix("."))
            if weight is None or layer in self.depths[name].outputs:
                continue
            rows = weight_rows(module, weight)
            if rows.shape[0] <= rows.shape[1]:
                yield rows
