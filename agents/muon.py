"""Muon for matrices, AdamW for everything else, as one optimizer.

Jordan et al. 2024, *Muon: An optimizer for hidden layers in neural networks*, kellerjordan.github.io/posts/muon; its
step size as in Liu et al. 2025, *Muon is Scalable for LLM Training*, arXiv 2502.16982. Both optimizers are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from torch.overrides import TorchFunctionMode

from .adam import bare_step
from .products import bf16_is_emulated

SHARED = ("lr", "weight_decay", "momentum")
"""Settings of Muon that stand in the groups; its others are PyTorch's defaults."""


class InFloat32(TorchFunctionMode):
    """Within, what is to be made bfloat16 on the CPU stays what it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = function is Tensor.to and any(one is torch.bfloat16 for one in (*args, *kwargs.values()))
        halves = asked or function is Tensor.bfloat16  # the latter up to PyTorch 2.14
        return args[0].clone() if halves and args[0].is_cpu else function(*args, **kwargs)


class MuonAdamW(Optimizer):
    """Step matrices with Muon, and vectors, numbers and convolutions with AdamW.

    Muon's momentum is made orthogonal (five Newton-Schulz iterations) and scaled so that its size is that of Adam's
    step: one rate serves both. Defaults: PyTorch's, momentum 0.95, and no weight decay (Muon's own is 0.1).

    Compared with the released code (KellerJordan/Muon), ten steps with the rates of its other scaling: equal to 2e-7
    where both iterate in float32; in bfloat16, as they do, rounding parts them by 1 percent of the way. On a processor
    without units for bfloat16 the iterations are in float32 here: 13 times as fast there. Of a network that code gives
    the first and the last layer to AdamW, too; here all matrices are Muon's.
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
        numbers: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        nothing = [torch.zeros(1, 1)]  # what they step is given in every step
        muon = Muon(nothing, momentum=momentum, adjust_lr_fn="match_rms_adamw", **numbers)  # type: ignore[arg-type]
        self.parts: tuple[Optimizer, Optimizer] = muon, AdamW(nothing, betas=betas, eps=eps, **numbers)
        super().__init__(params, {**self.parts[1].defaults, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of both, also with parameters that joined a group later; groups and state are this one's own."""
        for group, part in product(self.param_groups, self.parts):
            own = [p for p in group["params"] if (p.dim() == 2) == (part is self.parts[0])]
            settings = group if part is self.parts[1] else {**part.defaults, **{name: group[name] for name in SHARED}}
            part.param_groups, part.state = [{**settings, "params": own}], self.state
            with InFloat32() if bf16_is_emulated() else nullcontext():
                bare_step(type(part))(part)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}
