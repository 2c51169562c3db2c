"""Settings that were left open: what they came to in a run, for its record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .options import field_docs
from .settings import chosen, probe_interval

_OPEN = re.compile(r"\bNone: (.+?)(?:[.;]\s|[.;]?$)", re.DOTALL)


def settled(config: Any, agent: Any) -> dict[str, Any]:
    """Return setting -> its value where ``config`` has None: the agent's own, else the words of its description.

    Names are those of the flags without hyphens, those of a method as ``redo.stop``. ``agent`` is the object that was
    made of ``config``.
    """
    found = _of(type(config), vars(config), {"probe_every": probe_interval(config, agent)})
    found |= _of(type(config.agent), vars(config.agent), vars(getattr(agent, "config", config.agent)))
    for name, method in chosen(config, "interventions").items():
        found |= {f"{name}.{key}": value for key, value in _of(type(method), method.settings(), {}).items()}
    return found


def _of(kind: type, values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of ``values`` that are None, as ``own`` has them, else in the words of the class."""
    documented = field_docs(kind)
    return {name: _value(own.get(name), documented.get(name, "")) for name, value in values.items() if value is None}


def _value(own: Any, text: str) -> Any:
    if own is not None:
        return list(own) if isinstance(own, tuple) else own
    found = _OPEN.search(text)
    return " ".join(found[1].split()) if found else "none"
