"""Batteries: one call that checks a method or an agent against its whole contract; AssertionError says what is broken.

They need no test framework.
"""

from __future__ import annotations

from .agent import check_agent
from .method import check_method

__all__ = ["check_agent", "check_method"]
