"""Distributions of actions: a diagonal Gaussian or a categorical one, as tuples of tensors.

Smaller than those of torch.distributions, to which a test holds them equal: they draw by noise that is given, and leave
validation, with its host synchronisation, to the check of the losses. To act, they may hold numpy arrays.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def numpy_or_torch(values: Any) -> Any:
    """Return the module, numpy or torch, that computes with these values."""
    return np if isinstance(values, np.ndarray) else torch


class Gaussian(NamedTuple):
    """Independent normal distributions of every action dimension; both tensors (batch, action_dim)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (batch, action_dim), without bounds, that `noise` ~ N(0, 1) of that shape draws."""
        sample = self.mean + numpy_or_torch(self.log_std).exp(self.log_std) * noise
        return sample.detach() if isinstance(sample, Tensor) else sample

    def mode(self) -> Tensor:
        """Return the most likely actions (batch, action_dim)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density (batch,) of actions (batch, action_dim)."""
        scaled = (action - self.mean) * (-self.log_std).exp()
        return (-0.5 * scaled.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Return the differential entropy (batch,) in nats: may be negative."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


class Categorical(NamedTuple):
    """One of num_actions choices; logits (batch, num_actions), unnormalised log-probabilities."""

    logits: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return actions (batch,) int64 that `noise` (batch, num_actions) of a Gumbel distribution draws."""
        return (self.logits + noise).argmax(-1)

    def mode(self) -> Tensor:
        """Return the most likely actions (batch,) int64."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability (batch,) of actions (batch,) int64."""
        return self.logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy (batch,) in nats, from 0 to log num_actions."""
        log_probs = self.logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)
