"""ReGraMa: recycle neurons that hardly learn.

Liu et al. 2025, *Measure Gradients, not Activations! Enhancing Neuronal Activity in Deep Reinforcement Learning*,
arXiv 2505.24061.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.isolation import named_modules
from plasticity.probes import GradientActivity, Probe, normalised_scores
from plasticity.structure.layers import NORM_MODULES
from plasticity.surgery.optimizer_state import clear_state_

from .recycling import Recycling, select


def norm_scores(gain: Tensor) -> Tensor | None:
    """Return the score |dL/dgain| / mean of each entry of a norm's gain, (entries,); None without a gradient.

    Source: github.com/torressliu/grad-based-plasticity-metrics, where a LayerNorm counts as a layer of neurons.
    """
    return None if gain.grad is None else normalised_scores(gain.grad.detach().abs().flatten().double().cpu())


@dataclass
class ReGraMa(Recycling):
    """Recycle neurons of low gradient: fresh weights in, zeros out.

    ``paper``: score on pre-activation gradients, threshold 0.01 (BRO, DACER; the paper uses 0 for SAC), outgoing
    weights zeroed; the paper does not say what becomes of the optimizer's moments, and we clear them. ``official``
    (github.com/torressliu/grad-based-plasticity-metrics): score on the weight gradient, threshold 0, He-uniform redraw,
    outgoing weights and moments untouched. Entries of normalisation layers count as neurons with the score |dL/dgain|
    and go back to gain 1 and bias 0, in both. Output layers, which the official code scores too, are never recycled.
    A step in which no gradient at all reaches the network tells nothing, and nothing is recycled.
    """

    NAME: ClassVar[str] = "regrama"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "paper": {
            "every": 1000,
            "threshold": 0.01,
            "score": "pre",
            "outgoing": "zero",
            "init": "own",
            "moments": True,
            "adam_step": "keep",
            "norms": True,
        },
        "official": {
            "every": 1000,
            "threshold": 0.0,
            "score": "weight",
            "outgoing": "keep",
            "init": "he_uniform",
            "moments": False,
            "adam_step": "keep",
            "norms": False,
        },
    }

    score: Literal["pre", "weight", "post"] | None = None
    """The reading of the gradient that scores a neuron: before the activation, of the incoming weights, or behind the
    activation, which contradicts the paper's theorem."""
    score_norms: bool = True
    """Score and reset entries of normalisation layers as neurons of their own."""

    def probe(self) -> Probe:
        """Return the GraMa probe."""
        return GradientActivity(self.score or "pre", self.threshold or 0.0)

    def uninformative(self, module: nn.Module) -> str | None:
        """Return that no gradient reached any parameter, where that is so."""
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        silent = bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)
        return "its gradient was 0 everywhere" if silent else None

    def flagged_norms(self, module: nn.Module) -> dict[str, Tensor]:
        """Return norm layer -> mask of the entries whose gain hardly learns, in the shape of the gain."""
        found = {}
        for name, norm in _norms(module) if self.score_norms else ():
            gain = norm._parameters.get("weight")
            scores = norm_scores(gain) if gain is not None and gain.requires_grad else None
            if gain is not None and scores is not None:
                mask = select(scores, self.threshold or 0.0, self.cap)
                if mask.any():
                    found[name] = mask.view_as(gain)
        return found

    @torch.no_grad()
    def reset_norms_(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Set gain 1 and bias 0, gradient 0, and with ``moments`` clear their optimizer state."""
        for name, norm in _norms(module):
            for key, value in (("weight", 1.0), ("bias", 0.0)):
                parameter = norm._parameters.get(key)
                if name not in masks or parameter is None or not parameter.requires_grad:
                    continue
                where = masks[name].to(parameter.device)
                parameter.masked_fill_(where, value)
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(where, 0)
                if self.moments:
                    clear_state_(self._optimizers, parameter, where, self.adam_step or "keep")


def _norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, part) for name, part in named_modules(module).items() if isinstance(part, NORM_MODULES))
