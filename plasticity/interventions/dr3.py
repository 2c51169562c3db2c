"""DR3: keep the features of successive state-action pairs from aligning.

Kumar, Agarwal, Ma, Courville, Tucker & Levine 2022, *DR3: Value-Based Deep Reinforcement Learning Requires Explicit
Regularization*, arXiv 2112.04716. No code was released.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .feature_penalty import FeaturePenalty


def co_adaptation(features: Tensor, following: Tensor) -> Tensor:
    """Return the mean over samples of phi(s, a) . phi(s', a'), 0-D; both (samples, features)."""
    return (features * following).sum(1).mean()


@dataclass
class DR3(FeaturePenalty):
    """Keep the features of successive states from aligning.

    Adds coef * mean phi(s, a) . phi(s', a') to the loss of critics, phi the input of the output layer: bootstrapping
    pulls the two together, and their rank down with them. a' is the action that the present policy would take at s'
    without exploration; a Q network of discrete actions has features of the state alone.

    Defaults: coef 0.03, the smallest of the paper's range, 0.03 to 0.3; networks other than the actor. Differences: a'
    is the mode, the paper draws it; a pair whose episode ended at s' counts as others do. Source: Kumar et al. 2022,
    arXiv 2112.04716, equation 4.
    """

    NAME: ClassVar[str] = "dr3"
    NEEDS: ClassVar[tuple[str, ...]] = (*FeaturePenalty.NEEDS, "buffer")

    networks: tuple[str, ...] = ("critic*", "q*")
    """Names or globs of the networks to act on; empty for all."""
    coef: float = 0.03
    """Weight of the penalty; 0 switches it off."""

    def penalty(self, name: str, networks: Mapping[str, nn.Module], batch: Any, *drawn: Any) -> Tensor:
        """Return the penalty on the update's own batch."""
        following = replace(batch, obs=batch.next_obs)
        if batch.action.is_floating_point():
            following = replace(following, action=self._action(networks, following))
        one, other = (self.features(name, networks[name], each) for each in (batch, following))
        return co_adaptation(one, other)

    @torch.no_grad()
    def _action(self, networks: Mapping[str, nn.Module], batch: Any) -> Tensor:
        """Return the policy's actions (batch, action_dim): its output, or of a squashed Gaussian tanh(mean)."""
        output, size = self.run["actor"](networks["actor"], batch), batch.action.shape[-1]
        return output if output.shape[-1] == size else torch.tanh(output[..., :size])
