"""ReDo: recycle dormant neurons (Sokar et al. 2023, *The Dormant Neuron Phenomenon in Deep RL*, arXiv 2302.12902)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from plasticity.observing.reading import Reading
from plasticity.probes import Dormancy, Probe
from plasticity.probes.activity import normalised_scores
from plasticity.surgery.unit_weights import incoming_magnitude, outgoing_magnitude, scale_rows_
from plasticity.value_types import require

from .recycling import Recycling
from .unit_signals import ActivationRows, GradientRows, MomentsProbe, unit_moments


def scheduled_share(share: float, step: int, end: int) -> float:
    """Return share * cos(pi step / (2 end)), 0 from ``end`` on. Source: google/dopamine, NeuronRecyclerScheduled."""
    return share * math.cos(math.pi * step / (2 * end)) if step < end else 0.0


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` lowest scores, (neurons,); none where a score is NaN."""
    mask = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    if not scores.isnan().any():
        mask[scores.argsort(stable=True)[:count]] = True
    return mask


@dataclass
class ReDo(Recycling):
    """Recycle neurons that hardly fire: fresh weights in, zeros out.

    The optimizer's state of these weights is cleared.

    ``paper``: threshold 0.025, every 1000 gradient steps, each layer's own initialiser. ``official`` (google/dopamine,
    labs/redo): threshold 0 every 200 000 steps, weights redrawn from Xavier-uniform and biases set to 0. timoklein/redo
    is ``threshold=0.1, init="he_uniform", adam_step="zero"``. Adam's step counter stays in both presets.
    Scores come from the training batch of the very step, where dopamine draws 256 other transitions.

    Compared with dopamine's NeuronRecycler, ten events of ``official`` with threshold 0.1, the same batch and draws, 68
    neurons: the same neurons, all weights and moments of weights to 1e-6; it leaves the moments of biases, here they
    are cleared. Compared with timoklein/redo on two convolutions and two linear layers, 78 neurons: the same in
    float64, but a weight between two neurons recycled together is 0 here (and in dopamine), a fresh draw there, and
    step counters restart where something is recycled, there in every layer.

    Variants that others offer: ``score`` gradient, |h dL/dh| per sample (dopamine's tfagents); weight, |w_in| |w_out|;
    random, the control; ``centred``, |h - mean h| (dopamine's sub_mean_score; with ``score`` gradient the utility of
    GXD, arXiv 2605.06834, of which the abstract alone was read); ``window``, the samples of the last steps together;
    ``ema``, a running average; ``share``, the lowest fraction by a falling schedule in place of the threshold
    (dopamine's NeuronRecyclerScheduled: 0.3); ``incoming_scale``, redrawn rows of the norm of the others (dopamine's
    weight_scaling). ``flagged_again`` is the share of the neurons recycled last that are
    flagged now.
    """

    NAME: ClassVar[str] = "redo"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": {
            "every": 1000,
            "threshold": 0.025,
            "outgoing": "zero",
            "init": "own",
            "moments": True,
            "adam_step": "keep",
            "norms": True,
        },
        "official": {
            "every": 200_000,
            "threshold": 0.0,
            "outgoing": "zero",
            "init": "xavier_uniform",
            "moments": True,
            "adam_step": "keep",
            "norms": False,
        },
    }

    score: Literal["activity", "gradient", "weight", "random"] = "activity"
    """The score of a neuron, relative to its layer's mean: |h|, |h dL/dh|, |w_in| |w_out|, or a random number."""
    centred: bool = False
    """Take h from its mean over the batch."""
    window: int = 1
    """Gradient steps whose samples are scored together, the last of them the one after which neurons are recycled."""
    ema: float = 0.0
    """Decay of a running average of the magnitudes over gradient steps, in [0, 1); 0 for the step's own."""
    share: float | None = None
    """Fraction of a layer that is recycled at first, the lowest scores, in place of the threshold; None: threshold."""
    incoming_scale: float | None = None
    """Norm of a redrawn row over the mean norm of the rows that stay (dopamine's weight_scaling: 1); None: as drawn."""
    share_end: int = 1_000_000
    """Gradient step at which the fraction has fallen to 0: share * cos(pi t / 2T)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "window from 1 to every, without when": 1 <= self.window <= (1 if self.when else self.every or 1),
            "0 <= ema < 1": 0 <= self.ema < 1,
            "window=1 with ema": not (self.ema and self.window > 1),
            "score activity or gradient where centred": not self.centred or self.score in ("activity", "gradient"),
            "window=1 and no ema with score weight or random": self.score in ("activity", "gradient")
            or not self.remembers,
            "0 < share <= 1": self.share is None or 0 < self.share <= 1,
            "share_end >= 1": self.share_end >= 1,
            "incoming_scale > 0": self.incoming_scale is None or self.incoming_scale > 0,
        }
        require("ReDo", rules, self)

    @property
    def remembers(self) -> bool:
        """Return whether scores are of several steps."""
        return bool(self.ema) or self.window > 1

    def probe(self) -> Probe:
        """Return the dormancy probe."""
        return Dormancy(self.threshold or 0.0)

    def probes(self) -> dict[str, Probe]:
        """Look at activity, or at what the variant needs."""
        if self.score == "gradient":
            return {"activations": ActivationRows(), "gradients": GradientRows()}
        if self.centred:
            return {"activations": ActivationRows()}
        return {"moments": MomentsProbe()} if self.remembers else super().probes()

    def due(self) -> Callable[[str, int], bool] | None:
        """Look at the steps of a window, or at all for a running average."""
        ask = super().due()
        if not self.remembers:
            return ask
        every = self.every or 1
        return None if self.ema else lambda network, step: -step % every < self.window

    def take(self, network: str, reading: Reading, step: int) -> None:
        """Remember what a step shows, and recycle where it is due."""
        if self.remembers:
            self._remember(network, reading)
            if not self._due(network, step):
                return
        super().take(network, reading, step)
        if self.window > 1:
            self.units[network].clear()

    def magnitudes(self, network: str, reading: Reading) -> dict[str, Tensor]:
        """Return layer -> mean magnitude of each neuron in this step, (neurons,) float64."""
        if "moments" in reading.scores:
            return {layer: unit_moments(scores).magnitude for layer, scores in reading.scores["moments"].items()}
        found = {}
        for layer, rows in reading.scores["activations"].items():
            h = rows.double() - rows.double().mean(0) if self.centred else rows.double()
            if self.score == "gradient":
                gradients = reading.scores["gradients"].get(layer)
                if gradients is None or gradients.shape != h.shape:
                    continue  # its gradient did not arrive
                h = h * gradients.double()
            found[layer] = h.abs().mean(0)
        return found

    def scores(self, network: str, reading: Reading) -> Mapping[str, Tensor]:
        """Return layer -> score of each neuron, relative to the layer's mean."""
        wired = self.wired(network)
        if self.score == "random":
            sizes = {layer: len(scores) for layer, scores in reading.scores[self.NAME].items()}
            draws = {la: torch.rand(n, generator=self.generator, device="cpu") for la, n in sizes.items()}
            return {layer: normalised_scores(draw.double()) for layer, draw in draws.items()}
        if self.score == "weight":
            layers = {layer: wired.layers[layer] for layer in reading.scores[self.NAME]}
            products = {n: incoming_magnitude(la) * outgoing_magnitude(wired, la) for n, la in layers.items()}
            return {layer: normalised_scores(product) for layer, product in products.items()}
        if self.remembers:
            known = self.units[network].items()
            return {layer: normalised_scores(units["sum"] / units["weight"].clamp_min(1e-12)) for layer, units in known}
        if self.centred or self.score == "gradient":
            return {layer: normalised_scores(found) for layer, found in self.magnitudes(network, reading).items()}
        return super().scores(network, reading)

    def _remember(self, network: str, reading: Reading) -> None:
        """Add a step: weighted by its samples in a window, by the decay in a running average."""
        for layer, found in self.magnitudes(network, reading).items():
            new = {"sum": torch.zeros_like(found), "weight": torch.zeros_like(found)}
            known = self.units[network].setdefault(layer, new)
            scores = reading.scores.get("moments", reading.scores.get("activations", {}))[layer]
            samples = unit_moments(scores).num_samples if "moments" in reading.scores else len(scores)
            keep, add = (self.ema, 1 - self.ema) if self.ema else (1.0, float(samples))
            known["sum"].mul_(keep).add_(found, alpha=add)
            known["weight"].mul_(keep).add_(add)

    def _recycle_(self, network: str, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
        done = super()._recycle_(network, masks)
        if self.incoming_scale:
            self._ctx.edited()  # connections that do not exist have no part in the norm
        for layer, mask in masks.items() if self.incoming_scale else ():
            scale_rows_(self.wired(network).layers[layer], mask, self.incoming_scale or 1.0)
        return done

    def select(self, scores: Tensor, step: int) -> Tensor:
        """Return the neurons below the threshold, or the lowest fraction."""
        if self.share is None:
            return super().select(scores, step)
        return lowest(scores, int(scheduled_share(self.share, step, self.share_end) * len(scores)))
