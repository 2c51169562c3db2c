"""Small networks of many kinds, each with a batch, the same ones in every call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _batch(*shape: int) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return drawn.to(torch.get_default_device())


def mlp(samples: int = 16) -> tuple[nn.Sequential, Tensor]:
    """Return a perceptron and a batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), _batch(samples, 4)


def conv() -> tuple[nn.Module, Tensor]:
    """Return a convolutional network with in-place activations and a batch of images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 2)), _batch(16, 2, 6, 6)


class Block(nn.Module):
    """A residual block with a norm in front."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch to ``x``."""
        return x + self.down(torch.relu(self.up(self.norm(x))))


def residual() -> tuple[nn.Module, Tensor]:
    """Return a residual network with layer and batch norms, and a batch."""
    torch.manual_seed(0)
    stem = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU()]
    return nn.Sequential(*stem, Block(6), Block(6), nn.LayerNorm(6), nn.Linear(6, 2)), _batch(16, 4)


def transformer() -> tuple[nn.Module, Tensor]:
    """Return a transformer encoder with dropout, and a batch of sequences."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)), _batch(8, 3, 4)


class Gate(nn.Module):
    """A gated block: SwiGLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply two projections, one of them activated, and project the product."""
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def gated() -> tuple[nn.Module, Tensor]:
    """Return a network with gated units, and a batch."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Gate(6), nn.Linear(6, 2)), _batch(16, 4)


def dead() -> tuple[nn.Module, Tensor]:
    """Return a perceptron whose first layer never fires, and a batch."""
    model, x = mlp()
    with torch.no_grad():
        model[0].bias.fill_(-100)  # type: ignore[operator, union-attr]
    return model, x


def one_sample() -> tuple[nn.Module, Tensor]:
    """Return a perceptron and a batch of one sample."""
    return mlp(1)


def bfloat16() -> tuple[nn.Module, Tensor]:
    """Return a perceptron in bfloat16, and a batch."""
    model, x = mlp()
    return model.bfloat16(), x.bfloat16()


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": mlp,
    "conv": conv,
    "residual": residual,
    "transformer": transformer,
    "gated": gated,
    "dead": dead,
    "one sample": one_sample,
    "bfloat16": bfloat16,
}
"""Kind -> the network and a batch."""
