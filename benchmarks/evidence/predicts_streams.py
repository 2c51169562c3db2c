"""Streams of tasks for ``predicts.py``: a network after some of their tasks, and how it learns the next with a method.

``bitflip``, ``permuted-digits`` and ``random-labels`` are the streams of the package (``plasticity.envs.examples``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import plasticity
from plasticity.envs.examples import SOURCES
from plasticity.envs.stream import TaskPlan

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Branch(TaskPlan):
    """The tasks of a stream, drawn from ``own`` instead of ``seed`` from task ``since`` on."""

    own: int = 0
    since: int = 0

    def seed_of(self, task: int) -> int:
        """Return the seed from which a task is drawn."""
        return self.own if task >= self.since else self.seed

    def generator(self, kind: str, task: int) -> np.random.Generator:
        """Return the generator of what is drawn for a task."""
        return TaskPlan(self.seed_of(task)).generator(kind, task)


@dataclass(frozen=True)
class Stream:
    """A network, the minibatches of each of its tasks, and what it is scored by."""

    build: Callable[[], nn.Module]
    batches: Callable[[Branch, int], list[Batch]]
    error: Callable[[Tensor, Tensor], Tensor]
    """(outputs, targets) -> 0-D; the score is minus its mean while learning."""
    period: int
    """Updates of a task."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of training."""
        return error_of(model(batch[0]), batch[1])


def error_of(output: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy for classes, or the mean squared error."""
    if target.dtype == torch.int64:
        return F.cross_entropy(output, target)
    return (output.reshape(target.shape) - target).square().mean()


def wrong(output: Tensor, target: Tensor) -> Tensor:
    """Return the share of wrong answers."""
    return (output.argmax(-1) != target).float().mean()


def examples(name: str, size: int, plan: Branch, task: int) -> list[Batch]:
    """Return the minibatches of a task of one of the package's streams."""
    source = SOURCES[name]
    drawn = np.random.default_rng([plan.seed_of(task), task])
    x, y = source.draw(plan, task, drawn, source.tasks.steps or 0, False)
    inputs, answers = torch.from_numpy(x).float(), torch.from_numpy(y)
    answers = answers.long() if source.num_classes else answers.float()
    return list(zip(inputs.split(size), answers.split(size), strict=True))


def perceptron(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Module:
    """Return a ReLU network."""
    sizes = [inputs, *hidden]
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


DIGITS = partial(perceptron, 64, (100, 100, 100), 10)
STREAMS = {
    "bitflip": Stream(partial(perceptron, 21, (5,), 1), partial(examples, "bitflip", 20), error_of, 500),
    "permuted-digits": Stream(DIGITS, partial(examples, "permuted-digits", 16), wrong, 113),
    "random-labels": Stream(DIGITS, partial(examples, "random-labels", 16), wrong, 375),
}
POINTS = {
    "bitflip": ((3e-3, 3e-2), (5, 20)),
    "permuted-digits": ((3e-3, 1e-2), (5, 20, 60)),
    "random-labels": ((1e-3, 3e-3), (3, 10)),
}
"""Stream -> rates of Adam, and numbers of tasks after which the network is looked at."""
AFTER = {"bitflip": 3, "permuted-digits": 5, "random-labels": 2}
"""Stream -> tasks after a point."""


@dataclass(frozen=True)
class Aged:
    """A network after some tasks, its optimizer, and its weights before the first."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    initial: dict[str, Tensor]


@cache
def aged(name: str, lr: float, tasks: int) -> Aged:
    """Return the network of a point; copy it before it learns."""
    torch.manual_seed(0)
    model = STREAMS[name].build()
    initial = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr)
    learn(STREAMS[name], model, optimizer, Branch(), range(tasks))
    return Aged(model, optimizer, initial)


def go_on(name: str, lr: float, tasks: int, seed: int, method: Any) -> float:
    """Return the score of the network of a point in the tasks that follow, with a method or None."""
    found = copy.deepcopy(aged(name, lr, tasks))
    plan = Branch(own=1 + seed, since=tasks)
    coming = range(tasks, tasks + AFTER[name])
    return -float(np.mean(learn(STREAMS[name], found.model, found.optimizer, plan, coming, method, found.initial)))


def learn(
    stream: Stream,
    model: nn.Module,
    optimizer: Any,
    plan: Branch,
    tasks: range,
    method: Any = None,
    initial: dict[str, Tensor] | None = None,
) -> list[float]:
    """Learn tasks one after the other, with a method that sees ``initial`` as the first weights; return the errors.

    Errors are those before each update.
    """
    ctx, errors = plasticity.Context({"model": model}, {"model": optimizer}), []
    if method is not None:
        present = copy.deepcopy(model.state_dict())
        model.load_state_dict(initial or present)
        plasticity.start([method], ctx)
        model.load_state_dict(present)
    for task in tasks:
        for x, y in stream.batches(plan, task):
            output = ctx.networks["model"](x)
            ctx.optimizers["model"].zero_grad()
            error_of(output, y).backward()
            ctx.optimizers["model"].step()
            errors.append(float(stream.error(output.detach(), y)))
    if method is not None:
        method.on_train_end(ctx)
    return errors
