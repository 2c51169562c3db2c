"""Continual backprop: replace, all the time, a few of the neurons that are of least use.

Dohare et al. 2024, *Loss of plasticity in deep continual learning*, Nature 632, doi 10.1038/s41586-024-07711-7,
algorithm 1; code: github.com/shibhansh/loss-of-plasticity, `lop/algos/gnt.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plasticity.observing.reading import Reading
from plasticity.probes import Probe
from plasticity.surgery.permission import refusals
from plasticity.surgery.unit_weights import incoming_magnitude, outgoing_magnitude, transfer_to_biases_
from plasticity.value_types import require

from .unit_signals import ActivationRows, MomentsProbe, unit_moments
from .units import UnitRecycling, Units

_SETTINGS = {
    "maturity": 10_000,
    "transfer": True,
    "outgoing": "zero",
    "init": "own",
    "moments": True,
    "adam_step": "keep",
    "norms": True,
}
OF_ROWS = ("zero_contribution", "adaptable_contribution", "feature_by_input")
"""Utilities of |h - f^|, which no sum over earlier steps gives."""


def contribution(
    utility: str,
    magnitude: Tensor,
    deviation: Callable[[], Tensor],
    outgoing: Callable[[], Tensor],
    incoming: Callable[[], Tensor],
    draw: Callable[[], Tensor],
) -> Tensor:
    """Return the instantaneous utility of each neuron, (neurons,), and compute only what it is made of.

    ``magnitude``: mean |h|. ``deviation``: mean |h - f^|, f^ the running mean of h. ``outgoing``, ``incoming``: mean
    (or sum) of |weights|. ``draw``: random numbers. All (neurons,).
    """
    return {
        "contribution": lambda: magnitude * outgoing(),
        "weight": outgoing,
        "adaptation": lambda: 1 / incoming(),
        "zero_contribution": lambda: outgoing() * deviation(),
        "adaptable_contribution": lambda: outgoing() * deviation() / incoming(),
        "feature_by_input": lambda: deviation() / incoming(),
        "random": draw,
    }[utility]()


@dataclass
class ContinualBackprop(UnitRecycling):
    """Replace a few of the least useful neurons, all the time.

    After every step, in every layer: age += 1; u <- eta u + (1 - eta) utility and f <- eta f + (1 - eta) mean h,
    both divided by 1 - eta^age where they are used. Neurons older than ``maturity`` are eligible; ``rate`` times their
    number is added to a counter, and as many as its whole part, of the lowest u, are replaced: incoming weights are
    redrawn, outgoing ones 0, what they gave to the next layer on average goes to its biases, u = f = age = 0.

    ``paper``: maturity 10 000, of the paper's RL, whose Adam has betas 0.99, 0.99. ``supervised``: maturity 100, of its
    supervised streams; those of this package are too short for the other. ``official``: maturity 20, the class's
    default, and no transfer to biases: the code zeroes f before it uses it, so that its transfer is always 0. Utilities
    look at mean |outgoing weights| in all; with ``outgoing_sum`` they look at the sum. ``zero_contribution``,
    ``adaptable_contribution`` and ``feature_by_input`` need the rows of every step; sums are enough for the others.

    The optimizer's step counter is one for a tensor and stays. Behind a norm the transfer is not exact: compare
    ``function_change``. Layers that cannot be cut are left alone and named once in an event.

    Compared with the released code, eight steps and the first replacement for each of five utilities: the same neurons,
    utilities and means to 2e-7.
    """

    NAME: ClassVar[str] = "cbp"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": _SETTINGS,
        "supervised": {**_SETTINGS, "maturity": 100},
        "official": {**_SETTINGS, "maturity": 20, "transfer": False, "norms": False},
    }

    preset: Literal["paper", "supervised", "official"] = "paper"  # type: ignore[assignment]  # one more than its kin
    """Defaults of the options that are None: as the paper says for RL, or supervised streams, or as the code does."""
    rate: float = 1e-4
    """Replaced neurons per eligible one and step (rho)."""
    decay: float = 0.99
    """Decay of the running averages (eta), in [0, 1)."""
    maturity: int | None = None
    """Steps that a neuron must be older than to be replaced (m)."""
    utility: Literal[
        "contribution",
        "weight",
        "adaptation",
        "zero_contribution",
        "adaptable_contribution",
        "feature_by_input",
        "random",
    ] = "contribution"
    """The measure of use: mean |h| |w_out|; |w_out|; 1 / |w_in|; |h - f| |w_out|; that over |w_in|;
    |h - f| over |w_in|; a random number, the control."""
    outgoing_sum: bool = False
    """Let |w_out| be the sum over the weights of consumers instead of their mean."""
    transfer: bool | None = None
    """Move the mean output of replaced neurons to the biases of the next layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "0 <= rate <= 1": 0 <= self.rate <= 1,
            "0 <= decay < 1": 0 <= self.decay < 1,
            "maturity >= 0": (self.maturity or 0) >= 0,
            "outgoing='zero' or 'small' with transfer": not (self.transfer and self.outgoing == "keep"),
        }
        require("ContinualBackprop", rules, self)
        self.counters: dict[str, dict[str, float]] = {}
        """Network -> layer -> neurons owed, in [0, 1) between steps."""

    def probes(self) -> dict[str, Probe]:
        """Look at means of activations; at rows where deviations from the running mean are asked for."""
        rows: dict[str, Probe] = {"rows": ActivationRows()} if self.utility in OF_ROWS else {}
        return {"moments": MomentsProbe(), **rows}

    def earliest(self) -> int:
        """Return the step after which the first neurons are mature."""
        return max(self.start, 1) + (self.maturity or 0)

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Age the neurons of one network, and replace those that are due."""
        counters, wired = self.counters.setdefault(network, {}), self.wired(network)
        flagged = {}
        for layer in reading.scores["moments"]:
            if (network, layer) in self.left_alone:
                continue
            known = self._age(network, layer, reading)
            eligible = known["age"] > (self.maturity or 0)
            counters[layer] = counters.get(layer, 0.0) + self.rate * int(eligible.sum())
            owed = min(math.floor(counters[layer] + 1e-9), int(eligible.sum()))
            if owed:
                counters[layer] -= owed
                u = (known["utility"] / (1 - self.decay ** known["age"])).masked_fill(~eligible, math.inf)
                flagged[layer] = torch.zeros_like(eligible)
                flagged[layer][u.argsort(stable=True)[:owed]] = True
        if not flagged:
            return
        masks = self.permitted(network, flagged)
        self.left_alone |= {(network, layer) for layer in flagged if refusals(wired, layer, self.outgoing or "zero")}
        if masks:
            recycled, moved = self.recycle(network, masks)
            self.tell(network, step, recycled, moved, {})

    def _age(self, network: str, layer: str, reading: Reading) -> Units:
        """Update what is known of a layer's neurons, and return it."""
        found, wired = unit_moments(reading.scores["moments"][layer]), self.wired(network)
        new = {key: torch.zeros_like(found.mean) for key in ("age", "utility", "mean")}
        known, eta = self.units[network].setdefault(layer, new), self.decay
        known["age"] += 1
        known["mean"].mul_(eta).add_(found.mean, alpha=1 - eta)
        wires = wired.layers[layer]
        now = contribution(
            self.utility,
            found.magnitude,
            lambda: (reading.scores["rows"][layer].double() - self.mean(known)).abs().mean(0),
            lambda: outgoing_magnitude(wired, wires, "sum" if self.outgoing_sum else "mean"),
            lambda: incoming_magnitude(wires),
            lambda: torch.rand(len(found.mean), generator=self.generator, dtype=torch.float64, device="cpu"),
        )
        known["utility"].mul_(eta).add_(now, alpha=1 - eta)
        return known

    def mean(self, known: Units) -> Tensor:
        """Return the running mean of the activations, (neurons,), corrected for its youth; 0 for a new neuron."""
        return torch.where(known["age"] > 0, known["mean"] / (1 - self.decay ** known["age"].clamp_min(1)), 0.0)

    def before_recycling(self, network: str, masks: Mapping[str, Tensor]) -> None:
        """Move the mean output of the neurons to the biases of their consumers."""
        if self.transfer:
            transfer_to_biases_(self.wired(network), masks, {la: self.mean(self.units[network][la]) for la in masks})

    def state_dict(self) -> dict[str, Any]:
        """Return what the base does, and the counters."""
        counters = {network: dict(layers) for network, layers in self.counters.items()}
        return {**super().state_dict(), "counters": counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.counters = {network: dict(layers) for network, layers in state["counters"].items()}
