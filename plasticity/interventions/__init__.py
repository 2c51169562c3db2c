"""Interventions: what can be done about it, one file per method. ``INTERVENTIONS`` is the contents page."""

from __future__ import annotations

from collections.abc import Callable

from plasticity.callback import Callback

INTERVENTIONS: dict[str, Callable[..., Callback]] = {}
"""Name -> the callback, a dataclass whose fields are its hyperparameters."""
