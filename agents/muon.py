"""Muon for matrices, AdamW for everything else, as one optimizer.

Jordan et al. 2024, *Muon: An optimizer for hidden layers in neural networks*, kellerjordan.github.io/posts/muon; its
step size as in Liu et al. 2025, *Muon is Scalable for LLM Training*, arXiv 2502.16982. Both optimizers are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Step matrices with Muon, and vectors, numbers and convolutions with AdamW.

    Muon's momentum is made orthogonal (five Newton-Schulz iterations) and scaled so that its size is that of Adam's
    step: one rate serves both. Defaults: PyTorch's, momentum 0.95, and no weight decay (Muon's own is 0.1).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
    ) -> None:
        params = list(params)
        matrices, others = [p for p in params if p.dim() == 2], [p for p in params if p.dim() != 2]
        self.parts: list[Optimizer] = []
        if matrices:
            numbers = {"weight_decay": weight_decay, "momentum": momentum}
            self.parts.append(Muon(matrices, lr, **numbers, adjust_lr_fn="match_rms_adamw"))  # type: ignore[arg-type]
        if others:
            self.parts.append(AdamW(others, lr, betas, eps, weight_decay))
        super().__init__([group for part in self.parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of both; groups and state are this optimizer's own."""
        for part, group in zip(self.parts, self.param_groups, strict=False):
            part.param_groups, part.state = [group], self.state
            part.step()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}
