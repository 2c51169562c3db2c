"""Rules that settings must keep, and the error that lists the broken ones."""

from __future__ import annotations

from collections.abc import Mapping


def require(name: str, rules: Mapping[str, bool], got: object) -> None:
    """Raise ValueError with all rules, text -> whether it holds, that do not hold for ``got``."""
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise ValueError(f"{name} needs {', '.join(broken)}; got {got}")
