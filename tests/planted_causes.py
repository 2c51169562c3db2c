"""Networks with one planted cause each, whose diagnosis is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from plasticity.surgery.initialisers import weight_layers

WIDTH, OUT = 32, 3


class Residual(nn.Module):
    """Two residual blocks with LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, OUT)
        parts = (nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.blocks = nn.ModuleList(nn.Sequential(*map(_again, parts)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, outputs)."""
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def _again(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, module.out_features)
    return nn.LayerNorm(WIDTH) if isinstance(module, nn.LayerNorm) else nn.ReLU()


def mlp() -> nn.Module:
    """Return a perceptron with two hidden layers."""
    sizes = (nn.Linear(6, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))
    return nn.Sequential(*sizes)


def conv() -> nn.Module:
    """Return two convolutions and a hidden layer."""
    convs = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convs, nn.Linear(8 * 36, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUT))


BUILDERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "conv": (conv, (1, 6, 6)),
    "residual": (Residual, (6,)),
}
"""Name -> the network and the shape of one input."""


@dataclass
class Planted:
    """A trained network in which something was broken, and what ``diagnose`` is called with."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, Any], Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def hidden(self) -> list[nn.Module]:
        """Return the weight layers whose neurons are hidden units behind a ReLU, or all but the output."""
        if isinstance(self.model, Residual):
            return [block[1] for block in self.model.blocks]
        return [module for _, module in weight_layers(self.model)][:-1]

    def last(self) -> nn.Module:
        """Return the output layer."""
        return (
            [module for _, module in weight_layers(self.model)][-1]
            if not isinstance(self.model, Residual)
            else self.model.last
        )

    def settle(self) -> None:
        """Let a new optimizer get to know the gradients of the present weights, at rate 0."""
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.0)
        train(self, 20)
        self.optimizer.param_groups[0]["lr"] = RATE


RATE = 1e-3


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


@torch.enable_grad()
def train(planted: Planted, steps: int) -> None:
    """Take updates on the loss."""
    for step in range(steps):
        planted.optimizer.zero_grad()
        planted.loss(planted.model, planted.batches[step % len(planted.batches)]).backward()
        planted.optimizer.step()


def trained(network: str, seed: int) -> Planted:
    """Return a network after 100 updates on a smooth function."""
    torch.manual_seed(seed)
    build, shape = BUILDERS[network]
    model = build()
    x = torch.randn(256, *shape)
    y = torch.sin(x.flatten(1) @ torch.randn(x[0].numel(), OUT) / x[0].numel() ** 0.5 * 2)
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 256, 64)]
    planted = Planted(model, torch.optim.Adam(model.parameters(), RATE), batches, squared_error)
    planted.options["fresh"] = build
    train(planted, 100)
    return planted


def healthy(planted: Planted) -> None:
    """Break nothing."""


def young(planted: Planted) -> None:
    """Begin anew, and train for five updates only."""
    planted.model = planted.options["fresh"]()
    planted.optimizer = torch.optim.Adam(planted.model.parameters(), RATE)
    train(planted, 5)


def killed_neurons(planted: Planted) -> None:
    """Let nine tenths of the hidden neurons never fire."""
    for module in planted.hidden():
        num = int(0.9 * len(module.weight))
        module.weight[:num], module.bias[:num] = 0.0, -1.0
    planted.settle()


def huge_weights(planted: Planted) -> None:
    """Multiply all weights by 10."""
    for _, module in weight_layers(planted.model):
        module.weight.mul_(10)
    planted.optimizer = torch.optim.Adam(planted.model.parameters(), RATE)


def stale_moments(planted: Planted) -> None:
    """Let Adam remember gradients that were far larger."""
    for state in planted.optimizer.state.values():
        state["exp_avg_sq"].fill_(1e2)


def collapsed_features(planted: Planted) -> None:
    """Make all neurons of every hidden layer copies of one."""
    for _, module in weight_layers(planted.model):
        if module.weight is not planted.last().weight:
            module.weight.copy_(module.weight[:1].expand_as(module.weight))
            module.bias.fill_(1.0)  # so that the one is not dead
    last = planted.last().weight
    last.copy_(last[:, :1].expand_as(last))
    planted.optimizer = torch.optim.Adam(planted.model.parameters(), RATE)


def saturated_policy(planted: Planted) -> None:
    """Let the policy choose one action always; its weights are those of a healthy network."""
    planted.last().bias[0] += 30
    planted.options["policy"] = "softmax"
    planted.loss = lambda model, batch: -(model(batch[0]).softmax(-1) * batch[1]).sum(-1).mean()
    planted.optimizer = torch.optim.Adam(planted.model.parameters(), RATE)


def saturated_bounded_policy(planted: Planted) -> None:
    """Let the policy act at its bounds always; its weights are those of a healthy network."""
    build, signs = planted.options["fresh"], torch.tensor([1.0, -1.0, 1.0])
    planted.last().bias += 30 * signs
    planted.model = nn.Sequential(planted.model, nn.Tanh())
    planted.options |= {"policy": "bounded", "fresh": lambda: nn.Sequential(build(), nn.Tanh())}
    planted.loss = lambda model, batch: -(model(batch[0]) * batch[1]).sum(-1).mean()
    planted.optimizer = torch.optim.Adam(planted.model.parameters(), RATE)


def frozen_layer(planted: Planted) -> None:
    """Freeze all layers but the last."""
    for module in planted.model.modules():
        if module is not planted.last():
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.requires_grad_(False)


def broken_loss(planted: Planted) -> None:
    """Detach the outputs in the loss."""
    planted.loss = lambda model, batch: squared_error(lambda x: model(x).detach(), batch)


def rate_of_zero(planted: Planted) -> None:
    """Set the learning rate to 0."""
    planted.optimizer.param_groups[0]["lr"] = 0.0


def rate_too_large(planted: Planted) -> None:
    """Set the learning rate to 10."""
    planted.optimizer.param_groups[0]["lr"] = 10.0


CAUSES: dict[Callable[[Planted], None], str] = {
    healthy: "nothing is wrong",
    young: "nothing is wrong",
    killed_neurons: "dead neurons",
    huge_weights: "scale",
    stale_moments: "optimizer state",
    collapsed_features: "collapsed features",
    saturated_policy: "policy",
    saturated_bounded_policy: "policy",
    frozen_layer: "frozen",
    broken_loss: "loss",
    rate_of_zero: "rate",
    rate_too_large: "rate",
}
"""The way to break a network -> the cause that has to be named first."""


def plant(cause: Callable[[Planted], None], network: str, seed: int) -> Planted:
    """Return a trained network with a planted cause."""
    planted = trained(network, seed)
    with torch.no_grad():
        cause(planted)
    return planted
