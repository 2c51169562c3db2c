"""ReBorn: let over-active neurons share their work with dormant ones.

Qin et al. 2024, *The Dormant Neuron Phenomenon in Multi-Agent Reinforcement Learning Value Factorization*, NeurIPS 2024
(openreview.net/forum?id=4NGrHrhJPx; no arXiv number is known here); code: github.com/xmu-rl-3dv/ReBorn, which was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.isolation import unwrap
from plasticity.observing.reading import Reading
from plasticity.probes import Dormancy, Probe
from plasticity.surgery.function_change import function_change
from plasticity.surgery.split import split_, split_refusal

from .recycling import Recycling
from .rules import require


def sharing(scores: Tensor, dormant: float, active: float, most: int) -> dict[int, list[int]]:
    """Return over-active neuron -> the dormant ones that share its work, at most ``most`` each, the most active first.

    ``scores``: relative to the layer's mean, (neurons,). Dormant: at most ``dormant``; over-active: above ``active``.
    """
    if bool(scores.isnan().any()):
        return {}
    asleep = [int(i) for i in (scores <= dormant).nonzero().flatten()]
    awake = [int(i) for i in scores.argsort(descending=True, stable=True) if scores[i] > active]
    shares = {i: asleep[k * most : (k + 1) * most] for k, i in enumerate(awake)}
    return {i: into for i, into in shares.items() if into}


_BOTH = {
    "every": 1000,
    "threshold": 0.025,
    "outgoing": "zero",
    "init": "own",
    "moments": True,
    "adam_step": "keep",
    "norms": False,
}


@dataclass
class ReBorn(Recycling):
    """Let dormant neurons share the work of over-active ones.

    A neuron whose score (mean |h| over the layer's mean) is above ``active`` is split: up to ``shared`` dormant neurons
    become copies of it, their incoming weights times a random scale a in [0.5, 1.5], their outgoing weights an equal
    part of its own over a; it keeps one part. The function stays, but for what the dormant neurons still did: exactly
    so for ReLU without a norm, and layers with another activation are left alone and named. Dormant neurons that find
    no over-active one stay as they are.

    ``active`` 3, ``shared`` 2 and the range of a are ours, the paper's were not checked. The authors' code draws a in
    [0.3, 0.8], lets up to five dormant neurons, chosen at random, share one's work in random parts, and redraws those
    that find none; it was not run beside this, as every part of it is a draw. ``init``, ``outgoing`` and ``norms`` have
    no part in it; ``official`` is ``paper``.
    """

    NAME: ClassVar[str] = "reborn"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {"paper": _BOTH, "official": _BOTH}

    active: float = 3.0
    """Score above which a neuron is over-active (beta)."""
    shared: int = 2
    """Largest number of dormant neurons that share the work of one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {"active > threshold": self.active > (self.threshold or 0.0), "shared >= 1": self.shared >= 1}
        require("ReBorn", rules, self)

    def probe(self) -> Probe:
        """Return the dormancy probe."""
        return Dormancy(self.threshold or 0.0)

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Split the over-active neurons of one network."""
        wired, scores = self.wired(network), self.scores(network, reading)
        found = {layer: sharing(s, self.threshold or 0.0, self.active, self.shared) for layer, s in scores.items()}
        flagged = {layer: _mask(shares, len(scores[layer])) for layer, shares in found.items() if shares}
        shares = {}
        for layer in self.permitted(network, flagged):
            if reason := split_refusal(wired, wired.layers[layer]):
                self._skip(network, layer, reason)
            else:
                shares[layer] = found[layer]
        if shares:
            self._split(network, shares, step)

    def _split(self, network: str, shares: Mapping[str, Mapping[int, list[int]]], step: int) -> None:
        monitor, wired = self.monitor(network), self.wired(network)

        def change() -> None:
            for layer, split in shares.items():
                for neuron, into in split.items():
                    scales = 0.5 + torch.rand(len(into), generator=self.generator, device="cpu")
                    optimizers = self._optimizers if self.moments else ()
                    self._ctx.redrawn(split_(wired, wired.layers[layer], neuron, into, scales, optimizers))
            self._ctx.edited()

        args, kwargs = monitor.inputs or ((), {})
        _, moved = function_change(unwrap(self._networks[network]), args, kwargs, change, monitor.method)
        reborn = {layer: sorted(i for into in split.values() for i in into) for layer, split in shares.items()}
        told = {layer: {str(i): into for i, into in split.items()} for layer, split in shares.items()}
        self.tell(network, step, reborn, moved, {"split": told})


def _mask(shares: Mapping[int, list[int]], size: int) -> Tensor:
    """Return the neurons that become copies, (size,) bool."""
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    mask[[i for into in shares.values() for i in into]] = True
    return mask
