"""Meters: measurements that no single layer can give, one file each. ``METERS`` is the contents page."""

from __future__ import annotations

from .churn import Churn
from .fit_probe import FitProbe
from .meter import Meter
from .target_distance import TargetDistance

METERS: dict[str, type[Meter]] = {
    "churn": Churn,
    "fit_probe": FitProbe,
    "target_distance": TargetDistance,
}
"""Name (the flag) -> the callback, a dataclass whose fields are its settings."""

__all__ = ["METERS", "Churn", "FitProbe", "Meter", "TargetDistance"]
