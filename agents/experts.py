"""Soft mixtures of experts: every expert sees weighted means of all tokens (Puigcerver et al. 2023, arXiv 2308.00951).

In the place of the hidden layer behind the convolutions: Obando-Ceron et al. 2024, *Mixtures of Experts Unlock
Parameter Scaling for Deep RL*, arXiv 2402.08609; code: google/dopamine, `labs/moes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Tokens(nn.Module):
    """Images (batch, channels, height, width) as tokens (batch, height * width, channels); vectors as one token."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if x.dim() == 2 else x.flatten(2).transpose(1, 2)


class SoftMoE(nn.Module):
    """Tokens (batch, tokens, size) through experts of so many hidden units each; the output has the same shape.

    L = X phi, (tokens, experts, slots). An expert's slots hold softmax over tokens of L times X, and a token gets
    softmax over experts and slots of L times what the experts return. Slots are ceil(tokens / experts), so that all
    experts together take as many as there are tokens.
    """

    def __init__(
        self, num_tokens: int, size: int, hidden: Sequence[int], after: Callable[[int], tuple[list[nn.Module], int]]
    ) -> None:
        super().__init__()
        slots = math.ceil(num_tokens / len(hidden))
        self.phi = nn.Parameter(torch.randn(size, len(hidden), slots) / math.sqrt(size))
        self.experts = nn.ModuleList(self._expert(size, width, *after(width)) for width in hidden)

    def _expert(self, size: int, width: int, after: list[nn.Module], num_features: int) -> nn.Sequential:
        expert = nn.Sequential(nn.Linear(size, width), *after, nn.Linear(num_features, size))
        for layer in (expert[0], expert[-1]):
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return expert

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.einsum("bmd,dnp->bmnp", x, self.phi)
        dispatch, combine = logits.softmax(1), logits.flatten(2).softmax(2).view_as(logits)
        slots = torch.einsum("bmd,bmnp->bnpd", x, dispatch)
        answers = torch.stack([expert(slots[:, i]) for i, expert in enumerate(self.experts)], 1)
        return torch.einsum("bnpd,bmnp->bmd", answers, combine)
