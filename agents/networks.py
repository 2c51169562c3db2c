"""The heads of the agents' networks, on the bodies of `bodies.py`: plain modules, so that forward hooks see them.

Output layers keep PyTorch's default initialisation, unless their body has one of its own: see `output_modules`.
"""

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .bodies import Body
from .distributions import Categorical, Gaussian
from .hypersphere import UnitLinear
from .returns import Returns

# Bounds of the log standard deviation, as in the authors' code and stable-baselines3.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0

# Keeps log(1 - tanh(u)^2) finite where float32 tanh is exactly 1; value of the authors' code and stable-baselines3.
SQUASH_EPSILON = 1e-6


def output_modules(body: Body, num_outputs: int, gain: float | None = None) -> list[nn.Module]:
    """Return the output layers on a body: its own, or one, orthogonal of ``gain`` where the body says so; biases 0.

    ``gain`` None: the body's.
    """
    if body.make_output is not None:
        return body.make_output(body.num_features, num_outputs)
    layer = nn.Linear(body.num_features, num_outputs)
    if body.output_gain is not None:
        orthogonal_(layer, body.output_gain if gain is None else gain)
    return [layer]


def output_layer(body: Body, num_outputs: int, gain: float | None = None) -> nn.Module:
    """Return the same as one module."""
    layers = output_modules(body, num_outputs, gain)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class Actor(nn.Module):
    """Squashed Gaussian policy: forward(obs) gives mean and log_std, both (batch, action_dim), before the tanh."""

    def __init__(self, body: Body, action_dim: int) -> None:
        super().__init__()
        self.encoder, self.trunk = body.encoder, body.trunk
        self.mean = output_layer(body, action_dim)
        self.log_std = output_layer(body, action_dim, gain=1.0)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(self.encoder(obs))
        return self.mean(features), self.log_std(features).clamp(LOG_STD_MIN, LOG_STD_MAX)


class DeterministicActor(nn.Module):
    """Deterministic policy: forward(obs) gives the action (batch, action_dim) in [-1, 1]."""

    def __init__(self, body: Body, action_dim: int) -> None:
        super().__init__()
        self.encoder, self.trunk = body.encoder, body.trunk
        self.action = output_layer(body, action_dim)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.action(self.trunk(self.encoder(obs))))


class AmortizedActor(nn.Module):
    """Policy that turns noise into actions: forward(obs, latent) gives actions in [-1, 1].

    ``latent`` (batch, latent_dim) for one action each, (batch, k, latent_dim) for k, which are (batch, k, action_dim);
    None: the middle of [0, 1), the same for all. Its body has latent_dim as `extra_dim`.
    """

    def __init__(self, body: Body, action_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.encoder, self.trunk, self.latent_dim = body.encoder, body.trunk, latent_dim
        self.action = output_layer(body, action_dim)

    def forward(self, obs: Tensor, latent: Tensor | None = None) -> Tensor:
        features = self.encoder(obs)
        if latent is None:
            latent = features.new_full((len(features), self.latent_dim), 0.5)
        if latent.dim() == 2:
            return torch.tanh(self.action(self.trunk(torch.cat([features, latent], -1))))
        rows = torch.cat([features.repeat_interleave(latent.shape[1], 0), latent.flatten(0, 1)], -1)
        return torch.tanh(self.action(self.trunk(rows))).unflatten(0, latent.shape[:2])


class UnitFeatures(nn.Module):
    """x / |x|: features of length 1, so that only the output layer sets the scale of values.

    Hussing et al. 2024, arXiv 2403.05996, "output feature normalization".
    """

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


def with_output(body: Body, num_outputs: int) -> nn.Sequential:
    """Return the trunk of a body and its output layer as one nn.Sequential: plasticity injection cuts it in two."""
    return nn.Sequential(*body.trunk, *output_modules(body, num_outputs))


def with_unit_features(body: Body) -> Body:
    """Return the body with features of length 1."""
    trunk = nn.Sequential(*body.trunk, UnitFeatures())
    return Body(body.encoder, trunk, body.num_features, body.output_gain, body.make_output)


VALUE_HEADS: dict[str, Callable[..., nn.Sequential]] = {
    "linear": lambda body, num_outputs=1: with_output(body, num_outputs),
    "unit": lambda body, num_outputs=1: with_output(with_unit_features(body), num_outputs),
}
"""Name -> `make(body)`: trunk and head of a critic, whose last layer has the one output; or `make(body, num_outputs)`,
which critics that learn by classification or quantiles need."""


def value_head(name: str, body: Body, num_outputs: int = 1) -> nn.Sequential:
    """Return trunk and head of a critic; ValueError for a head that has one output where more are needed."""
    make = VALUE_HEADS[name]
    if num_outputs == 1:
        return make(body)
    if len(inspect.signature(make).parameters) < 2:
        raise ValueError(f"the critic head {name!r} makes one output, critic_returns need {num_outputs}: give it an "
                         "argument num_outputs, or learn mean returns")  # fmt: skip
    return make(body, num_outputs)


class Critic(nn.Module):
    """One action value: forward(obs, action) gives Q(s, a), shape (batch,). Its body has action_dim as `extra_dim`.

    With `values`, a reading of `returns.py` of several outputs, Q is their mean; `whole=True` gives the outputs
    (batch, num_atoms) themselves.
    """

    def __init__(self, body: Body, head: str = "linear", values: Returns | None = None) -> None:
        super().__init__()
        self.values = values
        self.encoder, self.q = body.encoder, value_head(head, body, 1 if values is None else values.num_atoms)

    def forward(self, obs: Tensor, action: Tensor, whole: bool = False) -> Tensor:
        output = self.q(torch.cat([self.encoder(obs), action], -1))
        if self.values is None:
            return output.squeeze(-1)
        return output if whole else self.values.q(output)


class QNetwork(nn.Module):
    """Values of all actions: forward(obs) gives (batch, num_actions); with num_atoms > 1 an atom axis follows."""

    def __init__(self, body: Body, num_actions: int, num_atoms: int = 1) -> None:
        super().__init__()
        self.encoder, self.q = body.encoder, with_output(body, num_actions * num_atoms)
        self.num_atoms = num_atoms

    def forward(self, obs: Tensor) -> Tensor:
        q = self.q(self.encoder(obs))
        return q if self.num_atoms == 1 else q.unflatten(-1, (-1, self.num_atoms))


class DuelingQNetwork(nn.Module):
    """A QNetwork whose Q(s, a) = V(s) + A(s, a) - mean_b A(s, b) (Wang et al. 2016, arXiv 1511.06581, equation 9).

    V and A are streams of their own on a common body; both take its features.
    """

    def __init__(self, body: Body, value: Body, advantage: Body, num_actions: int, num_atoms: int = 1) -> None:
        super().__init__()
        self.encoder, self.trunk = body.encoder, body.trunk
        self.value, self.advantage = with_output(value, num_atoms), with_output(advantage, num_actions * num_atoms)
        self.num_atoms = num_atoms

    def forward(self, obs: Tensor) -> Tensor:
        features = self.trunk(self.encoder(obs))
        value = self.value(features).unsqueeze(1)
        advantage = self.advantage(features).unflatten(-1, (-1, self.num_atoms))
        q = value + advantage - advantage.mean(1, keepdim=True)
        return q.squeeze(-1) if self.num_atoms == 1 else q


def _linear(body: Body, num_actions: int, num_atoms: int, stream: Callable[[], Body]) -> nn.Module:
    return QNetwork(body, num_actions, num_atoms)


def _unit(body: Body, num_actions: int, num_atoms: int, stream: Callable[[], Body]) -> nn.Module:
    return QNetwork(with_unit_features(body), num_actions, num_atoms)


def _dueling(body: Body, num_actions: int, num_atoms: int, stream: Callable[[], Body]) -> nn.Module:
    return DuelingQNetwork(body, stream(), stream(), num_actions, num_atoms)


HEADS: dict[str, Callable[[Body, int, int, Callable[[], Body]], nn.Module]] = {
    "linear": _linear,
    "unit": _unit,
    "dueling": _dueling,
}
"""Name -> `make(body, num_actions, num_atoms, stream)`, a Q network; `stream()` is a new hidden layer on the body."""


class GaussianPolicy(nn.Module):
    """Policy whose spread does not depend on the observation: forward(obs) gives a Gaussian, std 1 before training."""

    squashed = False  # actions do not go through tanh

    def __init__(self, body: Body, action_dim: int) -> None:
        super().__init__()
        self.encoder, self.pi = body.encoder, with_output(body, action_dim)
        self.log_std = nn.Parameter(torch.zeros(action_dim))

    def forward(self, obs: Tensor) -> Gaussian:
        mean = self.pi(self.encoder(obs))
        return Gaussian(mean, self.log_std.expand_as(mean))


class CategoricalPolicy(nn.Module):
    """Policy over a list of actions: forward(obs) gives a Categorical."""

    def __init__(self, body: Body, num_actions: int) -> None:
        super().__init__()
        self.encoder, self.pi = body.encoder, with_output(body, num_actions)

    def forward(self, obs: Tensor) -> Categorical:
        return Categorical(self.pi(self.encoder(obs)))


class StateValue(nn.Module):
    """One state value: forward(obs) gives V(s), shape (batch,)."""

    def __init__(self, body: Body, head: str = "linear") -> None:
        super().__init__()
        self.encoder, self.v = body.encoder, value_head(head, body)

    def forward(self, obs: Tensor) -> Tensor:
        return self.v(self.encoder(obs)).squeeze(-1)


class Predictor(nn.Module):
    """Answers to examples: forward(obs) gives numbers, or the scores of classes, (batch, num_outputs)."""

    def __init__(self, body: Body, num_outputs: int) -> None:
        super().__init__()
        self.encoder, self.net = body.encoder, with_output(body, num_outputs)

    def forward(self, obs: Tensor) -> Tensor:
        output: Tensor = self.net(self.encoder(obs))
        return output


@torch.no_grad()
def orthogonal_(module: nn.Module, gain: float) -> None:
    """Draw every weight layer of `module` orthogonally, its biases 0; from PyTorch's global generator.

    Layers whose rows are of length 1 stay so.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not isinstance(layer, UnitLinear):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def squashed_gaussian(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return tanh(mean + std * noise) and its log-density, reparameterised: gradients flow into mean and log_std.

    mean, log_std, noise: (batch, action_dim), noise ~ N(0, 1). Returns action (batch, action_dim) and
    log_prob (batch,) = sum_i [log N(u_i; mean_i, std_i) - log(1 - tanh(u_i)^2)], Haarnoja et al. 2018, appendix C.
    As (u - mean) / std is the noise itself, the Gaussian term needs no division.
    """
    action = torch.tanh(mean + log_std.exp() * noise)
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    return action, (gaussian - torch.log(1 - action.square() + SQUASH_EPSILON)).sum(-1)
