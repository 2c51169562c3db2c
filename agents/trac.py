"""TRAC: an optimizer's distance from where it began is scaled by six tuners that need no rate.

Muppidi, Zhang & Yang 2024, *Fast TRAC: A Parameter-Free Optimizer for Lifelong Reinforcement Learning*,
arXiv 2405.16642. Code: the package trac-optimizer 0.0.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam

from .adam import begun
from .flat import STATE

BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
"""Discount factors of the tuners."""
START = 1e-8
"""Scale of every tuner at the start, and its sigma."""
POWERS = 2 * torch.arange(120, dtype=torch.float64, device="cpu") + 1
FACTORIALS = torch.lgamma((POWERS + 1) / 2)  # their logarithms
BEYOND = 5.0  # beyond, the asymptotic series is the better one
INFINITE = 1e3  # from about 26.64 on, exp(x^2) is inf
TAIL = [math.prod(range(1, 2 * n, 2)) / 2**n for n in range(20)]


def erfi(x: Tensor) -> Tensor:
    """Return the imaginary error function, -i erf(i x), of a float64 tensor; inf where it is too large."""
    size, powers, factorials = x.abs()[..., None], POWERS.to(x.device), FACTORIALS.to(x.device)
    terms = torch.exp(powers * size.clamp(1e-300, BEYOND).log() - factorials) / powers
    near = 2 / math.sqrt(math.pi) * terms.sum(-1)
    size = size.clamp(BEYOND, INFINITE)
    tail = (size.new_tensor(TAIL) * size ** (1 - powers[: len(TAIL)])).sum(-1)
    size = size[..., 0]
    far = torch.exp(size.square()) / (size * math.sqrt(math.pi)) * tail
    return x.sign() * torch.where(x.abs() <= BEYOND, near, far)


NORMALISER = float(erfi(torch.tensor(1 / math.sqrt(2), dtype=torch.float64, device="cpu")))
"""erfi(1 / sqrt 2) = 0.953..."""


def tuned(sigma: Tensor, variance: Tensor) -> Tensor:
    """Return the scales of the tuners, START / erfi(1 / sqrt 2) * erfi(sigma / (sqrt(2 v) + START)); float64."""
    return START / NORMALISER * erfi(sigma / ((2 * variance).sqrt() + START))


class TRAC(Adam):
    """Adam, whose distance from the first weights is scaled by a sum of tuners.

    theta = theta_ref + S (theta_base - theta_ref): Adam moves theta_base by the step that it would take at theta; with
    h = <g, theta_base - theta_ref>, every tuner j has v <- b^2 v + h^2 and sigma <- b sigma - h, and S is the sum of
    1e-8 / erfi(1/sqrt 2) * erfi(sigma / (sqrt(2 v) + 1e-8)), b = 0.9, 0.99, ..., 0.999999. While gradients agree with
    the way taken, S grows exponentially; where they turn, it falls back towards the start.

    What others put into weights between two steps (a reset, recycled neurons) moves theta_ref with them. Differences:
    the package divides theta - theta_ref by S + 1e-8 in every step instead of keeping theta_base, writes to a file in
    every step, and cannot be resumed. Ten steps beside trac-optimizer 0.0.2 are equal to 6e-8; later ones part where
    its float32 sums lose digits. Source: Muppidi et al. 2024, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, fused=fused)
        self._step_supports_amp_scaling = False  # h is of gradients that a scaler has scaled back
        device = next((p.device for group in self.param_groups for p in group["params"]), None)
        self.tuners = torch.zeros(3, len(BETAS), dtype=torch.float64, device=device)
        """sigma, v and scale of every tuner."""
        self.tuners[0::2] = START

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; parameters without a gradient are left alone."""
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not (every := [*chain(*moved)]):
            return
        agreement = self._follow([p for p in every if "delta" in self.state[p]])
        for group, parameters in zip(self.param_groups, moved, strict=True):
            self._move(group, parameters)
        if agreement is not None:
            self._tune(agreement)
        torch._foreach_copy_(every, self._placed(every))

    def _follow(self, known: Sequence[Tensor]) -> Tensor | None:
        """Move references by what others did to weights since the last step; return h, None in the first step."""
        if not known:
            return None
        torch._foreach_add_(self._held("reference", known), torch._foreach_sub(known, self._placed(known)))
        pairs = zip(known, self._held("delta", known), strict=True)
        return torch.stack([torch.dot(p.grad.reshape(-1), delta.reshape(-1)) for p, delta in pairs]).double().sum()

    def _move(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> None:
        """Move theta_base, which is delta away from the reference, by the step that Adam takes at the weights."""
        for p in parameters:
            if "delta" not in self.state[p]:
                state = self.state[p] or begun(self, p)
                state.update(delta=torch.zeros_like(p), reference=p.clone())
        *moments, counters = (self._held(name, parameters) for name in STATE)
        decay = group["weight_decay"]
        gradients = [p.grad.add(p, alpha=decay) if decay else p.grad for p in parameters]
        adam(
            self._held("delta", parameters), gradients, *moments, [], counters, lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=0.0, eps=group["eps"],
            amsgrad=False, maximize=False, fused=group["fused"],
        )  # fmt: skip

    def _held(self, name: str, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return "delta", theta_base - theta_ref, or what else is kept, of each parameter."""
        return [self.state[p][name] for p in parameters]

    def _placed(self, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return theta_ref + S (theta_base - theta_ref) of each parameter."""
        scale = self.tuners[2].sum()
        places = [(p.device, p.dtype) for p in parameters]
        cast = {place: scale.to(*place) for place in {*places}}
        held = (self._held(name, parameters) for name in ("reference", "delta"))
        return torch._foreach_addcmul(*held, [cast[place] for place in places])

    def _tune(self, agreement: Tensor) -> None:
        """Move the tuners by h."""
        betas = torch.tensor(BETAS, dtype=torch.float64, device=self.tuners.device)
        sigma, variance, _ = self.tuners
        variance.mul_(betas.square()).add_(agreement.square())
        sigma.mul_(betas).sub_(agreement)
        self.tuners[2] = tuned(sigma, variance)

    def state_dict(self) -> dict[str, Any]:
        """Return the tuners, too."""
        return {**super().state_dict(), "tuners": self.tuners.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.tuners = state_dict["tuners"].to(self.tuners.device, copy=True)
