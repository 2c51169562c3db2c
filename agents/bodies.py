"""Bodies, from an observation to features, picked by name. Heads are in `networks.py`.

A body is an encoder, which sees the observation alone (a running norm, convolutions), and a trunk of fully connected
layers, to whose input a critic joins the action. All of them are plain modules, activations and norms too, so that
hooks see every neuron. What the networks look like, and who used them: `docs/agents/networks.md`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from .batch_norm import BatchRenorm
from .choices import OneOf, Settings, pick
from .experts import SoftMoE, Tokens
from .hypersphere import simba2_layers, simba2_output
from .normalise import RunningNorm
from .parts import ACTIVATIONS, NORMS, MultiSkip, Residual, Scale, activated, expansion, he_truncated_, linear


@dataclass(frozen=True)
class Network:
    """A kind of body: an entry of `NETWORKS`."""

    make: "Callable[[Architecture, tuple[int, ...], tuple[int, ...], int], Body]"
    """`make(architecture, obs_shape, hidden, extra_dim)` returns a new body."""
    images: bool = False
    """True if it takes images (channels, height, width); otherwise it takes vectors (features,)."""
    policy: tuple[int, ...] | None = None
    """Usual widths of a policy's hidden layers; None: the agent's own."""
    value: tuple[int, ...] | None = None
    """Usual widths of a value network's hidden layers; None: the agent's own."""
    orthogonal: bool = False
    """True if PPO draws its weights orthogonally; otherwise they keep the initialisation that `make` gives them."""


NETWORKS: dict[str, Network] = {}
"""Bodies by name, filled in below; users may add their own."""


@dataclass(frozen=True)
class Architecture(Settings):
    """The options every agent has for its networks: a base of its config."""

    network: Annotated[str, OneOf(NETWORKS)] = "mlp"
    """Body of every network of the agent."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers (after the convolutions, for a CNN; of each residual block, for simba and bronet);
    None: what is usual for the network."""
    norm: Annotated[str, OneOf(NORMS)] = "none"
    """Normalisation before every hidden activation; simba and bronet have layer norms of their own besides."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    """Hidden activation."""
    outputs: Literal["own", "default"] = "own"
    """Output layers: own, with the first weights of the network's authors (simba, bronet) or also their layers
    (simba2), or PyTorch's default."""


class Body(nn.Module):
    """Features of an observation: ``trunk(cat([encoder(obs), extra]))``, (batch, num_features).

    ``extra`` (batch, extra_dim) is the action, for a critic. Heads that should be one nn.Sequential with the hidden
    layers in front of them, which plasticity injection asks for, take ``encoder`` and ``trunk`` apart.
    """

    def __init__(
        self,
        encoder: nn.Module,
        trunk: nn.Sequential,
        num_features: int,
        output_gain: float | None = None,
        make_output: Callable[[int, int], list[nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.trunk, self.num_features = encoder, trunk, num_features
        self.make_output = make_output
        """`make_output(num_features, num_outputs)` returns output layers of its own; None: one Linear layer."""
        self.output_gain = output_gain
        """Gain of orthogonal output layers on it, with biases of 0; None: PyTorch's default initialisation."""

    def forward(self, obs: Tensor, extra: Tensor | None = None) -> Tensor:
        features = self.encoder(obs)
        return self.trunk(features if extra is None else torch.cat([features, extra], -1))


def make_body(architecture: Architecture, obs_shape: Sequence[int], hidden: Sequence[int], extra_dim: int = 0) -> Body:
    """Return a body for observations of `obs_shape`: (features,), or (channels, height, width) for a CNN.

    ``hidden``: see :attr:`Architecture.hidden` and :func:`widths`. ``extra_dim``: features that are joined to the input
    of the fully connected part. Raises ValueError for observations, widths and options that do not fit the network.
    """
    obs_shape, name = tuple(obs_shape), architecture.network
    network, kind = pick(NETWORKS, name, "network"), {1: "vectors", 3: "images (channels, height, width)"}
    if len(obs_shape) != (3 if network.images else 1):
        fitting = [other for other, one in NETWORKS.items() if one.images == (len(obs_shape) == 3)]
        known = kind.get(len(obs_shape))
        advice = f"networks for {known} are {', '.join(fitting)}" if known else "reshape or flatten them"
        raise ValueError(f"network {name!r} does not take observations of shape {obs_shape}: {advice}")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden needs widths of at least 1, got {tuple(hidden)}")
    return network.make(architecture, obs_shape, tuple(hidden), extra_dim)


def widths(
    architecture: Architecture, role: Literal["policy", "value"], default: Sequence[int] = (256, 256)
) -> tuple[int, ...]:
    """Return the hidden widths: `hidden` if it is given, else those usual for the network; `default`: the agent's."""
    if architecture.hidden is not None:
        return tuple(architecture.hidden)
    usual: tuple[int, ...] | None = getattr(NETWORKS[architecture.network], role)
    return tuple(default) if usual is None else usual


# --- bodies for vectors ---


def _layers(architecture: Architecture, num_inputs: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Return Linear, norm, activation for every entry of `hidden`, and the number of features at the end."""
    layers: list[nn.Module] = []
    for width in hidden:
        after, num_features = activated(architecture.norm, architecture.activation, width)
        layers += [nn.Linear(num_inputs, width), *after]
        num_inputs = num_features
    return nn.Sequential(*layers), num_inputs


def _mlp(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    return Body(nn.Identity(), *_layers(architecture, obs_shape[0] + extra_dim, hidden))


NORM_EPSILON = 1e-6
"""Of the LayerNorms of SimBa and BroNet, as in the released code; torch's own is 1e-5."""


def _simba(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    """Return a running norm, Linear, pre-LN residual blocks, LayerNorm (Lee et al. 2024, arXiv 2410.09754).

    Initialised as in the authors' code (SonyResearch/simba): orthogonal in front and in output layers, He in the
    blocks, biases 0. `norm` adds to its own norms.
    """
    width = _residual_width(architecture, hidden)

    def block() -> Residual:
        after, num_features = activated(architecture.norm, architecture.activation, 4 * width)
        wide, narrow = (linear(*size, he_truncated_) for size in ((width, 4 * width), (num_features, width)))
        return Residual(nn.LayerNorm(width, NORM_EPSILON), wide, *after, narrow)

    first = linear(obs_shape[0] + extra_dim, width, nn.init.orthogonal_)
    return Body(
        RunningNorm(obs_shape),
        nn.Sequential(first, *(block() for _ in hidden), nn.LayerNorm(width, NORM_EPSILON)),
        width,
        _output_gain(architecture, 1.0),
    )


def _bronet(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    """Return Linear, LayerNorm, activation, then residual blocks with a LayerNorm behind each of their two layers.

    Nauman et al. 2024, arXiv 2405.16158; initialised as in the authors' code (naumix/BiggerRegularizedOptimistic),
    orthogonal of gain sqrt(2), output layers too (1 for the log standard deviation), biases 0.
    """
    width = _residual_width(architecture, hidden)
    if architecture.norm == "rms":
        raise ValueError("bronet has a LayerNorm before every activation and takes no other norm; got norm='rms'")
    activation, init = ACTIVATIONS[architecture.activation], partial(nn.init.orthogonal_, gain=math.sqrt(2))
    if expansion(activation()) != 1:
        raise ValueError(f"bronet takes no {architecture.activation}: its blocks and its stream would differ in width")

    def block() -> Residual:
        first, second = linear(width, width, init), linear(width, width, init)
        return Residual(
            first, nn.LayerNorm(width, NORM_EPSILON), activation(), second, nn.LayerNorm(width, NORM_EPSILON)
        )

    first = linear(obs_shape[0] + extra_dim, width, init)
    return Body(
        nn.Identity(),
        nn.Sequential(first, nn.LayerNorm(width, NORM_EPSILON), activation(), *(block() for _ in hidden)),
        width,
        _output_gain(architecture, math.sqrt(2)),
    )


def _output_gain(architecture: Architecture, released: float) -> float | None:
    return released if architecture.outputs == "own" else None


def _residual_width(architecture: Architecture, hidden: tuple[int, ...]) -> int:
    """Return the common width of all blocks; ValueError where they differ."""
    if len(set(hidden)) != 1:
        raise ValueError(
            f"{architecture.network} has one residual block per entry of hidden, all of one width; got {hidden}"
        )
    return hidden[0]


def _simba2(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    """Return a running norm, then features and weights on unit spheres (Lee et al. 2025, arXiv 2502.15280).

    The projection of the weights after every step is the method `hyperspherical`. Compared with the released code
    (DAVIAN-Robotics/SimbaV2), body and output layers, ten steps of Adam with that projection in float64: equal to
    1e-15, but for the 1e-8 that it adds to every ReLU, which lets Adam move the columns of silent neurons.
    """
    width = _residual_width(architecture, hidden)
    if architecture.norm != "none" or architecture.activation != "relu":
        raise ValueError("simba2 has unit features in the place of norms, and ReLU: leave norm and activation alone")
    trunk = simba2_layers(obs_shape[0] + extra_dim, width, len(hidden))
    own = simba2_output if architecture.outputs == "own" else None
    return Body(RunningNorm(obs_shape), trunk, width, make_output=own)


def _skipped(architecture: Architecture, num_inputs: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Return the layers of `_layers`, each of which gets the first input, too, and their number of features."""
    layers: list[nn.Module] = []
    features = 0
    for width in hidden:
        after, num_features = activated(architecture.norm, architecture.activation, width)
        layers.append(nn.Sequential(nn.Linear(num_inputs + features, width), *after))
        features = num_features
    return nn.Sequential(MultiSkip(layers)), features


def _multi_skip(
    architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int
) -> Body:
    """Return an MLP whose layers all get the input (multi-skip of Creus Castanyer et al. 2025, arXiv 2506.15544)."""
    if not hidden:
        raise ValueError("multi_skip needs a hidden layer; got none")
    return Body(nn.Identity(), *_skipped(architecture, obs_shape[0] + extra_dim, hidden))


def _crossq(architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int) -> Body:
    """Return an MLP with a batch norm in front of every layer, the output layer too (Bhatt et al. 2024, CrossQ)."""
    if architecture.norm != "none":
        raise ValueError("crossq has batch norms and takes no other norm: leave norm alone")
    num_inputs = obs_shape[0] + extra_dim
    layers: list[nn.Module] = [BatchRenorm(num_inputs)]
    for width in hidden:
        after, num_features = activated("none", architecture.activation, width)
        layers += [nn.Linear(num_inputs, width), *after, BatchRenorm(num_features)]
        num_inputs = num_features
    return Body(nn.Identity(), nn.Sequential(*layers), num_inputs)


# --- bodies for images ---


def _convolutions(
    architecture: Architecture, obs_shape: tuple[int, ...], convolutions: Sequence[tuple[int, int, int]]
) -> list[nn.Module]:
    """Return convolutions (channels, kernel, stride) without padding, with norm and activation."""
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
    return layers


def _cnn(
    architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int,
    convolutions: Sequence[tuple[int, int, int]],
) -> Body:  # fmt: skip
    """Return convolutions, then the layers."""
    layers = _convolutions(architecture, obs_shape, convolutions)
    return _behind(nn.Sequential(*layers, nn.Flatten()), architecture, obs_shape, hidden, extra_dim)


def _softmoe(
    architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int,
    convolutions: Sequence[tuple[int, int, int]] = (),
) -> Body:  # fmt: skip
    """Return a soft mixture of an expert per entry of `hidden`, behind convolutions or, of vectors, a first layer.

    Every position of the images is a token. A critic that takes actions has a hidden layer behind it, as wide as an
    expert, for these.
    """
    if not hidden:
        raise ValueError("softmoe needs an expert, an entry of hidden; got none")
    if expansion(ACTIVATIONS[architecture.activation]()) != 1:
        raise ValueError(f"softmoe takes no {architecture.activation}: its features are along the axis of the slots")
    after = partial(activated, architecture.norm, architecture.activation)
    if convolutions:
        layers = _convolutions(architecture, obs_shape, convolutions)
    else:
        first, _ = after(hidden[0])
        layers = [nn.Linear(obs_shape[0], hidden[0]), *first]
    layers.append(Tokens())
    with torch.no_grad():
        _, num_tokens, size = nn.Sequential(*layers)(torch.zeros(1, *obs_shape)).shape
    encoder = nn.Sequential(*layers, SoftMoE(num_tokens, size, hidden, after), nn.Flatten())
    return Body(encoder, *_layers(architecture, num_tokens * size + extra_dim, hidden[:1] if extra_dim else ()))


def _impala_cnn(
    architecture: Architecture, obs_shape: tuple[int, ...], hidden: tuple[int, ...], extra_dim: int
) -> Body:
    """Return convolution, pooling, two residual blocks, three times (Espeholt et al. 2018, 1802.01561, figure 3)."""
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
    """Return the fully connected layers behind an encoder, whose number of features is found by a pass of zeros."""
    with torch.no_grad():
        num_features = encoder(torch.zeros(1, *obs_shape)).shape[1]
    return Body(encoder, *_layers(architecture, num_features + extra_dim, hidden))


NETWORKS |= {
    "mlp": Network(_mlp, orthogonal=True),
    "multi_skip": Network(_multi_skip, orthogonal=True),
    "simba2": Network(_simba2, policy=(128,), value=(512, 512)),
    "crossq": Network(_crossq, policy=(256, 256), value=(2048, 2048)),
    "softmoe": Network(_softmoe, policy=(64,) * 4, value=(64,) * 4),
    "simba": Network(_simba, policy=(128,), value=(512, 512)),
    "bronet": Network(_bronet, policy=(256,), value=(512, 512)),
    "nature_cnn": Network(  # Mnih et al. 2015
        partial(_cnn, convolutions=((32, 8, 4), (64, 4, 2), (64, 3, 1))),
        images=True, policy=(512,), value=(512,), orthogonal=True,
    ),
    "impala_cnn": Network(_impala_cnn, images=True, policy=(256,), value=(256,)),
    "softmoe_cnn": Network(  # of Nature's convolutions
        partial(_softmoe, convolutions=((32, 8, 4), (64, 4, 2), (64, 3, 1))),
        images=True, policy=(512,) * 4, value=(512,) * 4,
    ),
    "minatar_cnn": Network(  # Young & Tian 2019
        partial(_cnn, convolutions=((16, 3, 1),)), images=True, policy=(128,), value=(128,), orthogonal=True
    ),
}  # fmt: skip
