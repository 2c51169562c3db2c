"""``plasticity list``: what there is, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Print the names of one kind, or of every kind."""
    kinds = {"agents": _agents, "envs": _envs, "probes": _probes, "interventions": _interventions}
    if any(a in ("-h", "--help") for a in arguments):
        print(f"usage: plasticity list [{'|'.join(kinds)}]")
        return 0
    unknown = [a for a in arguments if a not in kinds]
    if unknown:
        raise ValueError(f"cannot list {', '.join(unknown)}; there are {', '.join(kinds)}")
    for kind in arguments or kinds:
        print(f"{kind}:")
        for line in kinds[kind]():
            print(f"  {line}")
    return 0


def _agents() -> list[str]:
    from plasticity.agents import AGENTS

    return _described({name: agent for name, (agent, _) in AGENTS.items()})


def _probes() -> list[str]:
    from plasticity.probes import PROBES

    return _described(PROBES)


def _interventions() -> list[str]:
    from plasticity.interventions import INTERVENTIONS

    return _described(INTERVENTIONS)


def _envs() -> list[str]:
    from plasticity.envs import ENVS, missing_extras

    return [*(name for family in ENVS.values() for name in family.ids()), *missing_extras()]


def _described(things: Mapping[str, Callable[..., Any]]) -> list[str]:
    """Return a line per name: the first line of its docstring, and the arguments that make it a variant."""
    lines = []
    width = max(map(len, things), default=0)
    for name, thing in things.items():
        settings = ""
        if isinstance(thing, partial):
            values = [v for a in thing.args for v in (a if isinstance(a, (list, tuple)) else [a])]
            settings = f" ({', '.join(map(str, values))})" if values else ""
            thing = thing.func
        first = "".join((inspect.getdoc(thing) or "").splitlines()[:1]).replace("``", "")
        lines.append(f"{name:<{width}}  {first}{settings}")
    return lines
