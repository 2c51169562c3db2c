"""Policies of SAC by name: how an actor draws actions, and what stands for its entropy.

gaussian: a squashed Gaussian, whose log-density is known (Haarnoja et al. 2018).

amortized: a = f(s, z), a network of the observation and of noise z that is squashed by tanh, which can have several
modes and has no density (arXiv 2511.01374, NeurIPS 2025; code: github.com/PneuC/DrAC). In the place of entropy is

    D(s) = 1/n sum_i log(|f(s, x_i) - f(s, y_i)| + 1e-5),     2n draws of z;

so targets are r + gamma (min Q + alpha D(s')), the actor maximises Q + alpha D, and alpha keeps D at
log(beta sqrt(action dimensions)). The geometric mean of distances does not let a few far clusters pay for many alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .acting import Acting
from .bodies import Body
from .distributions import numpy_or_torch
from .draws import normal, uniform
from .networks import Actor, AmortizedActor, squashed_gaussian
from .replay import Batch
from .rows import as_tensor

CLOSEST = 1e-5
"""Added to distances within the logarithm, as in the released code."""


@dataclass(frozen=True)
class AmortizedConfig:
    """The options of the amortized actor."""

    latent_dim: int = 16
    """Numbers of z, each drawn from [0, 1), that an amortized actor sees beside the observation."""
    num_pairs: int = 8
    """Pairs of actions of an amortized actor whose distances are its diversity (n)."""
    diversity_target: float = 0.2
    """Diversity of an amortized actor that the temperature steers to, as a distance over sqrt(dimensions) (beta); 0.8
    in the authors' mazes of several goals."""


class ActorKind(Protocol):
    """The kind of an actor, as SAC uses it; noise draws its actions."""

    measure: str
    """Name in the metrics of what the temperature steers."""
    target: float
    """Its usual target."""
    noise_dim: int
    """Numbers of noise that draw one action."""
    latent_dim: int
    """Those of them that the network takes in beside the observation."""
    draw: Callable[..., Tensor]
    """`draw(size, generator)`: the noise of acting."""

    def make(self, body: Body) -> nn.Module:
        """Return the actor on a body."""

    def act(self, actor: Acting, obs: Any, noise: Any | None) -> Any:
        """Return actions (N, action_dim), the best known ones without noise."""

    def noises(self, num: int, batch: int, generator: torch.Generator) -> Tensor:
        """Return noise of `num` updates' parts, (num, batch, ...), for `sample`."""

    def sample(self, actor: nn.Module, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (batch, action_dim), and their log-density (batch,) or what stands for it."""

    def quiet(self, batch: Batch) -> Tensor:
        """Return noise for `sample` that is no random number."""


class SquashedGaussian:
    """Squashed Gaussians."""

    measure, latent_dim, draw = "entropy", 0, staticmethod(normal)

    def __init__(self, config: Any, action_dim: int) -> None:
        self.action_dim = self.noise_dim = action_dim
        self.target = -float(action_dim)

    def make(self, body: Body) -> nn.Module:
        return Actor(body, self.action_dim)

    def act(self, actor: Acting, obs: Any, noise: Any | None) -> Any:
        mean, log_std = actor(obs)
        numpy = numpy_or_torch(mean)
        return numpy.tanh(mean if noise is None else mean + numpy.exp(log_std) * noise)

    def noises(self, num: int, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn((num, batch, self.action_dim), generator=generator, device=generator.device)

    def sample(self, actor: nn.Module, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return squashed_gaussian(*actor(obs), noise)

    def quiet(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.action)


class Amortized:
    """Networks of observation and noise."""

    measure, draw = "diversity", staticmethod(uniform)

    def __init__(self, config: Any, action_dim: int) -> None:
        self.action_dim, self.num_pairs = action_dim, config.num_pairs
        self.noise_dim = self.latent_dim = config.latent_dim
        self.target = math.log(config.diversity_target * math.sqrt(action_dim))
        shape, fixed = (1, 1 + 2 * self.num_pairs, self.latent_dim), torch.Generator("cpu").manual_seed(0)
        self._quiet = torch.rand(shape, generator=fixed, device="cpu")

    def make(self, body: Body) -> nn.Module:
        return AmortizedActor(body, self.action_dim, self.latent_dim)

    @torch.no_grad()
    def act(self, actor: Acting, obs: Any, noise: Any | None) -> Any:
        network = actor.networks[actor.name]
        return network(as_tensor(obs), None if noise is None else as_tensor(noise))

    def noises(self, num: int, batch: int, generator: torch.Generator) -> Tensor:
        return uniform((num, batch, 1 + 2 * self.num_pairs, self.latent_dim), generator)

    def sample(self, actor: nn.Module, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        action, one, other = actor(obs, noise).split([1, self.num_pairs, self.num_pairs], 1)
        return action[:, 0], -diversity(one, other)

    def quiet(self, batch: Batch) -> Tensor:
        return self._quiet.to(batch.action.device).expand(len(batch.action), -1, -1)


def diversity(one: Tensor, other: Tensor) -> Tensor:
    """Return D, (batch,): the mean log distance of pairs of actions, both (batch, pairs, action_dim)."""
    return (torch.linalg.vector_norm(one - other, dim=-1) + CLOSEST).log().mean(-1)


ACTORS: dict[str, Callable[[Any, int], ActorKind]] = {"gaussian": SquashedGaussian, "amortized": Amortized}
"""Name -> `make(config, action_dim)`."""
