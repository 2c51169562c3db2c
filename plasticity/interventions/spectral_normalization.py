"""Spectral normalisation: a layer computes with its weight divided by the largest singular value.

Gogianu, Berariu, Rosca, Clopath, Busoniu & Pascanu 2021, *Spectral Normalisation for Deep Reinforcement Learning: an
Optimisation Perspective*, arXiv 2105.05246; Bjorck, Gomes & Weinberger 2021, arXiv 2106.01151; Miyato et al. 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.structure.layers import weight_rows

from .every_step import EveryStep, layers_of
from .intervention import numbers_in
from .spectral import power_iteration_

WARMUP = 15
"""Iterations of the power method when a layer is normalised first, as many as PyTorch's own takes."""


class Normalised(nn.Module):
    """W / sigma_1(W), sigma_1 = u^T W v with vectors that move between passes and not in them, so that graphs hold."""

    u: Tensor
    v: Tensor
    layer: nn.Module

    def __init__(self, layer: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        rows = weight_rows(layer, layer.weight.detach())  # type: ignore[arg-type,operator]
        u, v = (torch.randn(size, generator=generator, device="cpu").to(rows) for size in rows.shape)
        self.register_buffer("u", u)
        self.register_buffer("v", v)
        self.__dict__["layer"] = layer  # no submodule of its own parametrisation
        power_iteration_(rows, u, v, WARMUP)

    def forward(self, weight: Tensor) -> Tensor:
        return weight / self.sigma(weight)

    def sigma(self, weight: Tensor) -> Tensor:
        """Return the largest singular value as far as the vectors have found it, 0-D."""
        rows = weight_rows(self.layer, weight).clone()  # the last bits depend on where a weight lies in memory
        return self.u @ rows @ self.v

    def follow_(self, weight: Tensor) -> None:
        """Take one step of the power method for the present weight."""
        power_iteration_(weight_rows(self.layer, weight.detach()), self.u, self.v)


@dataclass
class SpectralNormalization(EveryStep):
    """Divide a critic's weight by its largest singular value.

    The layer computes with W / sigma_1(W); W itself is trained. One layer is enough: the last hidden one of critics,
    which is the last but one of the network's layers in their order. Targets are normalised too, by vectors of their
    own. The vectors take one step of the power method after every step of the optimizer.

    Defaults: the last layer but one (the paper's best choice), of networks called critic or q. Such a layer cannot be
    edited neuron by neuron: ReDo and its kin leave it alone and say so. Tests compare it with PyTorch's own
    ``spectral_norm``; code of the authors is not known here. Source: Gogianu et al. 2021, arXiv 2105.05246.
    """

    NAME: ClassVar[str] = "spectral_normalization"
    KIND: ClassVar[str] = "architecture"

    networks: tuple[str, ...] = ("critic*", "q*")
    """Names or globs of the networks to act on; empty for all."""
    layers: tuple[str, ...] = ()
    """Names or globs of the layers; empty for the last but one."""

    def restructure(self, ctx: Context, state: Mapping[str, Any] | None) -> None:
        """Put the division into the layers of networks and targets."""
        for name, network in self.choose(ctx, self.networks).items():
            for one in (network, ctx.targets.get(name)):
                for layer in self._layers(one) if one is not None else ():
                    parametrize.register_parametrization(layer, "weight", Normalised(layer, self.generator))

    def _layers(self, network: nn.Module) -> list[nn.Module]:
        found = layers_of(network)
        chosen = (
            [n for n in found if any(fnmatchcase(n, g) for g in self.layers)] if self.layers else list(found)[-2:-1]
        )
        if not chosen:
            wanted = ", ".join(self.layers) or "in front of its last one"
            raise ValueError(f"SpectralNormalization finds no layer {wanted}; there are {', '.join(found)}")
        return [found[n] for n in chosen]

    def attach(self, ctx: Context, name: str, network: nn.Module) -> None:
        """Let the vectors follow the weights."""
        modules = [one for one in (network, ctx.targets.get(name)) if one is not None]
        follow = self.named(lambda optimizer, args, kwargs: self._follow(modules, optimizer))
        self.hook(ctx.optimizer_of(name).register_step_post_hook(follow))

    def _follow(self, networks: list[nn.Module], optimizer: Optimizer) -> None:
        for network in networks:
            for division, weight in divisions(network):
                division.follow_(weight)

    def parameters_added(self) -> int:
        """Return how many entries the vectors of the networks have; targets have as many of their own."""
        return sum(numbers_in([d.u, d.v]) for network in self.chosen.values() for d, _ in divisions(network))

    def measured(self, metrics: dict[str, Tensor]) -> dict[str, float]:
        """Return the largest singular value of every weight that is divided by it."""
        pairs = [(name, *pair) for name, network in self.chosen.items() for pair in divisions(network)]
        return {f"{name}/sigma": float(division.sigma(weight)) for name, division, weight in pairs}


def divisions(network: nn.Module) -> Iterator[tuple[Normalised, Tensor]]:
    """Yield every division in a network, and the weight that is divided."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], Normalised):
            yield module[0], module.original.detach()  # type: ignore[operator]
