"""Interventions: what can be done about it, one file per method. ``INTERVENTIONS`` is the contents page."""

from __future__ import annotations

from .injection import PlasticityInjection
from .intervention import Intervention
from .least import LearnToStop
from .ne import NeuroplasticExpansion
from .redo import ReDo
from .regrama import ReGraMa
from .reset import Reset
from .shrink_perturb import ShrinkPerturb
from .swd import SampleWeightDecay

INTERVENTIONS: dict[str, type[Intervention]] = {
    "redo": ReDo,
    "regrama": ReGraMa,
    "ne": NeuroplasticExpansion,
    "swd": SampleWeightDecay,
    "least": LearnToStop,
    "reset": Reset,
    "shrink_perturb": ShrinkPerturb,
    "plasticity_injection": PlasticityInjection,
}
"""Name (the flag) -> the callback, a dataclass whose fields are its hyperparameters."""

__all__ = [
    "INTERVENTIONS",
    "Intervention",
    "LearnToStop",
    "NeuroplasticExpansion",
    "PlasticityInjection",
    "ReDo",
    "ReGraMa",
    "Reset",
    "SampleWeightDecay",
    "ShrinkPerturb",
]
