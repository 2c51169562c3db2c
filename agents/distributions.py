"""Distributions of actions: a diagonal Gaussian or a categorical one, as tuples of tensors.

Smaller than those of torch.distributions, to which a test holds them equal: they draw from a generator that is given,
and leave validation, with its host synchronisation, to the check of the losses.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Independent normal distributions of every action dimension; both tensors (batch, action_dim)."""

    mean: Tensor
    log_std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions (batch, action_dim), without bounds."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device)
        return self.mean + self.log_std.exp() * noise

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

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions (batch,) int64: the argmax of logits plus Gumbel noise, which is minus the log of an Exp(1)."""
        noise = torch.empty_like(self.logits).exponential_(generator=generator)
        return (self.logits - noise.log()).argmax(-1)

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
