"""Diagnosis: whether a network can still learn, where that is lost, and what would help, tried on copies."""

from __future__ import annotations

from .examine import diagnose
from .fit import FitCurve, fit
from .verdict import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "FitCurve", "diagnose", "fit"]
