"""Bodies: what turns an observation into features, picked by name. Heads are in `networks.py`.

A body is an encoder, which sees the observation alone (a running norm, convolutions), and a trunk of fully connected
layers, to whose input a critic joins the action. All of them are plain modules, activations and norms too, so that
hooks see every neuron. What the networks look like, and who used them: `docs/agents/networks.md`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from .normalise import RunningNorm
from .parts import ACTIVATIONS, Residual, Scale, activated, he_truncated_, linear

Network = Literal["mlp", "simba", "bronet", "nature_cnn", "impala_cnn", "minatar_cnn"]
NormName = Literal["none", "layer", "rms"]
Activation = Literal["relu", "tanh", "gelu", "silu", "leaky_relu", "crelu"]


@dataclass(frozen=True)
class Architecture:
    """The options every agent has for its networks: a base of its config."""

    network: Network = "mlp"
    """Body of every network of the agent."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers (after the convolutions, for a CNN; of each residual block, for simba and bronet);
    None: what is usual for the network."""
    norm: NormName = "none"
    """Normalisation before every hidden activation; simba and bronet have layer norms of their own besides."""
    activation: Activation = "relu"
    """Hidden activation."""


class Body(nn.Module):
    """Features of an observation: ``trunk(cat([encoder(obs), extra]))``, (batch, num_features).

    ``extra`` (batch, extra_dim) is the action, for a critic. Heads that should be one nn.Sequential with the hidden
    layers in front of them, which plasticity injection asks for, take ``encoder`` and ``trunk`` apart.
    """

    def __init__(self, encoder: nn.Module, trunk: nn.Sequential, num_features: int) -> None:
        super().__init__()
        self.encoder, self.trunk, self.num_features = encoder, trunk, num_features

    def forward(self, obs: Tensor, extra: Tensor | None = None) -> Tensor:
        features = self.encoder(obs)
        return self.trunk(features if extra is None else torch.cat([features, extra], -1))


def make_body(architecture: Architecture, obs_shape: Sequence[int], hidden: Sequence[int], extra_dim: int = 0) -> Body:
    """Return a body for observations of `obs_shape`: (features,), or (channels, height, width) for a CNN.

    ``hidden``: see :attr:`Architecture.hidden` and :func:`widths`. ``extra_dim``: features that are joined to the input
    of the fully connected part. Raises ValueError for observations, widths and options that do not fit the network.
    """
    obs_shape = tuple(obs_shape)
    network, is_image = architecture.network, len(obs_shape) == 3
    fitting = IMAGE_NETWORKS if is_image else VECTOR_NETWORKS
    if len(obs_shape) not in (1, 3) or network not in fitting:
        kind = {1: "vectors", 3: "images (channels, height, width)"}.get(len(obs_shape))
        advice = f"networks for {kind} are {', '.join(fitting)}" if kind else "reshape or flatten them"
        raise ValueError(f"network {network!r} does not take observations of shape {obs_shape}: {advice}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden needs widths of at least 1, got {tuple(hidden)}")
    return fitting[network](architecture, obs_shape, tuple(hidden), extra_dim)


def widths(
    architecture: Architecture, role: Literal["policy", "value"], mlp: Sequence[int] = (256, 256)
) -> tuple[int, ...]:
    """Return the hidden widths: `hidden` if it is given, else what is usual for the network; `mlp` for mlp."""
    if architecture.hidden is not None:
        return tuple(architecture.hidden)
    return tuple(mlp) if architecture.network == "mlp" else USUAL[architecture.network][role]


USUAL: dict[str, dict[str, tuple[int, ...]]] = {
    "simba": {"policy": (128,), "value": (512, 512)},
    "bronet": {"policy": (256,), "value": (512, 512)},
    "nature_cnn": {"policy": (512,), "value": (512,)},
    "impala_cnn": {"policy": (256,), "value": (256,)},
    "minatar_cnn": {"policy": (128,), "value": (128,)},
}
"""Network -> role -> the widths of its paper."""


# --- bodies for vectors ---


def _layers(architecture: Architecture, num_inputs: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Linear, norm, activation for every entry of `hidden`, and the number of features at the end."""
    layers: list[nn.Module] = []
    for width in hidden:
        after, num_features = activated(architecture.norm, architecture.activation, width)
        layers += [nn.Linear(num_inputs, width), *after]
        num_inputs = num_features
    return nn.Sequential(*layers), num_inputs


def _mlp(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    return Body(nn.Identity(), *_layers(architecture, obs_shape[0] + extra_dim, hidden))


def _simba(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    """Running norm of the observation, Linear, pre-LN residual blocks, LayerNorm (Lee et al. 2024, arXiv 2410.09754).

    Initialised as in the authors' code: orthogonal in front, He in the blocks, biases 0. `norm` adds to its own norms.
    """
    width = _residual_width(architecture, hidden)

    def block() -> Residual:
        after, num_features = activated(architecture.norm, architecture.activation, 4 * width)
        wide, narrow = (linear(*size, he_truncated_) for size in ((width, 4 * width), (num_features, width)))
        return Residual(nn.LayerNorm(width), wide, *after, narrow)

    first = linear(obs_shape[0] + extra_dim, width, nn.init.orthogonal_)
    return Body(RunningNorm(obs_shape), nn.Sequential(first, *(block() for _ in hidden), nn.LayerNorm(width)), width)


def _bronet(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    """Linear, LayerNorm, activation, then residual blocks with a LayerNorm behind each of their two layers.

    Nauman et al. 2024, arXiv 2405.16158; initialised as in the authors' code, orthogonal of gain sqrt(2), biases 0.
    """
    width = _residual_width(architecture, hidden)
    if architecture.norm == "rms":
        raise ValueError("bronet has a LayerNorm before every activation and takes no other norm; got norm='rms'")
    if architecture.activation == "crelu":
        raise ValueError("bronet takes no crelu: what its blocks add would have half the features of the stream")
    activation, init = ACTIVATIONS[architecture.activation], partial(nn.init.orthogonal_, gain=math.sqrt(2))

    def block() -> Residual:
        first, second = linear(width, width, init), linear(width, width, init)
        return Residual(first, nn.LayerNorm(width), activation(), second, nn.LayerNorm(width))

    first = linear(obs_shape[0] + extra_dim, width, init)
    return Body(
        nn.Identity(), nn.Sequential(first, nn.LayerNorm(width), activation(), *(block() for _ in hidden)), width
    )


def _residual_width(architecture: Architecture, hidden: tuple[int, ...]) -> int:
    """The common width of all blocks, or an error."""
    if len(set(hidden)) != 1:
        raise ValueError(
            f"{architecture.network} has one residual block per entry of hidden, all of one width; got {hidden}"
        )
    return hidden[0]


# --- bodies for images ---


def _cnn(
    architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int,
    convolutions: Sequence[tuple[int, int, int]],
) -> Body:  # fmt: skip
    """Convolutions (channels, kernel size, stride) without padding, each with norm and activation, then the layers."""
    channels, smallest = obs_shape[0], 1
    layers: list[nn.Module] = [Scale()]
    for width, kernel, stride in convolutions:
        after, num_features = activated(architecture.norm, architecture.activation, width, image=True)
        layers += [nn.Conv2d(channels, width, kernel, stride), *after]
        channels = num_features
    for _, kernel, stride in reversed(convolutions):
        smallest = (smallest - 1) * stride + kernel
    if min(obs_shape[1:]) < smallest:
        raise ValueError(
            f"{architecture.network} needs images of at least {smallest} x {smallest}, got {obs_shape}; "
            "minatar_cnn takes small ones"
        )
    return _behind(nn.Sequential(*layers, nn.Flatten()), architecture, obs_shape, hidden, extra_dim)


def _impala_cnn(
    architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int
) -> Body:
    """Three times convolution, pooling and two residual blocks (Espeholt et al. 2018, arXiv 1802.01561, figure 3)."""
    after = partial(activated, architecture.norm, architecture.activation, image=True)

    def block(width: int) -> Residual:
        (first, num_features), (second, _) = after(width), after(width)
        convolutions = [nn.Conv2d(num_features, width, 3, padding=1) for _ in range(2)]
        return Residual(*first, convolutions[0], *second, convolutions[1])

    channels = obs_shape[0]
    layers: list[nn.Module] = [Scale()]
    for width in (16, 32, 32):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), block(width), block(width)]
        channels = width
    layers += after(channels)[0]
    return _behind(nn.Sequential(*layers, nn.Flatten()), architecture, obs_shape, hidden, extra_dim)


def _behind(
    encoder: nn.Module, architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int
) -> Body:
    """The fully connected layers behind an encoder, whose number of features is tried out."""
    with torch.no_grad():
        num_features = encoder(torch.zeros(1, *obs_shape)).shape[1]
    return Body(encoder, *_layers(architecture, num_features + extra_dim, hidden))


VECTOR_NETWORKS: dict[str, Callable[[Architecture, tuple[int, ...], tuple[int, ...], int], Body]] = {
    "mlp": _mlp,
    "simba": _simba,
    "bronet": _bronet,
}
IMAGE_NETWORKS: dict[str, Callable[[Architecture, tuple[int, ...], tuple[int, ...], int], Body]] = {
    "nature_cnn": partial(_cnn, convolutions=((32, 8, 4), (64, 4, 2), (64, 3, 1))),  # Mnih et al. 2015
    "impala_cnn": _impala_cnn,
    "minatar_cnn": partial(_cnn, convolutions=((16, 3, 1),)),  # Young & Tian 2019
}
