"""Utility-based perturbed gradient descent: useful weights are protected, useless ones perturbed.

Elsayed & Mahmood 2024, *Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning*, ICLR 2024,
arXiv 2404.00781. Code: mohmdelsayed/upgd.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class UPGD(Optimizer):
    """Step with the gradient plus noise, both scaled down where a weight is useful.

    u <- b u + (1 - b) (-g theta), s = sigmoid(u / max u), the largest utility of all tensors;
    theta <- theta (1 - lr weight_decay) - lr (direction + noise) (1 - s), noise ~ N(0, sigma^2).

    `direction` is g. Defaults: b 0.999, sigma 1e-3 (README of the code); lr is to be tuned. Where no utility is
    positive they are divided by the largest magnitude: by the maximum their order would turn around. Differences: the
    code divides bias-corrected utilities by the largest one that is not, so that s is 0 or 1 for the first thousand
    steps; the ratio here needs no correction. Compared with the code where both agree (b 0, no noise), ten steps: equal
    to the last bit. The noise is drawn from the seed and the number of the step, so a resumed
    run goes on to the same bits. Source: Elsayed & Mahmood 2024, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        beta_utility: float = 0.999,
        sigma: float = 1e-3,
        seed: int = 0,
        **more: Any,
    ) -> None:
        numbers = {"weight_decay": weight_decay, "beta_utility": beta_utility, "sigma": sigma, "seed": seed, "steps": 0}
        super().__init__(params, {"lr": lr, **numbers, **more})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; parameters without a gradient are left alone."""
        largest = self._utilities()
        for group in self.param_groups:
            group["steps"] += 1
            for index, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                scale = 1 - torch.sigmoid(self.state[p]["utility"] / largest.to(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                direction = self.direction(p, group)
                if group["sigma"]:
                    direction = direction + group["sigma"] * self._noise(p, group, index)
                p.sub_(direction * scale, alpha=group["lr"])

    def direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the direction of the step of one parameter, before noise."""
        assert p.grad is not None
        return p.grad

    def _utilities(self) -> Tensor:
        """Move every utility, and return the largest one, 0-D."""
        extremes = []
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                utility = self.state[p].setdefault("utility", torch.zeros_like(p))
                utility.lerp_(-p.grad * p, 1 - group["beta_utility"])
                extremes.append(torch.stack([utility.max(), utility.abs().max()]).float())
        if not extremes:
            return torch.ones(())
        largest, magnitude = torch.stack([one.to(extremes[0].device) for one in extremes]).amax(0)
        return torch.where(largest > 0, largest, magnitude).clamp_min(torch.finfo(torch.float32).tiny)

    def _noise(self, p: Tensor, group: dict[str, Any], index: int) -> Tensor:
        place = (group["seed"] * 1_000_003 + group["steps"]) * 1009 + index
        generator = torch.Generator(p.device).manual_seed(place % 2**62)
        return torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)


class AdaptiveUPGD(UPGD):
    """UPGD with Adam's direction in the place of the gradient.

    direction = m^ / (sqrt(v^) + eps), the bias-corrected moments of Adam. Defaults: lr 1e-3 and betas (0.9, 0.999) of
    Adam, b 0.999, sigma 1e-3. Source: as for UPGD, `AdaptiveUPGD` of the code, which takes twice the rate that it is
    given; with half of it, ten steps are equal to 1e-7.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        beta_utility: float = 0.999,
        sigma: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(params, lr, weight_decay, beta_utility, sigma, seed, betas=betas, eps=eps)

    def direction(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return Adam's direction for one parameter."""
        assert p.grad is not None
        state, (beta1, beta2) = self.state[p], group["betas"]
        mean, square = (state.setdefault(name, torch.zeros_like(p)) for name in ("exp_avg", "exp_avg_sq"))
        step = state.setdefault("step", torch.zeros((), device=p.device))
        step.add_(1)
        mean.lerp_(p.grad, 1 - beta1)
        square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        return mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
