"""The three cases of docs/diagnose.md: their verdicts, and the picture of what happens with and without the cure.

python docs/images/diagnose.py [FOLDER]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor, nn

import plasticity
from plasticity.interventions import Intervention, OptimizerReset, Reset

mpl.use("agg")
import matplotlib.pyplot as plt

Batches = list[tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, Any], Tensor]
Cure = Callable[[tuple[int, ...]], Intervention]


def network(inputs: int, outputs: int) -> nn.Module:
    """Return a perceptron with two hidden layers of 64."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def train(
    model: nn.Module, optimizer: Any, batches: Batches, loss: Loss, steps: int, methods: list[Intervention]
) -> list[float]:
    """Train, with methods at work, and return the losses."""
    ctx, losses = plasticity.Context({"model": model}, {"model": optimizer}), []
    plasticity.start(methods, ctx)
    for step in range(steps):
        value = loss(model, batches[step % len(batches)])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    for method in methods:
        method.on_train_end(ctx)
    return losses


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


# -- a stream of tasks -------------------------------------------------------------------------------------------------


def task(number: int, labelling: int = 0) -> Batches:
    """Return inputs around a mean of their own with a labelling of their own, or another one."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(512, 16, generator=generator) + 2 * torch.randn(16, generator=generator)
    directions = torch.randn(labelling + 1, 16, generator=generator) / 4
    y = torch.sign(torch.sin(2 * (x - x.mean(0)) @ directions[labelling])).unsqueeze(1)
    return [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]


def stream(cure: Cure | None) -> tuple[list[float], plasticity.Diagnosis | None]:
    """Train on 24 tasks, half of them with the cure; return the final loss of each, and the verdict in the middle."""
    torch.manual_seed(0)
    model, verdict, losses = network(16, 1), None, []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = [batch for number in range(24) for batch in task(number) * 25]
    if cure is None:
        losses = train(model, optimizer, batches[:2400], squared_error, 2400, [])
        build = lambda: network(16, 1)  # noqa: E731
        verdict = plasticity.diagnose(model, optimizer, task(12), squared_error, fresh=build, name="stream", budget=900)
        losses += train(model, optimizer, batches[2400:], squared_error, 2400, [])
    else:
        losses = train(model, optimizer, batches, squared_error, 4800, [cure(tuple(range(2400, 4800, 200)))])
    return [sum(losses[end - 8 : end]) / 8 for end in range(200, 4801, 200)], verdict


# -- a loss that changes its scale -------------------------------------------------------------------------------------


def rescaled(cure: Cure | None) -> tuple[list[float], plasticity.Diagnosis | None]:
    """Train on a sum of squares, then on the mean with another labelling; return losses and the verdict in between."""
    torch.manual_seed(0)
    model, verdict = network(16, 1), None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    summed: Loss = lambda m, b: 1000 * squared_error(m, b)  # noqa: E731
    before = train(model, optimizer, task(1), summed, 300, [])
    if cure is None:
        build = lambda: network(16, 1)  # noqa: E731
        verdict = plasticity.diagnose(
            model, optimizer, task(1, 1), squared_error, fresh=build, name="rescaled", budget=900
        )
    after = train(model, optimizer, task(1, 1), squared_error, 600, [] if cure is None else [cure((1,))])
    return [loss / 1000 for loss in before] + after, verdict


# -- a policy without entropy ------------------------------------------------------------------------------------------


def contexts(number: int) -> Batches:
    """Return contexts and the rewards of four actions in each."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(512, 8, generator=generator)
    reward = torch.tanh(x @ torch.randn(8, 4, generator=generator)) + 3 * (torch.arange(4) == number)
    return [(x[i : i + 64], reward[i : i + 64]) for i in range(0, 512, 64)]


def expected_reward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return minus the expected reward."""
    return -(model(batch[0]).softmax(-1) * batch[1]).sum(-1).mean()


def bandit(cure: Cure | None) -> tuple[list[float], plasticity.Diagnosis | None]:
    """Learn a policy for one set of rewards, then for another; return losses and the verdict in between."""
    torch.manual_seed(0)
    model, verdict = network(8, 4), None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = train(model, optimizer, contexts(0), expected_reward, 3000, [])
    if cure is None:
        build, how = lambda: network(8, 4), {"policy": "softmax", "name": "policy", "budget": 900}
        verdict = plasticity.diagnose(model, optimizer, contexts(1), expected_reward, fresh=build, **how)
    after = train(model, optimizer, contexts(1), expected_reward, 600, [] if cure is None else [cure((1,))])
    return before[-300:] + after, verdict


CASES = {
    "a stream of tasks": (stream, lambda at: Reset(at=at), "task", "final loss"),
    "a loss of another scale": (rescaled, lambda at: OptimizerReset(at=at), "update", "mean squared error"),
    "a policy without entropy": (bandit, lambda at: Reset(layers=1, at=at), "update", "minus expected reward"),
}


def smooth(losses: list[float], size: int) -> tuple[list[int], list[float]]:
    """Return positions and means of rounds of ``size`` losses."""
    starts = range(0, len(losses) - size + 1, size)
    return list(starts), [sum(losses[i : i + size]) / size for i in starts]


def main(folder: Path) -> None:
    """Print the verdicts and draw the picture."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for axis, (title, (case, cure, x, y)) in zip(axes, CASES.items(), strict=True):
        plain, verdict = case(None)
        cured, _ = case(cure)
        print(f"## {title}\n\n{verdict}\n")
        for losses, label in ((plain, "as before"), (cured, f"with {cure((1,)).NAME}")):
            axis.plot(*smooth(losses, 8 if x == "update" else 1), label=label)
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.legend()
    figure.tight_layout()
    figure.savefig(folder / "diagnose.png", dpi=110)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
