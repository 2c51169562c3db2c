"""Selective weight re-initialisation: start single weights anew, those of least use in each tensor.

Hernandez-Garcia, Dohare, Luo & Sutton 2025, *Reinitializing weights vs units for maintaining plasticity in neural
networks*, CoLLAs 2025, arXiv 2508.00212.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plasticity.callback import Context
from plasticity.surgery.optimizer_state import clear_state_, state_refusal
from plasticity.surgery.origin import fresh_values
from plasticity.value_types import require

from .anchors import Anchors
from .intervention import Listener, numbers_in
from .whole import WholeNetwork


def lowest_entries(utility: Tensor, count: int, among: Tensor | None = None) -> Tensor:
    """Return a bool mask of the ``count`` lowest entries; none where an entry is not finite.

    ``among``: the entries that may be chosen, bool of its shape, at least ``count``; None for all.
    """
    mask = torch.zeros(utility.numel(), dtype=torch.bool, device=utility.device)
    if bool(utility.isfinite().all()):
        ranked = utility if among is None else utility.masked_fill(~among, math.inf)
        mask[ranked.flatten().argsort(stable=True)[:count]] = True
    return mask.view_as(utility)


@dataclass
class SelectiveReinitialization(WholeNetwork):
    """Start the weights of least use anew, one by one, in every tensor.

    The utility of a weight is |theta|, or |theta g| with the gradient of the step just taken and the weight behind it.
    The lowest fraction ``share`` of each tensor, rounded up with the probability of the rest, or all of at most
    ``threshold`` times the tensor's mean utility, become a fresh draw, or the mean of their initial distribution (0, 1
    for gains). The optimizer forgets them.

    ``paper``: fraction 1e-3, of all trainable tensors; the interval of 1000 steps is ours. With ``ema`` the utility is
    a running average, which forgets entries that are replaced, by any method. Masked weights stay 0, and do not count.

    Compared with the rule of Felix-Zhenghao/rigorous-plasticity, a testbed by others (no code of the authors is known
    here), ten steps of Adam and three replacements by the mean, for both utilities and a threshold: weights and moments
    are the same in float64. With ``ema`` they are up to the first replacement, at which the testbed forgets the
    averages of whole tensors.
    """

    NAME: ClassVar[str] = "swr"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": {"every": 1000, "clock": "gradient_steps", "clear": False, "sync_targets": False, "share": 1e-3}
    }

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None."""
    utility: Literal["magnitude", "gradient"] = "gradient"
    """The use of a weight: its magnitude, or that of its product with the gradient."""
    share: float | None = None
    """Fraction of every tensor to replace, in [0, 1]; ignored with a threshold."""
    threshold: float | None = None
    """Replace what is at most this times the tensor's mean utility; None: a fraction."""
    to: Literal["fresh", "mean"] = "fresh"
    """New value: a draw from the initial distribution, or its mean."""
    ema: float = 0.0
    """Decay of a running average of the utility over gradient steps, in [0, 1); 0 for the present one."""
    moments: bool = True
    """Let the optimizer forget the replaced entries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "0 <= share <= 1": 0 <= (self.share or 0.0) <= 1,
            "threshold >= 0": self.threshold is None or self.threshold >= 0,
            "0 <= ema < 1": 0 <= self.ema < 1,
        }
        require("SelectiveReinitialization", rules, self)
        self.average = Anchors()

    def parameters_added(self) -> int:
        """Return how many numbers the running averages hold."""
        return numbers_in(self.average)

    def prepare(self, ctx: Context) -> None:
        """Begin running averages at 0; ValueError for optimizers whose state cannot be cut."""
        super().prepare(ctx)
        for name, network in self._networks.items() if self.moments else ():
            for key, parameter in network.named_parameters():
                if reason := state_refusal(ctx.optimizers.values(), parameter):
                    raise ValueError(f"{type(self).__name__}: {name}.{key}: {reason}; moments=False leaves it alone")
        self.average = Anchors.at(self._networks) if self.ema else Anchors()
        for tensors in self.average.values():
            torch._foreach_zero_(list(tensors.values()))
        self.hook(Listener(ctx.on_redraw, lambda entries: self.average.zero_(entries, self._networks)))

    def follow_(self, network: str, parameters: Mapping[str, Tensor]) -> None:
        """Move the running averages."""
        if self.ema:
            now = {name: u for name, p in parameters.items() if (u := self._present(p)) is not None}
            self.average.follow_(network, now, 1 - self.ema)

    def _present(self, parameter: Tensor) -> Tensor | None:
        """Return the utility of every entry, None where it takes a gradient and there is none."""
        if self.utility == "magnitude":
            return parameter.detach().abs()
        return None if parameter.grad is None else (parameter.detach() * parameter.grad).abs()

    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Replace the entries of least use."""
        replaced, tensors = 0, 0
        new = self._new(network, parameters)
        for name, parameter in parameters.items():
            averaged = self.ema and self.average.fits(network, name, parameter)
            utility = self.average[network][name] if averaged else self._present(parameter)
            if utility is None:
                continue
            where = self._chosen(utility, ctx.connections(parameter))
            if not where.any():
                continue
            parameter.copy_(torch.where(where, new[name], parameter))
            ctx.redrawn({parameter: where})
            if parameter.grad is not None:
                parameter.grad.masked_fill_(where, 0)
            if self.moments:
                clear_state_(ctx.optimizers.values(), parameter, where)
            replaced, tensors = replaced + int(where.sum()), tensors + 1
        return {"tensors": tensors, "entries": replaced}

    def _chosen(self, utility: Tensor, exist: Tensor | None) -> Tensor:
        """Return the entries of least use among those that ``exist``, all for None."""
        live = utility if exist is None else utility[exist]
        if self.threshold is not None:
            low = utility <= self.threshold * live.mean()
            return low if exist is None else low & exist
        owed = (self.share or 0.0) * live.numel()
        count = math.floor(owed)
        count += float(torch.rand((), generator=self.generator, device="cpu")) < owed - count
        return lowest_entries(utility, count, exist)

    def _new(self, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        origin, module = self.origins[network], self._networks[network]
        fresh = fresh_values(module, origin, self.generator, lambda name, _: name in parameters)
        if self.to == "fresh":
            return fresh
        means = {name: law.mean() for name, law in origin.laws.items()}
        return {name: torch.full_like(value, means[name]) if name in means else value for name, value in fresh.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and running averages."""
        return {**super().state_dict(), "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.average.load_state_dict(state["average"], self._networks)
