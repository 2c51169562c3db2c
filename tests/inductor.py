"""Parameter sets for tests of compiled updates: which of them compile for real, and which run as they were traced."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_compiled(names: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Return names to be compiled by inductor if they are quick, else run as traced; the others are compiled if slow.

    For a test that uses the fixture `as_traced`.
    """
    sets = [pytest.param(name, marks=pytest.mark.inductor if name in quick else ()) for name in names]
    others = [name for name in names if name not in quick]
    slow = (pytest.mark.inductor, pytest.mark.slow)
    return sets + [pytest.param(name, marks=slow, id=f"{name}-inductor") for name in others]
