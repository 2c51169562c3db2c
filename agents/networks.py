"""The networks of the agents: plain nn.Module with real nn.Linear and nn.ReLU modules, so that forward hooks see them.

Everything keeps PyTorch's default initialisation: a recycled neuron is redrawn from the same distribution.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Bounds of the log standard deviation, as in the authors' code and stable-baselines3.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0

# Keeps log(1 - tanh(u)^2) finite where float32 tanh is exactly 1; value of the authors' code and stable-baselines3.
SQUASH_EPSILON = 1e-6


def mlp(input_dim: int, hidden: Sequence[int], output_dim: int | None = None) -> nn.Sequential:
    """Linear, ReLU, Linear, ReLU, ...; ends with a bare Linear when `output_dim` is given, else with the last ReLU."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(input_dim, width), nn.ReLU()]
        input_dim = width
    if output_dim is not None:
        layers.append(nn.Linear(input_dim, output_dim))
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """Squashed Gaussian policy: forward(obs) gives mean and log_std, both (batch, action_dim), before the tanh."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.trunk = mlp(obs_dim, hidden)
        features = hidden[-1] if hidden else obs_dim
        self.mean = nn.Linear(features, action_dim)
        self.log_std = nn.Linear(features, action_dim)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(obs)
        return self.mean(features), self.log_std(features).clamp(LOG_STD_MIN, LOG_STD_MAX)


class Critic(nn.Module):
    """One action value: forward(obs, action) gives Q(s, a), shape (batch,)."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.q = mlp(obs_dim + action_dim, hidden, 1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.q(torch.cat([obs, action], dim=-1)).squeeze(-1)


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """action = tanh(mean + std * noise) and its log-density, reparameterised: gradients flow into mean and log_std.

    mean, log_std, noise: (batch, action_dim), noise ~ N(0, 1). Returns action (batch, action_dim) and
    log_prob (batch,) = sum_i [log N(u_i; mean_i, std_i) - log(1 - tanh(u_i)^2)], Haarnoja et al. 2018, appendix C.
    As (u - mean) / std is the noise itself, the Gaussian term needs no division.
    """
    action = torch.tanh(mean + log_std.exp() * noise)
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return action, (gaussian - torch.log(1 - action.square() + SQUASH_EPSILON)).sum(-1)
