"""Bring what an older version wrote to the names of this one: one table per kind of change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED: dict[str, dict[str, tuple[str, dict[Any, Any]]]] = {
    "dqn": {
        "dueling": ("head", {True: "dueling", False: "linear"}),
        "distributional": ("returns", {True: "c51", False: "mean"}),
    },
}
"""Agent -> setting of 0.1.0 -> its present name, and its values there."""


def upgraded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a ``run.json`` with the present names of settings; what has them already is unchanged."""
    renamed, config = RENAMED.get(record["agent"], {}), dict(record["config"])
    if not renamed or not isinstance(config.get("agent"), Mapping):
        return dict(record)
    config["agent"] = _settings(config["agent"], renamed)
    found = {**record, "config": config}
    if "arguments" in record:
        found["arguments"] = [new for old in record["arguments"] for new in _flags(old, renamed)]
    return found


def _settings(settings: Mapping[str, Any], renamed: Mapping[str, tuple[str, dict[Any, Any]]]) -> dict[str, Any]:
    """Return the settings of an agent."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        new, values = renamed.get(name, (name, {}))
        found[new] = values.get(value, value) if values else value
    return found


def _flags(argument: str, renamed: Mapping[str, tuple[str, dict[Any, Any]]]) -> list[str]:
    """Return an argument of the command line: the flags ``--name`` and ``--no-name`` of a setting that had them."""
    name = argument.removeprefix("--").replace("-", "_")
    for old, (new, values) in renamed.items():
        for spelling, value in ((old, True), (f"no_{old}", False)):
            if argument.startswith("--") and name == spelling:
                return [f"--{new.replace('_', '-')}", values[value]]
    return [argument]
