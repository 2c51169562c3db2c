"""Configurations of runs: groups with the same settings up to the seed, named by their differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from plasticity.storage.files import printable

from .runs import RecordedRun

PLAIN = "no intervention"


@dataclass
class Configuration:
    """Runs that differ in their seed only, by environment."""

    name: str
    settings: dict[str, Any]
    runs: dict[str, list[RecordedRun]] = field(default_factory=dict)


def configurations(runs: Sequence[RecordedRun]) -> list[Configuration]:
    """Return the configurations of ``runs``, each named by its differences, in order of their names.

    A setting that differs between environments only (say, the number of steps) belongs to the task and not to the
    configuration: the key is made of what varies within at least one environment.
    """
    varying = _varying(runs)
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        key = json.dumps({k: run.settings[k] for k in varying if k in run.settings}, sort_keys=True, default=str)
        groups.setdefault(key, []).append(run)
    firsts = [members[0].told for members in groups.values()]
    result = []
    for name, members in zip(_names(firsts, varying), groups.values(), strict=True):
        by_env: dict[str, list[RecordedRun]] = {}
        for run in sorted(members, key=lambda r: (r.env, str(r.seed).zfill(9))):
            by_env.setdefault(run.env, []).append(run)
        result.append(Configuration(name, members[0].told, by_env))
    return sorted(result, key=lambda c: (len(c.settings.get("interventions", ())), c.name))


def doubts(configuration: Configuration) -> list[str]:
    """Return notes on differences other than the seed in a configuration: versions, settings not recorded."""
    runs = [run for members in configuration.runs.values() for run in members if run.record]
    stamps = [{**run.record.get("versions", {}), "commit": (run.record.get("git") or {}).get("commit")} for run in runs]
    keys = {key for stamp in stamps for key in stamp}
    mixed = sorted(key for key in keys if len({str(stamp.get(key)) for stamp in stamps}) > 1)
    everything = {key for run in runs for key in run.settings}
    partial = sorted(key for key in everything if not all(key in run.settings for run in runs))
    notes = []
    if mixed:
        notes.append(f"the runs of {configuration.name} were not made by the same versions: {', '.join(mixed)}")
    if partial:
        notes.append(f"not recorded by every run of {configuration.name}, and taken as the same: {', '.join(partial)}")
    return notes


def text(value: Any) -> str:
    """Return the value of a setting as on the command line."""
    if isinstance(value, list):
        return " ".join(map(text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _varying(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the settings that take two values within one environment; agents and methods, in all environments.

    That a setting is missing does not tell two runs apart: an older version did not have it, or it belongs to an agent
    or an intervention that a run does without, and these are settings too.
    """
    seen: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for key, value in run.settings.items():
            env = "" if key in ("agent", "interventions") else run.env
            seen.setdefault((env, key), set()).add(_frozen(value))
    varying = {key for (_, key), values in seen.items() if key != "env" and len(values) > 1}
    return [key for key in dict.fromkeys(key for run in runs for key in run.settings) if key in varying]


def _names(settings: Sequence[dict[str, Any]], varying: Sequence[str]) -> list[str]:
    named = [key for key in varying if key in ("agent", "interventions") or _splits(key, settings)]
    names = [_name(one, named) for one in settings]
    return [name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names, 1)]


def _splits(key: str, settings: Sequence[dict[str, Any]]) -> bool:
    """Return whether a setting differs between configurations that have it, within one agent: else its name says it."""
    by_agent: dict[Any, set[str]] = {}
    for one in settings:
        if key in one:
            by_agent.setdefault(one.get("agent"), set()).add(_frozen(one[key]))
    return any(len(values) > 1 for values in by_agent.values())


def _name(settings: dict[str, Any], keys: Sequence[str]) -> str:
    if "run" in settings:
        return str(settings["run"])
    parts = []
    for key in keys:
        if key == "agent":
            parts.append(str(settings[key]))
        elif key == "interventions":
            parts.append(_methods(settings))
        elif key in settings:
            parts.append(f"{key}={text(settings[key])}")
    return ", ".join(parts) or " ".join([str(settings["agent"]), *(f"+ {m}" for m in settings["interventions"])])


def _methods(settings: dict[str, Any]) -> str:
    return " + ".join(settings["interventions"]) or PLAIN


def _frozen(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
