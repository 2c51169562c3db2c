"""ReBorn: let over-active neurons share their work with dormant ones.

Qin et al. 2024, *The Dormant Neuron Phenomenon in Multi-Agent Reinforcement Learning Value Factorization*, NeurIPS 2024
(openreview.net/forum?id=4NGrHrhJPx; no arXiv number is known here); code: github.com/xmu-rl-3dv/ReBorn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from plasticity.observing.reading import Reading
from plasticity.probes import Dormancy, Probe
from plasticity.surgery.split import split_, split_refusal
from plasticity.value_types import require

from .recycling import Recycling

Shares = dict[int, list[int]]
"""Over-active neuron -> the dormant ones that share its work."""


def sharing(
    scores: Tensor, dormant: float, active: float, most: int, generator: torch.Generator | None = None
) -> Shares:
    """Return which dormant neurons share the work of which over-active one, at most ``most`` each.

    ``scores``: relative to the layer's mean, (neurons,). Dormant: at most ``dormant``; over-active: above ``active``.
    The most active one is served first; with a ``generator``, each dormant neuron goes to one at random that has room.
    """
    if bool(scores.isnan().any()):
        return {}
    asleep = [int(i) for i in (scores <= dormant).nonzero().flatten()]
    awake = [int(i) for i in scores.argsort(descending=True, stable=True) if scores[i] > active]
    shares: Shares = {i: asleep[k * most : (k + 1) * most] for k, i in enumerate(awake)}
    if generator is not None:
        shares = {i: [] for i in awake}
        for place in torch.randperm(len(asleep), generator=generator, device="cpu").tolist():
            if room := [i for i in awake if len(shares[i]) < most]:
                shares[room[_below(len(room), generator)]].append(asleep[place])
    return {i: into for i, into in shares.items() if into}


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator, device="cpu"))


_BOTH = {
    "every": 1000,
    "threshold": 0.1,
    "active": 3.0,
    "shared": 5,
    "at_random": False,
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
    become copies of it, their incoming weights times a random scale a in [0.3, 0.8], their outgoing weights a part of
    its own over a; it keeps one part. The function stays, but for what the dormant neurons still did: exactly so for
    ReLU without a norm, and layers with another activation are left alone and named.

    Thresholds, number and scales are those of the released code. ``official``, as in that code: partners are drawn, the
    parts are a softmax of normal draws for each neuron behind, and dormant neurons that find no over-active one are
    redrawn. ``paper``: the most active neuron is served first, parts are equal, and such neurons stay as they are (of
    the paper, the abstract was read). Differences: the code acts every second evaluation, on sums of activations since
    the run began, and leaves the optimizer's state alone. With its draws given to ours, two layers are equal entry by
    entry.
    """

    NAME: ClassVar[str] = "reborn"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {"paper": _BOTH, "official": {**_BOTH, "at_random": True}}

    active: float | None = None
    """Score above which a neuron is over-active (beta)."""
    shared: int | None = None
    """Largest number of dormant neurons that share the work of one."""
    at_random: bool | None = None
    """Draw partners and parts, and redraw dormant neurons that find no over-active one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        enough = (self.active or 0.0) > (self.threshold or 0.0)
        require("ReBorn", {"active > threshold": enough, "shared >= 1": (self.shared or 0) >= 1}, self)

    def probe(self) -> Probe:
        """Return the dormancy probe."""
        return Dormancy(self.threshold or 0.0)

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Split the over-active neurons of one network."""
        generator = self.generator if self.at_random else None
        bounds = self.threshold or 0.0, self.active or 0.0, self.shared or 0
        scores, wired = self.scores(network, reading), self.wired(network)
        shares = {layer: sharing(values, *bounds, generator) for layer, values in scores.items()}
        copies = {layer: _mask(found, len(scores[layer])) for layer, found in shares.items()}
        redrawn = {layer: (scores[layer] <= bounds[0]).cpu() & ~mask for layer, mask in copies.items()}
        flagged = {layer: mask | redrawn[layer] if self.at_random else mask for layer, mask in copies.items()}
        split: dict[str, Shares] = {}
        rest: dict[str, Tensor] = {}
        for layer in self.permitted(network, flagged):
            if reason := split_refusal(wired, wired.layers[layer]):
                self._skip(network, layer, reason)
                continue
            split |= {layer: shares[layer]} if shares[layer] else {}
            rest |= {layer: redrawn[layer]} if self.at_random and bool(redrawn[layer].any()) else {}
        if split or rest:
            done, moved = self.recycle(network, rest, lambda: self._split(network, split))
            reborn = {layer: sorted(i for into in found.values() for i in into) for layer, found in split.items()}
            told: dict[str, Any] = {la: {str(i): into for i, into in found.items()} for la, found in split.items()}
            self.tell(network, step, reborn, moved, {"split": told, **({"redrawn": done} if done else {})})

    def _split(self, network: str, shares: Mapping[str, Shares]) -> None:
        wired, optimizers = self.wired(network), self._optimizers if self.moments else ()
        for layer, found in shares.items():
            for neuron, into in found.items():
                scales = 0.3 + 0.5 * torch.rand(len(into), generator=self.generator, device="cpu")
                parts = partial(self._parts, len(into) + 1) if self.at_random else None
                self._ctx.redrawn(split_(wired, wired.layers[layer], neuron, into, scales, optimizers, parts))

    def _parts(self, number: int, outputs: int) -> Tensor:
        """Return random parts of a whole for each neuron behind, (number, outputs)."""
        return torch.randn(number, outputs, generator=self.generator, device="cpu").softmax(0)


def _mask(shares: Shares, size: int) -> Tensor:
    """Return the neurons that become copies, (size,) bool."""
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    mask[[i for into in shares.values() for i in into]] = True
    return mask
