"""Small networks, one per way of building them that a measuring tool has to see through."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from plasticity.envs import Transition


class Net(nn.Module):
    """A module made of named parts and a function ``forward(self, *inputs)``."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function."""
        return self._forward(self, *args, **kwargs)


@dataclass
class Out:
    """An output that is a plain object."""

    value: Tensor
    policy: torch.distributions.Distribution


def linears(*sizes: int, **more: nn.Module) -> dict[str, nn.Module]:
    """Return the parts a, b, c, ... as linear layers between consecutive sizes."""
    pairs = pairwise(sizes)
    return {name: nn.Linear(i, o) for name, (i, o) in zip("abcdefg", pairs, strict=False)} | more


def mlp() -> nn.Module:
    """Return a plain perceptron."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def functional() -> nn.Module:
    """Return a perceptron whose activations are functions."""
    return Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), **linears(4, 6, 5, 2))


def shared_relu() -> nn.Module:
    """Return a perceptron with one activation module used twice."""
    return Net(lambda s, x: s.c(s.act(s.b(s.act(s.a(x))))), **linears(4, 6, 5, 2, act=nn.ReLU()))


def inplace() -> nn.Module:
    """Return a perceptron with in-place activation modules."""
    act = nn.ReLU(inplace=True)
    return nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 5), act, nn.Linear(5, 2))


def inplace_functional() -> nn.Module:
    """Return a perceptron that calls ``relu_`` and drops the result."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        F.relu_(h)
        h = s.b(h)
        h.view(-1).relu_()
        return s.c(h)

    return Net(forward, **linears(4, 6, 5, 2))


def odd_order() -> nn.Module:
    """Return a model whose modules are registered in another order than they run."""

    def forward(s: Any, x: Tensor) -> Tensor:
        for i in (2, 0, 1):
            x = s.layers[i](x).relu() if i != 1 else s.layers[i](x)
        return x

    return Net(forward, layers=nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 2), nn.Linear(4, 6)]))


def two_heads(activation: nn.Module | None = None) -> nn.Module:
    """Return a trunk with two heads, returned as a dictionary."""

    def forward(s: Any, x: Tensor) -> dict[str, Tensor]:
        h = s.act(s.a(x))
        return {"mean": s.mean(h), "log_std": s.log_std(h)}

    heads = {"mean": nn.Linear(6, 2), "log_std": nn.Linear(6, 2)}
    return Net(forward, **heads, a=nn.Linear(4, 6), act=activation or nn.ReLU())


def conv_nchw() -> nn.Module:
    """Return a convolutional net with a flatten in torch's order."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(),
        nn.Linear(5, 2),
    )  # fmt: skip


def conv_nhwc() -> nn.Module:
    """Return a convolutional net that flattens with the channels last."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.fc(F.relu(s.conv(x)).permute(0, 2, 3, 1).flatten(1))

    return Net(forward, conv=nn.Conv2d(2, 3, 3), fc=nn.Linear(48, 2))


def pooled(pool: nn.Module) -> nn.Module:
    """Return a convolutional net with a pooling before the flatten."""
    with torch.device("cpu"):
        net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2))
        net(torch.zeros(1, 2, 6, 6))  # the lazy layer takes its shape
    return net.to(torch.get_default_device())


def global_mean() -> nn.Module:
    """Return a convolutional net that averages over space by a tensor method."""
    return Net(lambda s, x: s.fc(s.conv(x).relu().mean((2, 3))), conv=nn.Conv2d(2, 3, 3), fc=nn.Linear(3, 2))


class Block(nn.Module):
    """A residual block: norm, widen, activate, narrow, add."""

    def __init__(self, width: int, norm: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up, self.down, self.act = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to ``x``."""
        return x + self.down(self.act(self.up(self.norm(x))))


def residual(depth: int = 2, width: int = 6, norm: bool = True) -> nn.Module:
    """Return a residual net with a norm before every branch."""
    blocks = [Block(width, norm) for _ in range(depth)]
    return nn.Sequential(nn.Linear(4, width), *blocks, nn.LayerNorm(width) if norm else nn.ReLU(), nn.Linear(width, 2))


def norm_before(norm: nn.Module | None = None) -> nn.Module:
    """Return a perceptron with a norm between the layer and its activation."""
    return nn.Sequential(nn.Linear(4, 6), norm or nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))


def norm_after() -> nn.Module:
    """Return a perceptron with a norm behind the activation."""
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 2)
    )


def batchnorm_conv() -> nn.Module:
    """Return a convolution with BatchNorm and dropout."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(48, 2)
    )


def critic() -> nn.Module:
    """Return a Q function that takes the action in its second layer."""

    def forward(s: Any, obs: Tensor, action: Tensor) -> Tensor:
        return s.c(F.relu(s.b(torch.cat([F.relu(s.a(obs)), action], -1)))).squeeze(-1)

    return Net(forward, a=nn.Linear(4, 6), b=nn.Linear(8, 5), c=nn.Linear(5, 1))


def crelu() -> nn.Module:
    """Return a net with concatenated rectifiers: two columns per neuron."""

    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        return s.b(torch.cat([F.relu(h), F.relu(-h)], -1))

    return Net(forward, a=nn.Linear(4, 6), b=nn.Linear(12, 2))


def glu() -> nn.Module:
    """Return a gated linear unit."""
    return nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 2))


def swiglu() -> nn.Module:
    """Return a gated unit of two layers."""
    return Net(lambda s, x: s.c(F.silu(s.a(x)) * s.b(x)), a=nn.Linear(4, 6), b=nn.Linear(4, 6), c=nn.Linear(6, 2))


def transformer(activation: str = "relu") -> nn.Module:
    """Return an encoder layer between an input projection and a head."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation=activation, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2))


def lstm() -> nn.Module:
    """Return a recurrent core between two layers."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.b(s.core(F.relu(s.a(x)))[0][:, -1])

    return Net(forward, a=nn.Linear(4, 6), core=nn.LSTM(6, 5, batch_first=True), b=nn.Linear(5, 2))


def embedding() -> nn.Module:
    """Return a net on integer inputs."""
    return nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def unused() -> nn.Module:
    """Return a net with a layer that never runs and one that runs twice."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.c(F.relu(s.b(F.relu(s.b(F.relu(s.a(x)))))))

    return Net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 6), c=nn.Linear(6, 2), never=nn.Linear(3, 3))


def transposed() -> nn.Module:
    """Return a decoder with a transposed convolution."""
    return nn.Sequential(nn.ConvTranspose2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))


def grouped() -> nn.Module:
    """Return grouped and depthwise convolutions."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2),
        nn.ReLU(), nn.Flatten(), nn.Linear(24, 2),
    )  # fmt: skip


def checkpointed(use_reentrant: bool) -> nn.Module:
    """Return a net that computes its middle again in the backward pass."""

    def forward(s: Any, x: Tensor) -> Tensor:
        return s.c(checkpoint(lambda h: F.relu(s.b(h)), F.relu(s.a(x)), use_reentrant=use_reentrant))

    return Net(forward, **linears(4, 6, 5, 2))


def to_distribution() -> nn.Module:
    """Return a policy whose output is an object with a distribution."""

    def forward(s: Any, x: Tensor) -> Out:
        h = F.relu(s.a(x))
        return Out(s.value(h), torch.distributions.Normal(s.mean(h), 1.0))

    return Net(forward, a=nn.Linear(4, 6), value=nn.Linear(6, 1), mean=nn.Linear(6, 2))


def here(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what is made on the default device."""
    return make(*args, device=torch.get_default_device(), **options)


def place() -> str:
    """Return the type of the default device."""
    return torch.get_default_device().type


def on(device: torch.device | str, value: Any) -> Any:
    """Return a tensor, or a dataclass of tensors, on a device; None in it stays None."""
    if isinstance(value, Tensor):
        return value.to(device)
    kind = Transition if isinstance(value, Transition) else type(value)
    found = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return kind(**{name: None if x is None else x.to(device) for name, x in found.items()})


def learn_and_save(agent: Any, batch: Any = None) -> None:
    """Learn from a batch, or from what was seen; the losses are looked at before the state is saved at the latest."""
    agent.update() if batch is None else agent.learn(batch)
    agent.state_dict()


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of the default device."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
    """Return normal numbers on the default device, the same ones on every device."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, device="cpu")
    return drawn.to(torch.get_default_device())


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that comes out of an operation."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(found) if isinstance(x, Tensor))])
        return found


def image(num: int = 32) -> Tensor:
    """Return small images."""
    return torch.randn(num, 2, 6, 6)


def vectors(num: int = 16) -> Tensor:
    """Return input vectors."""
    return torch.randn(num, 4)


def sequences(num: int = 4) -> Tensor:
    """Return sequences of vectors."""
    return torch.randn(num, 3, 4)


ALL: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple]]] = {
    "mlp": (mlp, lambda: (vectors(),)),
    "functional": (functional, lambda: (vectors(),)),
    "functional 3d": (functional, lambda: (sequences(),)),
    "shared relu": (shared_relu, lambda: (vectors(),)),
    "inplace": (inplace, lambda: (vectors(),)),
    "inplace 3d": (inplace, lambda: (sequences(),)),
    "inplace functional": (inplace_functional, lambda: (vectors(),)),
    "inplace functional 3d": (inplace_functional, lambda: (sequences(),)),
    "odd order": (odd_order, lambda: (vectors(),)),
    "two heads": (two_heads, lambda: (vectors(),)),
    "conv nchw": (conv_nchw, lambda: (image(),)),
    "conv nhwc": (conv_nhwc, lambda: (image(),)),
    "conv unbatched": (lambda: nn.Sequential(*list(conv_nchw())[:4]), lambda: (image(1)[0],)),
    "max pool": (lambda: pooled(nn.MaxPool2d(2)), lambda: (image(),)),
    "avg pool": (lambda: pooled(nn.AvgPool2d(2)), lambda: (image(),)),
    "adaptive avg pool": (lambda: pooled(nn.AdaptiveAvgPool2d(2)), lambda: (image(),)),
    "adaptive avg pool 1": (lambda: pooled(nn.AdaptiveAvgPool2d(1)), lambda: (image(),)),
    "adaptive max pool": (lambda: pooled(nn.AdaptiveMaxPool2d(2)), lambda: (image(),)),
    "upsample": (lambda: pooled(nn.Upsample(scale_factor=2)), lambda: (image(),)),
    "global mean": (global_mean, lambda: (image(),)),
    "residual": (residual, lambda: (vectors(),)),
    "residual without norm": (lambda: residual(norm=False), lambda: (vectors(),)),
    "norm before": (norm_before, lambda: (vectors(),)),
    "rms norm before": (lambda: norm_before(nn.RMSNorm(6)), lambda: (vectors(),)),
    "batch norm before": (lambda: norm_before(nn.BatchNorm1d(6)), lambda: (vectors(),)),
    "norm after": (norm_after, lambda: (vectors(),)),
    "batchnorm conv": (batchnorm_conv, lambda: (image(),)),
    "critic": (critic, lambda: (vectors(), torch.randn(16, 2))),
    "crelu": (crelu, lambda: (vectors(),)),
    "glu": (glu, lambda: (vectors(),)),
    "swiglu": (swiglu, lambda: (vectors(),)),
    "transformer": (transformer, lambda: (sequences(),)),
    "lstm": (lstm, lambda: (sequences(),)),
    "embedding": (embedding, lambda: (torch.randint(7, (16,)),)),
    "unused": (unused, lambda: (vectors(),)),
    "transposed": (transposed, lambda: (image(),)),
    "grouped": (grouped, lambda: (image(),)),
    "checkpointed": (lambda: checkpointed(False), lambda: (vectors(),)),
    "checkpointed reentrant": (lambda: checkpointed(True), lambda: (vectors().requires_grad_(),)),
    "to distribution": (to_distribution, lambda: (vectors(),)),
}
"""Name -> (build the model, draw its inputs)."""


def build(name: str, seed: int = 0) -> tuple[nn.Module, tuple]:
    """Return the model, run once, and its inputs: the same ones for the same seed."""
    torch.manual_seed(seed)
    make, draw = ALL[name]
    model, inputs = make(), draw()
    model(*inputs)
    model.zero_grad()
    return model, inputs
