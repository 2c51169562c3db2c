"""Losses and metrics of PPO, of tensors (batch,) (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return -mean min(ratio A, clip(ratio) A); log_ratio = log pi - log pi_old and advantage (batch,). Equation 7."""
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage).mean()


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip_range: float | None) -> Tensor:
    """Return 1/2 mean (V - target)^2; all tensors (batch,).

    With clip_range the error of V moved by at most so much counts where it is the larger one.
    """
    return value_errors(value, old_value, target, clip_range).mean()


def value_errors(value: Tensor, old_value: Tensor, target: Tensor, clip_range: float | None) -> Tensor:
    """Return what :func:`value_loss` is the mean of, of the shape of the values."""
    error = (value - target).square()
    if clip_range is not None:
        moved = old_value + (value - old_value).clamp(-clip_range, clip_range)
        error = torch.max(error, (moved - target).square())
    return 0.5 * error


def standardised(x: Tensor) -> Tensor:
    """Return (x - mean) / std of a batch (batch,), at least two; the 1e-8 is CleanRL's and stable-baselines3's."""
    return (x - x.mean()) / (x.std() + 1e-8)


def approx_kl(log_ratio: Tensor) -> Tensor:
    """Return mean(ratio - 1 - log ratio), >= 0: KL(old || new) in nats estimated on actions of old (Schulman's k3)."""
    return (log_ratio.expm1() - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip_range: float) -> Tensor:
    """Return the share of steps whose ratio is further than clip_range from 1."""
    return ((log_ratio.exp() - 1).abs() > clip_range).to(log_ratio.dtype).mean()


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """Return 1 - var(target - value) / var(target): 1 is perfect, 0 no better than a constant, below 0 worse.

    Where all targets are equal, so that nothing is to be explained: 1 if the error is constant too, else 0.
    """
    unexplained, total = (target - value).var(), target.var()
    return torch.where(total > 0, 1 - unexplained / total, (unexplained == 0).to(total.dtype))
