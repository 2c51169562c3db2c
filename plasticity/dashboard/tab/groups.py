"""Group runs into configurations, whose runs differ in their seed only, and name them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from plasticity.storage.record import NO_CONFIGURATION

_SEED = re.compile(r"[_\-. ]?\bseed[_\-=. ]?\d+|[_\-. ]seed[_\-=. ]?\d+", re.IGNORECASE)


def group_runs(records: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Return run name -> label of its configuration; runs with the same label are seeds of one another.

    ``records``: run name -> its ``run.json``, None where it has none. Then the name decides: what is left of it without
    ``seed_3`` and the like. Labels that would be the same for different configurations tell the settings that differ.
    """
    keys = {run: _configuration(record) for run, record in records.items()}
    flat = {key: dict(_leaves(json.loads(key))) for key in set(keys.values()) if key}
    titles = {key: _title(json.loads(key)) for key in flat}
    labels: dict[str, str] = {}
    for key, title in titles.items():
        rivals = sorted(other for other in titles if titles[other] == title)
        labels[key] = title if len(rivals) == 1 else f"{title} ({_difference(key, rivals, flat)})"
    return {run: labels[key] if key else without_seed(run) for run, key in keys.items()}


def without_seed(name: str) -> str:
    """Return a run's name without its seed and the time behind it: ``a/ppo_seed3`` is ``a/ppo``."""
    match = _SEED.search(name)
    if match is None:
        return name
    rest = re.sub(r"^[_\-]\d{8}-\d{6}", "", name[match.end() :])
    return (name[: match.start()] + rest).strip("/_-. ") or "seeds"


def seed_of(name: str, record: Mapping[str, Any] | None) -> str:
    """Return a run's seed as text, else its name."""
    config = (record or {}).get("config")
    if isinstance(config, Mapping) and "seed" in config:
        return f"seed {config['seed']}"
    match = re.search(r"seed[_\-=. ]?(\d+)", name, re.IGNORECASE)
    return f"seed {match[1]}" if match else name


def _configuration(record: Mapping[str, Any] | None) -> str:
    """Return the agent and its settings as JSON, without those that do not count; empty where there are none."""
    if not record or not isinstance(record.get("config"), Mapping):
        return ""
    return json.dumps({"agent": record.get("agent"), "config": _trimmed(record["config"])}, sort_keys=True)


def _trimmed(settings: Any) -> Any:
    if isinstance(settings, Mapping):
        return {str(k): _trimmed(v) for k, v in settings.items() if k not in NO_CONFIGURATION}
    return settings


def _title(configuration: Mapping[str, Any]) -> str:
    config = configuration["config"]
    methods = config.get("interventions")
    names = [f"+ {name.replace('_', '-')}" for name in methods] if isinstance(methods, Mapping) else []
    return " ".join(str(part) for part in (configuration["agent"], config.get("env"), *names) if part) or "run"


def _leaves(settings: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(settings, Mapping):
        return [leaf for key, value in settings.items() for leaf in _leaves(value, f"{path}.{key}" if path else key)]
    return [(path, json.dumps(settings) if not isinstance(settings, str) else settings)]


def _difference(key: str, rivals: list[str], flat: Mapping[str, Mapping[str, str]]) -> str:
    """Return the settings by which ``key`` differs from its rivals, shortest names first, and a number if too many."""
    paths = sorted({p for other in rivals for p in flat[other]}, key=lambda path: (path.count("."), path))
    told = [p for p in paths if len({flat[other].get(p) for other in rivals}) > 1]
    text = ", ".join(f"{path.rsplit('.', 1)[-1]} {flat[key].get(path, 'unset')}" for path in told[:3])
    return text if len(told) <= 3 else f"{text}, variant {rivals.index(key) + 1}"
