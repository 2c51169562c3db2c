"""Meters: measurements that no single layer can give, one file each. ``METERS`` is the contents page."""

from __future__ import annotations

from .churn import Churn
from .critics import CriticDisagreement
from .features import FeatureDot
from .fit_probe import FitProbe
from .meter import Meter
from .overestimation import Overestimation
from .policy import Policy
from .replayed import Replayed
from .target_distance import TargetDistance

METERS: dict[str, type[Meter]] = {
    "churn": Churn,
    "critic_disagreement": CriticDisagreement,
    "feature_dot": FeatureDot,
    "fit_probe": FitProbe,
    "overestimation": Overestimation,
    "policy": Policy,
    "replay": Replayed,
    "target_distance": TargetDistance,
}
"""Name (the flag) -> the callback, a dataclass whose fields are its settings."""

__all__ = [
    "METERS",
    "Churn",
    "CriticDisagreement",
    "FeatureDot",
    "FitProbe",
    "Meter",
    "Overestimation",
    "Policy",
    "Replayed",
    "TargetDistance",
]
