"""Batteries: one call that checks a probe, a meter, a method or an agent against its whole contract.

An AssertionError says what is broken. They need no test framework.
"""

from __future__ import annotations

from .agent import check_agent
from .environment import check_environment
from .meter import check_meter
from .method import check_method
from .probe import check_probe

__all__ = ["check_agent", "check_environment", "check_meter", "check_method", "check_probe"]
