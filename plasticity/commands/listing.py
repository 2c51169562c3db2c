"""``plasticity list``: all names, by kind, with a line on each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from plasticity.metrics import SETS

from .contents import GROUPS, REGISTRIES, contents, grouped, nearest
from .options import shorten, terminal_width

FACTUAL = ("probes", "interventions", "meters")
"""Kinds whose entries get a second line, of facts, where they are asked for."""
OTHER_NAMES = {"methods": "interventions"}
"""Another name of a kind."""


def main(arguments: Sequence[str]) -> int:
    """Print the names of some kinds, or of every kind; of environments the families, unless they are asked for."""
    if any(a in ("-h", "--help") for a in arguments):
        print(f"usage: plasticity list [KIND ...]\nkinds: {', '.join(REGISTRIES)}; without one, all of them")
        return 0
    arguments = [OTHER_NAMES.get(kind, kind) for kind in arguments]
    for kind in arguments:
        if kind not in REGISTRIES:
            raise ValueError(f"cannot list {kind}; {nearest(kind, REGISTRIES)}there are {', '.join(REGISTRIES)}")
    for kind in arguments or REGISTRIES:
        hint = " (plasticity list envs: every name)" if kind == "envs" and not arguments else ""
        print(f"{kind}:{hint}")
        for line in _environments() if kind == "envs" and arguments else _entries(kind, bool(arguments)):
            print(f"  {line}")
    return 0


def _environments() -> Iterator[str]:
    """Yield all names of all families; of one that fails, why."""
    from plasticity.envs import ENVS, Family, missing_extras

    for key, family in ENVS.items():
        if not isinstance(family, Family):
            yield f"ENVS[{key!r}] is no Family"
            continue
        try:
            yield from family.names()
        except RuntimeError as error:
            yield str(error)
    yield from missing_extras()


def _entries(kind: str, whole: bool) -> Iterator[str]:
    """Yield a line per entry, in groups where there are some; ``whole``: the facts and the sets below."""
    width = max(map(len, contents(kind)), default=0)
    groups = grouped(kind)
    for group, entries in groups.items():
        if len(groups) > 1:
            yield f"{group}: {GROUPS.get(group, '')}".rstrip(": ")
        for entry in entries:
            head = f"{'  ' if len(groups) > 1 else ''}{entry.name:<{width}}  "
            yield (head + shorten(entry.summary, terminal_width() - len(head) - 2)).rstrip()
            if whole and kind in FACTUAL:
                inside = ", ".join(n for n, probes in SETS.items() if kind == "probes" and entry.name in probes)
                facts = "; ".join(filter(None, (entry.facts, inside and f"sets: {inside}")))
                for line in wrap(facts, max(20, terminal_width() - len(head) - 2), break_on_hyphens=False):
                    yield f"{'':<{len(head)}}{line}"
