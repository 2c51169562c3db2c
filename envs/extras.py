"""Packages that only some environments need: not installed by default, imported where they are used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Extra:
    """A package, its import name, the environments that need it, and how it is installed."""

    module: str
    package: str
    environments: str
    install: str | None = None
    """Words in place of the pip command of the optional dependency."""


WITHOUT_LABMAZE = (
    "pip install dm-control; on Python 3.13 and newer, where its dependency labmaze, which the suite does not use, has "
    "no wheel: pip install dm-env lxml scipy tqdm && pip install --no-deps dm-control"
)
"""Installation of dm_control on every Python."""

EXTRAS = {
    "dm-control": Extra(
        "dm_control", "dm-control", "dmc/<domain>-<task>, dmc-pixels/..., cdmc/<body>", WITHOUT_LABMAZE
    ),
    "atari": Extra("ale_py", "ale-py", "the games atari/<game>"),
    "box2d": Extra("Box2D", "Box2D", "LunarLander-v3, BipedalWalker-v3, CarRacing-v3"),
    "digits": Extra("sklearn", "scikit-learn", "the streams permuted-digits, random-labels, warm-start"),
    "minatar": Extra("minatar", "MinAtar", "the games minatar/<game>"),
}
"""By the name of the optional dependency of this distribution, or of the package itself."""


def installed(extra: str) -> bool:
    """Say whether the package of `extra` can be imported."""
    return find_spec(EXTRAS[extra].module) is not None


def require_extra(extra: str, name: str) -> None:
    """Raise ModuleNotFoundError if the environment `name` needs `extra` and it is not installed."""
    if not installed(extra):
        raise ModuleNotFoundError(_hint(extra, f"{name} needs"))


def missing_extras() -> list[str]:
    """Return a line for every extra that is not installed: which environments need it, and how to get it."""
    return [
        _hint(key, f"not installed: {extra.environments} need") for key, extra in EXTRAS.items() if not installed(key)
    ]


def _hint(extra: str, need: str) -> str:
    how = EXTRAS[extra].install or f"pip install 'plasticity-toolkit[{extra}]'"
    return f"{need} {EXTRAS[extra].package}: {how}"
