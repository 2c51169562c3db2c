"""A second, optimistic policy that explores beside SAC's own: BRO (Nauman et al. 2024, arXiv 2405.16158, section 3).

The actor gives mean m and standard deviation s, both before the tanh. The optimist shifts that mean by f(obs, m), and
the agent explores with tanh(m + f + share s noise); evaluations, targets and the temperature are the actor's alone. It
is trained, after critics and actor, towards

    J  = -mean [(Q_1 + Q_2) / 2 + b |Q_1 - Q_2| / 2] + w KL,      KL = mean sum_i (f_i / s_i)^2 / 2

at actions of its own; KL is that of the shifted policy from the actor's, both with the actor's s. The weights move so
that KL per action dimension comes to `kl_target`, b down and w up where it is larger:

    J_b = b (KL / dim - kl_target),      J_w = -w (KL / dim - kl_target),      weight = exp(-10 + 8.75 (1 + tanh x))

Adam with betas 0.5, 0.999 and a rate of 3e-5 steps both x. Released code: naumix/BiggerRegularizedOptimistic,
`jaxrl/bro/actor.py` and `temperature.py`; with quantile critics the disagreement is one of quantiles, as there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .bodies import Body
from .networks import orthogonal_

LOG_LOW, LOG_HIGH = -10.0, 7.5
"""Bounds of the logarithms of b and w."""
FIRST_KL_WEIGHT = 0.25
RATE, BETAS = 3e-5, (0.5, 0.999)
SHIFT_GAIN = 0.01


@dataclass(frozen=True)
class OptimismConfig:
    """The options of the optimistic policy."""

    optimism: float = 0.0
    """First weight b of the critics' disagreement in (Q_1 + Q_2) / 2 + b |Q_1 - Q_2| / 2, for which a second policy
    explores; BRO: 1; 0: there is none."""
    kl_target: float = 0.05
    """Divergence per action dimension of that policy from the actor, to which its weights are steered."""
    explore_std: float = 0.75
    """Standard deviation with which that policy explores, as a share of the actor's."""

    def optimism_rules(self) -> dict[str, bool]:
        """Return the rules of these options."""
        return {
            "optimism 0, or in [1e-4, 1000]": self.optimism == 0 or 1e-4 <= self.optimism <= 1e3,
            "kl_target > 0": self.kl_target > 0,
            "explore_std > 0": self.explore_std > 0,
        }


class Optimist(nn.Module):
    """Shift of the actor's mean: forward(obs, mean) gives (batch, action_dim). Its body has that many `extra_dim`."""

    def __init__(self, body: Body, action_dim: int) -> None:
        super().__init__()
        self.encoder, self.trunk = body.encoder, body.trunk
        self.shift = nn.Linear(body.num_features, action_dim, bias=False)
        orthogonal_(self.shift, SHIFT_GAIN)

    def forward(self, obs: Tensor, mean: Tensor) -> Tensor:
        shift: Tensor = self.shift(self.trunk(torch.cat([self.encoder(obs), mean], -1)))
        return shift


def raw_weights(optimism: float) -> Tensor:
    """Return the numbers x (2,) whose weights are these first ones, of disagreement and of divergence."""
    places = [(math.log(value) - LOG_LOW) / (LOG_HIGH - LOG_LOW) for value in (optimism, FIRST_KL_WEIGHT)]
    return torch.tensor([math.atanh(2 * place - 1) for place in places])


def weights_of(raw: Tensor) -> Tensor:
    """Return the weights b and w, (2,), of x (2,)."""
    return torch.exp(LOG_LOW + (LOG_HIGH - LOG_LOW) / 2 * (1 + torch.tanh(raw)))


def raw_gradient(raw: Tensor, divergence: Tensor, target: float) -> Tensor:
    """Return the gradient (2,) of J_b + J_w by x; `divergence`: per action dimension, 0-D."""
    slope = weights_of(raw) * (LOG_HIGH - LOG_LOW) / 2 * (1 - torch.tanh(raw).square())
    excess = divergence - target
    return slope * torch.stack([excess, -excess])


def shifted_action(mean: Tensor, log_std: Tensor, shift: Tensor, noise: Tensor, share: float) -> Tensor:
    """Return tanh(mean + shift + share std noise), (batch, action_dim), as all but `share` are."""
    return torch.tanh(mean + shift + share * log_std.exp() * noise)


def divergence_of(shift: Tensor, log_std: Tensor) -> Tensor:
    """Return the mean KL, 0-D, of Gaussians that are shifted from those with the same deviations."""
    return 0.5 * (shift / log_std.exp()).square().sum(-1).mean()


def optimistic_loss(q: Tensor, divergence: Tensor, weights: Tensor) -> Tensor:
    """Return J, 0-D; q (2, batch) or (2, batch, quantiles), weights (2,): b and w."""
    upper = q.mean(0) + weights[0] * (q[0] - q[1]).abs() / 2
    return weights[1] * divergence - upper.mean()
