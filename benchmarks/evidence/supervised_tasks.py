"""Three supervised streams on which plasticity is lost in minutes, and the loop that learns them with any method.

``bitflip``: Dohare et al. 2024, "slowly changing regression": 20 bits and a constant, 15 of the bits flip one at a
time, the others are random; the target is a fixed random network of 100 threshold units, the learner has one hidden
layer of 5 units. ``permuted-digits``: scikit-learn's digits, their pixels permuted anew in every task; 3 x 100 units,
one pass a task. ``warm-start``: Ash & Adams 2020; half of the digits until they are learned, then all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plasticity import Context
from plasticity.agents.gradient import GradientStep
from plasticity.agents.optimizers import AgentConfig
from plasticity.agents.parts import activated
from plasticity.callback import end, fire, start, start_task

MEMORY = 2048
"""Samples that methods may look at between two steps."""


@dataclass
class Examples:
    """A batch: inputs (batch, features), and targets, numbers (batch,) or classes (batch,) int64."""

    obs: Tensor
    target: Tensor


def network(num_inputs: int, hidden: list[int], outputs: int, activation: str, norm: str) -> nn.Sequential:
    """Return Linear, norm, activation for every entry of ``hidden``, and the output layer."""
    layers: list[nn.Module] = []
    for width in hidden:
        after, features = activated(norm, activation, width)
        layers += [nn.Linear(num_inputs, width), *after]
        num_inputs = features
    return nn.Sequential(*layers, nn.Linear(num_inputs, outputs))


class Learner:
    """A network, its optimizer and methods; :meth:`learn` takes one step on a batch."""

    def __init__(
        self, net: nn.Sequential, loss: Callable[..., Tensor], config: AgentConfig, lr: float, methods: list[Any]
    ) -> None:
        self.net, self.methods, self.updates = net, methods, 0
        self.networks, optimizers = {"net": net}, {"net": config.make_optimizer(net.parameters(), lr)}
        self.loss_of = loss
        self.seen: list[Examples] = []
        steps = {"net": GradientStep(self.loss, [self.networks], optimizers, "net", compile="auto")}
        forward = {"net": lambda module, batch: module(batch.obs)}
        self.ctx = Context(self.networks, optimizers, steps=steps, forward=forward, peek=self.peek, name="the stream")
        start(methods, self.ctx)

    def loss(self, batch: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and metrics."""
        output = self.networks["net"](batch.obs)
        loss = self.loss_of(output, batch.target)
        return loss, {"net_loss": loss, "output": output}

    def learn(self, batch: Examples) -> dict[str, Tensor]:
        """Take one step, and return its loss and the outputs before it."""
        self.seen = [*self.seen[-(MEMORY // len(batch.obs)) :], batch]
        self.ctx.step += len(batch.obs)
        fire(self.methods, "on_step", self.ctx, batch)
        fire(self.methods, "on_update_start", self.ctx)
        metrics = self.ctx.steps["net"](batch, updates=self.updates)
        self.updates += 1
        fire(self.methods, "on_update_end", self.ctx, metrics)
        if not metrics["net_loss"].isfinite():
            raise FloatingPointError(f"the loss is not finite at step {self.updates}")
        return metrics

    def peek(self, num: int, generator: torch.Generator) -> Examples:
        """Return some of the last samples, drawn evenly with replacement."""
        obs, target = (torch.cat([getattr(one, part) for one in self.seen]) for part in ("obs", "target"))
        index = torch.randint(len(obs), (num,), generator=generator)
        return Examples(obs[index], target[index])

    def task(self, number: int) -> None:
        """Begin a task."""
        start_task(self.methods, self.ctx, number)

    def close(self) -> None:
        """Take the methods off."""
        end(self.methods, self.ctx)


# -- bitflip -----------------------------------------------------------------------------------------------------------


def bits(seed: int, samples: int, batch: int, flip_every: int = 10_000) -> Iterator[Examples]:
    """Yield batches of the slowly changing regression."""
    rng = np.random.default_rng(seed)
    first = rng.choice([-1.0, 1.0], (21, 100))
    second = rng.choice([-1.0, 1.0], 101)
    threshold = 0.7 * 21 - (first == -1).sum(0)  # a unit fires where 70 % of its inputs agree with its weights
    slow = rng.integers(0, 2, 15).astype(float)
    for done in range(0, samples, batch):
        if done and done // flip_every != (done - batch) // flip_every:
            bit = rng.integers(15)
            slow[bit] = 1 - slow[bit]
        x = np.concatenate([np.tile(slow, (batch, 1)), rng.integers(0, 2, (batch, 5)), np.ones((batch, 1))], 1)
        units = (x @ first > threshold).astype(float)
        y = np.concatenate([units, np.ones((batch, 1))], 1) @ second
        yield Examples(torch.from_numpy(x).float(), torch.from_numpy(y).float())


def bitflip(make: Callable[..., Learner], seed: int, scale: float) -> dict[str, float]:
    """Return the mean square error over the last fifth of the stream, and over its first fifth behind a warm-up."""
    samples, batch = int(400_000 * scale), 20
    learner, errors = make(21, [5], 1, lambda output, y: F.mse_loss(output.squeeze(-1), y)), []
    for examples in bits(seed, samples, batch):
        learner.task(learner.updates * batch // 10_000)
        errors.append(float(learner.learn(examples)["net_loss"]))
    learner.close()
    fifth = len(errors) // 5
    return {"last": float(np.mean(errors[-fifth:])), "first": float(np.mean(errors[fifth : 2 * fifth]))}


# -- digits ------------------------------------------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's images (1797, 64), standardised, and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits ship with scikit-learn: pip install scikit-learn") from error
    x, y = load_digits(return_X_y=True)
    x = (x - x.mean()) / x.std()
    return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def permuted_digits(make: Callable[..., Learner], seed: int, scale: float) -> dict[str, float]:
    """Return the accuracy while learning, over the last and the first fifth of 100 tasks."""
    (x, y), generator = digits(), torch.Generator().manual_seed(seed)
    learner, accuracy = make(64, [100, 100, 100], 10, F.cross_entropy), []
    for task in range(max(5, int(100 * scale))):
        learner.task(task)
        pixels, order = torch.randperm(64, generator=generator), torch.randperm(len(x), generator=generator)
        right = 0
        for index in order.split(16):
            batch = Examples(x[index][:, pixels], y[index])
            right += int((learner.learn(batch)["output"].argmax(-1) == batch.target).sum())
        accuracy.append(right / len(x))
    learner.close()
    fifth = len(accuracy) // 5
    return {"last": float(np.mean(accuracy[-fifth:])), "first": float(np.mean(accuracy[:fifth]))}


def warm_start(make: Callable[..., Learner], seed: int, scale: float) -> dict[str, float]:
    """Return test accuracy after half of the digits, then all of them; ``first``: all of them from a fresh network."""
    (x, y), generator = digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    test, train = order[:397], order[397:]
    found = {}
    for name, parts in (("last", [train[: len(train) // 2], train]), ("first", [train])):
        learner = make(64, [100, 100, 100], 10, F.cross_entropy)
        for task, part in enumerate(parts):
            learner.task(task)
            for _ in range(max(1, int(40 * scale))):
                for index in part[torch.randperm(len(part), generator=generator)].split(64):
                    learner.learn(Examples(x[index], y[index]))
        with torch.no_grad():
            found[name] = float((learner.networks["net"](x[test]).argmax(-1) == y[test]).float().mean())
        learner.close()
    return found


STREAMS = {"bitflip": bitflip, "permuted-digits": permuted_digits, "warm-start": warm_start}
LOWER_IS_BETTER = {"bitflip"}
