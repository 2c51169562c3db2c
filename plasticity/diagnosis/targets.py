"""Lessons: the things that a copy of a network is made to learn.

- ``residual``: its own present outputs plus those of a random teacher, a fresh network of the same structure. Loss 1 is
  to learn nothing, whatever the scale of the outputs (offset plus residual, as in Felix-Zhenghao/rigorous-plasticity).
- ``bandit``: a reward for every action, drawn by a random teacher, by the exact gradient of the expected reward. Loss 1
  is the policy that ignores the rewards. It separates a policy without entropy from weights that cannot learn.
- ``own``: the loss of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .trainee import Forward, Patient, aside, in_evaluation

FLAT = 1e-6
"""Standard deviation, relative to the largest output, below which float32 outputs of a teacher are constant."""


@dataclass(frozen=True)
class Item:
    """A batch and the signal that is to be learned on it."""

    batch: Any
    signal: Tensor


@dataclass(frozen=True)
class Lesson:
    """Items, and a loss of a network on one of them."""

    items: Sequence[Any]
    loss: Callable[[nn.Module, Any], Tensor]


def teach(patient: Patient, seed: int) -> list[Tensor]:
    """Return the outputs of a random teacher on each batch, of mean 0 and standard deviation 1 in every dimension.

    Where the teacher's outputs do not depend on the input (an output layer that starts at zero), they are independent
    normal numbers for every sample, which a network can only memorise.
    """
    teacher, generator = patient.twin(seed), torch.Generator().manual_seed(seed)
    with aside(teacher, seed), in_evaluation(teacher):
        outputs = [patient.forward(teacher, batch).float() for batch in patient.batches]
    if not all(o.dim() for o in outputs):
        raise ValueError("forward must return outputs, one tensor (batch, ...); got a single number, such as a loss")
    rows = torch.cat([o.reshape(-1, o.shape[-1]) if o.dim() > 1 else o.reshape(-1, 1) for o in outputs])
    mean, std = rows.mean(0), rows.std(0, correction=0)
    constant = std <= FLAT * rows.abs().amax().clamp(min=1e-30)
    if constant.all():
        return [torch.randn(o.shape, generator=generator, device="cpu").to(o.device) for o in outputs]
    scaled = [(o - mean if o.dim() > 1 else o - mean[0]) for o in outputs]
    std = torch.where(constant, torch.inf, std)
    return [(o / std if o.dim() > 1 else o / std[0]) for o in scaled]


def residual_lesson(model: nn.Module, forward: Forward, batches: Sequence[Any], signals: Sequence[Tensor]) -> Lesson:
    """Return the lesson to add ``signals`` to the present outputs of ``model``; loss 1: nothing learned."""
    with in_evaluation(model):
        starts = [forward(model, batch).float() for batch in batches]

    def loss(network: nn.Module, item: Any) -> Tensor:
        start, signal = item.signal
        return (forward(network, item.batch).float() - start - signal).square().mean() / signal.square().mean()

    items = [Item(*one) for one in zip(batches, map(torch.stack, zip(starts, signals, strict=True)), strict=True)]
    return Lesson(items, loss)


def _softmax_regret(output: Tensor, reward: Tensor) -> Tensor:
    """Return the regret of a softmax over the last axis, 1 for the uniform policy."""
    best = reward.amax(-1).mean()
    return (best - (output.softmax(-1) * reward).sum(-1).mean()) / (best - reward.mean())


def _bounded_regret(action: Tensor, slope: Tensor) -> Tensor:
    """Return the regret of actions in [-1, 1] under the reward action * slope, 1 for actions of 0."""
    return 1 - (action * slope).mean() / slope.abs().mean()


def _tanh_gaussian_regret(output: Tensor, slope: Tensor) -> Tensor:
    """Return the regret of tanh(mean), where the output is (mean, log_std) side by side."""
    return _bounded_regret(output.chunk(2, -1)[0].tanh(), slope.chunk(2, -1)[0])


POLICIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": _softmax_regret,
    "tanh": lambda output, slope: _bounded_regret(output.tanh(), slope),
    "tanh_gaussian": _tanh_gaussian_regret,
    "bounded": _bounded_regret,
}
"""Reading of outputs as a policy -> regret of (outputs, random signal of their shape), 1 if it ignores the signal.

softmax: logits of actions. tanh: means before a tanh. tanh_gaussian: mean and log_std side by side. bounded: actions in
[-1, 1]."""


def bandit_lesson(policy: str, forward: Forward, batches: Sequence[Any], signals: Sequence[Tensor]) -> Lesson:
    """Return the lesson to act for the rewards that ``signals`` give; loss 1: rewards ignored."""
    regret = POLICIES[policy]

    def loss(network: nn.Module, item: Any) -> Tensor:
        return regret(forward(network, item.batch).float(), item.signal)

    return Lesson([Item(*one) for one in zip(batches, signals, strict=True)], loss)
