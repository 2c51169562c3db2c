"""What the updates of several agents are made of."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .replay import Batch


def gradient_step(optimizer: Optimizer, loss: Tensor, max_norm: float | None = None) -> Tensor | None:
    """Take one step of `optimizer`, whose parameters alone receive gradients.

    With `max_norm`, a gradient that is longer in all is shortened to it, and its norm before that is returned.

    An actor's loss passes through critics. `backward(inputs=...)` leaves their `.grad` as it was and skips the cost of
    their weight gradients, like freezing them with requires_grad_(False), but without touching any flag: a hook on a
    critic sees the same kind of graph in both passes, parameters that a user froze stay frozen, and nothing is left
    switched off after an exception. autograd.grad would skip the hooks of `.grad`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    norm = None if max_norm is None else nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    return norm


def require_finite(losses: Mapping[str, Tensor], name: str, update: int) -> None:
    """Raise FloatingPointError naming loss, agent and update unless all losses are finite: one host synchronisation."""
    if not math.isfinite(sum(losses.values()).item()):  # type: ignore[union-attr]
        found = {key: value.item() for key, value in losses.items() if not value.isfinite()}
        raise FloatingPointError(
            f"{name}: {next(iter(found))} is not finite at update {update}: {found}. The parameters are already "
            "affected: go back to a checkpoint, and look at rewards, observations and learning rates."
        )


@torch.no_grad()
def polyak_(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target += tau * (source - target), every parameter, in place."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


def as_batch(transition: Any, device: torch.device, obs_dtype: torch.dtype) -> Batch:
    """Return the steps just taken as a batch that a loss can judge, on `device`; its age and index mean nothing."""
    names = ("obs", "action", "reward", "next_obs", "terminated")
    obs, action, reward, next_obs, terminated = (getattr(transition, key).to(device) for key in names)
    return Batch(obs.to(obs_dtype), action, reward, next_obs.to(obs_dtype), terminated, age=reward, index=reward)
