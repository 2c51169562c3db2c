"""ReDo: recycle dormant neurons (Sokar et al. 2023, *The Dormant Neuron Phenomenon in Deep RL*, arXiv 2302.12902)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from plasticity.probes import Dormancy, Probe

from .recycling import Recycling


@dataclass
class ReDo(Recycling):
    """Recycle neurons that hardly fire: fresh weights in, zeros out.

    The optimizer's state of these weights is cleared.

    ``paper``: threshold 0.025, every 1000 gradient steps, each layer's own initialiser. ``official`` (google/dopamine,
    labs/redo): threshold 0 every 200 000 steps, weights redrawn from Xavier-uniform and biases set to 0. timoklein/redo
    is ``threshold=0.1, init="he_uniform", adam_step="zero"``. Adam's step counter stays in both presets.
    Scores come from the training batch of the very step, where dopamine draws 256 other transitions.
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

    def probe(self) -> Probe:
        """Return the dormancy probe."""
        return Dormancy(self.threshold or 0.0)
