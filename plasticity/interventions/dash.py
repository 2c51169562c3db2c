"""DASH: direction-aware shrinking, of the weights that the loss does not want where they are.

Shin et al. 2024, *DASH: Warm-Starting Neural Network Training in Stationary Settings without Loss of Plasticity*,
NeurIPS 2024, arXiv 2410.23495; code: github.com/baekrok/DASH-Direction-Aware-SHrinking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import named_modules
from plasticity.structure.layers import NORM_MODULES, neuron_axis
from plasticity.surgery.entries import by_group
from plasticity.value_types import require

from .anchors import Anchors
from .intervention import Listener, numbers_in
from .whole import RESET_SCHEDULE, WholeNetwork


def alignment(direction: Tensor, weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return the cosine of two tensors along ``dims``, kept with size 1; 0 where one of them is 0."""
    length = direction.square().sum(dims, keepdim=True).sqrt() * weight.square().sum(dims, keepdim=True).sqrt()
    return (direction * weight).sum(dims, keepdim=True) / length.masked_fill(length == 0, 1.0)


@dataclass
class DASH(WholeNetwork):
    """Shrink weights by how little they point where the loss wants them.

    G <- (1 - alpha) G + alpha (-g) over the gradients of all steps. At an application, w <- w * clip(cos(G, w), floor,
    1): for every row of a matrix, every slice (neuron, input) of a kernel, and every vector as a whole. Norms and the
    optimizer's state stay. No random number is drawn.

    ``paper``: alpha and floor are the defaults of the authors' main.py, 0.3 both. There, G is from one pass over all
    data at a boundary, in few large batches; here it is from the training steps before, as an agent has no pass over
    its data. ``every=1, clock="tasks"`` applies it at the switches of tasks. Compared with the code in isaac7778/FIRE,
    whose rule is the authors', one event after ten batches: equal to 2e-8.
    """

    NAME: ClassVar[str] = "dash"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {"paper": {**RESET_SCHEDULE, "clear": False, "sync_targets": True}}

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None."""
    alpha: float = 0.3
    """Weight of a step's gradient in the average, in (0, 1]."""
    floor: float = 0.3
    """Smallest factor of a weight, in [0, 1] (the paper's lambda)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require("DASH", {"0 < alpha <= 1": 0 < self.alpha <= 1, "0 <= floor <= 1": 0 <= self.floor <= 1}, self)
        self.direction = Anchors()

    def prepare(self, ctx: Context) -> None:
        """Begin the averages at 0."""
        super().prepare(ctx)
        self.direction = Anchors.at(self._networks)
        for tensors in self.direction.values():
            torch._foreach_zero_(list(tensors.values()))
        self.hook(Listener(ctx.on_redraw, lambda entries: self.direction.zero_(entries, self._networks)))

    def parameters_added(self) -> int:
        """Return how many numbers the averages hold."""
        return numbers_in(self.direction)

    def takes(self, name: str, parameter: Tensor, module: nn.Module) -> bool:
        """Take all parameters but those of norms."""
        return not isinstance(module, NORM_MODULES)

    def follow_(self, network: str, parameters: Mapping[str, Tensor]) -> None:
        """Add the negative gradient of a step."""
        gradients = {name: -p.grad for name, p in parameters.items() if p.grad is not None}
        self.direction.follow_(network, gradients, self.alpha)

    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Shrink the weights, and begin the averages anew."""
        modules = named_modules(self._networks[network])
        for name, parameter in parameters.items():
            if self.direction.fits(network, name, parameter):
                direction = self.direction[network][name]
                if direction.any():
                    parameter *= self.factors(modules[name.rpartition(".")[0]], direction, parameter)
                direction.zero_()
        return {}

    def factors(self, module: nn.Module, direction: Tensor, weight: Tensor) -> Tensor:
        """Return clip(cos, floor, 1), of a shape that broadcasts to the parameter of ``module``."""
        if weight.dim() < 2:
            dims = tuple(range(weight.dim()))
        elif neuron_axis(module) is None or weight.dim() > 2:
            dims = (1,) if weight.dim() == 2 else tuple(range(2, weight.dim()))
        else:  # the rows of a Linear, also where its weight is (inputs, neurons)
            found = torch.empty_like(weight)
            view, rows = by_group(module, found), by_group(module, weight)
            view.copy_(alignment(by_group(module, direction), rows, (2,)).expand_as(view))
            return found.clamp(self.floor, 1)
        return alignment(direction, weight, dims).clamp(self.floor, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and the averages."""
        return {**super().state_dict(), "direction": self.direction.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.direction.load_state_dict(state["direction"], self._networks)
