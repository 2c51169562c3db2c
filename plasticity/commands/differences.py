"""Differences between the settings of a run and those asked for, and the settings that may change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from .contents import SWITCHED

SAFE = frozenset(
    {
        "steps",
        "log",
        "log_every",
        "eval_*",
        "quiet",
        "tag",
        "out",
        "checkpoint.*",
        "probes",
        "probe_every",
        "probe_window",
        "meters.*",
    }
)
"""Settings that a resumed run may change: learning from each step stays the same."""
NOTED = frozenset({"device", "torch_threads", "compile", "precision"})
"""Settings that it may change, too, but with which it no longer continues to the same bits."""
IMPLIED = {
    "probe_window": 1,
    "compile": "off",
    "precision": "float32",
    "preset": None,
    "task_steps": None,
    "num_tasks": None,
    "first_task": 0,
    "task_seed": None,
    "normaliser": "keep",
    "tag": (),
}
"""Settings that runs of earlier versions lack -> the value they acted by."""
ABSENT = "not there"


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], allowed: Iterable[str] = SAFE | NOTED) -> list[str]:
    """Return a line for every setting that differs: ``agent.gamma: 0.99 in the run, 0.9 asked for``.

    Settings are nested mappings of plain values, named by dotted keys; ``allowed``: names or globs to leave out. A
    tuple equals the list that JSON makes of it, and nan itself.
    """
    before, after = _flat(_whole(saved, now)), _flat(_whole(now, saved))
    before = {**{name: value for name, value in IMPLIED.items() if name in after}, **before}
    names = [name for name in dict.fromkeys([*before, *after]) if not _matches(name, allowed)]
    pairs = [(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names]
    return [f"{name}: {_show(a)} in the run, {_show(b)} asked for" for name, a, b in pairs if not _same(a, b)]


def notes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for every setting of ``NOTED`` that differs: the run goes on, but not to the same bits."""
    before, after = ({n: v for n, v in _flat(config).items() if _matches(n, NOTED)} for config in (saved, now))
    return [f"{line}; results will differ in the last bits" for line in differences(before, after, ())]


def _whole(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with one word for each method or meter that the other ones do not have at all."""
    parts = {}
    for kind in SWITCHED:
        parts[kind] = {n: one if n in other.get(kind, {}) else "on" for n, one in config.get(kind, {}).items()}
    return {**config, **parts}


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b):
        return True
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _show(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
