"""A regression whose teacher changes: the stream on which the recycling and growing methods are compared.

Every task has a new random teacher (one hidden layer, tanh, and an output level of its own, as values in RL drift); a
student meets ``steps`` minibatches of it and then the
next. What counts is how well the *last* tasks are fitted: a student that keeps its plasticity fits them as the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUTS, OUTPUTS = 16, 4
LEVEL = 20.0
"""Standard deviation of the teachers' output level. Without it no network here lost any plasticity in 50 tasks."""


def teacher(generator: torch.Generator) -> nn.Module:
    """Return a fixed random network from INPUTS to OUTPUTS: about unit variance round a level far from 0."""
    first = torch.randn(64, INPUTS, generator=generator) * 2 / INPUTS**0.5
    second = torch.randn(OUTPUTS, 64, generator=generator) / 64**0.5
    level = torch.randn(OUTPUTS, generator=generator) * LEVEL

    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ first.T) @ second.T * 1.5 + level

    return Teacher()


class ResidualNet(nn.Module):
    """BRO-like: Linear, LayerNorm, ReLU, then residual blocks of Linear-LN-ReLU-Linear-LN, then the head."""

    def __init__(self, width: int = 64, blocks: int = 2) -> None:
        super().__init__()
        self.inp = nn.Sequential(nn.Linear(INPUTS, width), nn.LayerNorm(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width)
            )
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


def mlp(width: int = 256) -> nn.Module:
    """Return a ReLU network with two hidden layers."""
    return nn.Sequential(
        nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, OUTPUTS)
    )


def learn_stream(
    net: nn.Module, methods: list, *, seed: int, tasks: int, steps: int, lr: float, batch: int = 64
) -> dict[str, list[float]]:
    """Train ``net`` on the stream with ``methods`` on; return the final loss of each task and the inactive ratios.

    The loss of a task is the mean over its last tenth of steps. Ratios (both at threshold 0.1) are measured on a
    fixed batch after each task.
    """
    import plasticity
    from plasticity import Context, fire
    from plasticity.probes import Dormancy, GradientActivity

    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.Adam(net.parameters(), lr)
    ctx = Context({"net": net}, {"net": optimizer}, name="the drifting-teacher regression")
    fire(methods, "on_train_start", ctx)
    held_out = torch.randn(512, INPUTS, generator=generator)
    rows: dict[str, list[float]] = {"loss": [], "dormant": [], "inactive": []}
    for _ in range(tasks):
        target, losses = teacher(generator), []
        for step in range(steps):
            x = torch.randn(batch, INPUTS, generator=generator)
            loss = (net(x) - target(x)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= steps * 9 // 10:
                losses.append(loss.item())
        probes = {"dormancy": Dormancy(0.1), "grama": GradientActivity("pre", 0.1)}
        reading = plasticity.measure(net, (held_out, target(held_out)), nn.functional.mse_loss, probes=probes)
        rows["loss"].append(sum(losses) / len(losses))
        rows["dormant"].append(reading.values["dormancy"]["all"])
        rows["inactive"].append(reading.values["grama"]["all"])
    fire(methods, "on_train_end", ctx)
    return rows
