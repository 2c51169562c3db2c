"""``plasticity help``: the topics, a page on one of them, and the options of ``plasticity train``."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .contents import GROUPS, REGISTRIES, SWITCHED, Entry, contents, find, grouped, nearest, registry, subject
from .options import Option, details, options, parameters, shorten, table, terminal_width

SCREENS = 104
"""Lines that the options of ``train`` may take; where one line per method takes more, methods are named only."""
_CITED = re.compile(r"\b(arXiv|doi)\b", re.IGNORECASE)
_SOURCE = re.compile(r"\b(arXiv|doi)\b|\b(19|20)\d\d\b", re.IGNORECASE)


def main(arguments: Sequence[str]) -> int:
    """Print the topics, or a page for every topic named."""
    from plasticity.cli import COMMANDS
    from plasticity.cli import main as run

    topics = [argument for argument in arguments if argument not in ("-h", "--help")]
    if not topics:
        print("\n".join(overview(COMMANDS)))
    for topic in topics:
        if topic == "train":
            from .settings import TrainConfig

            print("\n".join(run_options(TrainConfig)))
        elif topic in COMMANDS:
            run([topic, "--help"])
        if topic in COMMANDS:
            continue
        found = find(topic)
        for kind, entry in found:
            for line in page(kind, entry, terminal_width()):
                print(line, flush=True)
        if not found:
            print("\n".join(_of_value(topic, COMMANDS)))
    return 0


def _of_value(topic: str, commands: Iterable[str]) -> Iterator[str]:
    """Yield what a topic that no registry has is as a value of options; ValueError, with the nearest, if it is none."""
    from .values import option_values, value_pages

    if not (lines := list(value_pages(topic))):
        values = (value for value, _, _ in option_values())
        names = [*commands, *(name for kind in REGISTRIES for name in contents(kind)), *values]
        raise ValueError(f"no topic {topic!r}; {nearest(topic, names)}plasticity help lists all topics")
    for line in lines:
        yield from textwrap.wrap(line, terminal_width(), subsequent_indent="  ", break_on_hyphens=False)


def is_switch(flag: str) -> bool:
    """Return whether ``train`` switches something on by this flag, given without its two hyphens."""
    return bool(find(flag, SWITCHED))


def overview(commands: Any) -> Iterator[str]:
    """Yield all topics: the commands, then the names of every kind; methods in groups."""
    yield "usage: plasticity help TOPIC"
    yield ""
    yield from _named("commands", [name for name in commands if name not in ("help",)], 15)
    for kind in REGISTRIES:
        groups = grouped(kind)
        if len(groups) > 1:
            yield f"{kind}:"
            for group, entries in groups.items():
                yield from _named(f"  {group}", [entry.name for entry in entries], 15)
        elif groups:
            yield from _named(kind, [entry.name for entries in groups.values() for entry in entries], 15)


def train_options(agent: str, run: type, config: type) -> Iterator[str]:
    """Yield the options of ``plasticity train AGENT``, a line each, then the methods and meters in groups."""
    width = terminal_width()
    yield "the run (plasticity help train: all of each description)"
    yield from table(options(run), width)
    yield ""
    yield f"the agent (plasticity help {agent})"
    yield from table(options(config), width)
    lines = [line for kind in SWITCHED for line in _switches(kind, width, _summary)]
    if len(lines) + len(options(run)) + len(options(config)) > SCREENS - 8:
        lines = [line for kind in SWITCHED for line in _switches(kind, width, None)]
    yield from lines


def run_options(run: type) -> Iterator[str]:
    """Yield the options that every run has, with their whole descriptions."""
    yield from details(options(run), terminal_width())
    yield ""
    yield from textwrap.wrap(
        "--config run.toml takes settings from a file, and --like RUN from another run; flags go before both, and the "
        "file before the run. plasticity train AGENT --help lists the options of an agent too, and all methods.",
        terminal_width(),
    )


def page(kind: str, entry: Entry, width: int) -> Iterator[str]:
    """Yield the description, the source and the options of one entry of a registry."""
    yield f"{entry.name}: {_SINGULAR[kind]}{f' ({entry.group})' if entry.group else ''}"
    yield ""
    thing = registry(kind)[entry.name]  # imported after the first line is out
    described = subject(thing)
    known = inspect.isclass(described) or inspect.isroutine(described)
    yield from _wrapped(inspect.getdoc(described) or "" if known else entry.summary, width)
    yield from _source(described, width)
    rows = _options(kind, entry.name, thing)
    if rows:
        yield ""
        flag = f"switched on by --{entry.name.replace('_', '-')}; " if kind in SWITCHED else ""
        yield f"{flag}options:" if kind in (*SWITCHED, "agents") else "parameters:"
        yield from details(rows, width)
    if kind == "envs":
        yield ""
        yield "plasticity list envs prints every name."


_SINGULAR = {
    "agents": "agent",
    "envs": "environments",
    "probes": "probe",
    "meters": "meter",
    "interventions": "intervention",
    "optimizers": "optimizer",
    "writers": "writer",
}


def _options(kind: str, name: str, thing: Any) -> list[Option]:
    if kind == "agents":
        return options(thing[1])
    if kind in SWITCHED:
        return options(thing, f"--{name.replace('_', '-')}.")
    return parameters(thing) if callable(thing) else []


def _source(described: Any, width: int) -> Iterator[str]:
    """Yield the first paragraph of the module's docstring where it names the source and the class does not."""
    module = sys.modules.get(getattr(described, "__module__", ""))
    text = (inspect.getdoc(module) or "") if module else ""
    if _SOURCE.search(text) and not _CITED.search(inspect.getdoc(described) or ""):
        yield ""
        yield from _wrapped(text, width)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Yield a docstring in lines of at most ``width``; what is indented stays as it is, Sphinx's directives are cut."""
    text = text.partition("\n.. ")[0].rstrip()
    for index, paragraph in enumerate(text.replace("``", "").split("\n\n")):
        if index:
            yield ""
        indented = any(line.startswith(" ") for line in paragraph.splitlines())
        yield from paragraph.splitlines() if indented else textwrap.wrap(" ".join(paragraph.split()), width)


def _switches(kind: str, width: int, line: Callable[[Entry, int], str] | None) -> Iterator[str]:
    """Yield the methods of a kind in groups: ``line(entry, width)`` each, or only their names."""
    groups = grouped(kind)
    if not groups:
        return
    example = next(entry.name for entries in groups.values() for entry in entries)
    yield ""
    yield f"{kind} (plasticity help {example}: the options of one, such as --{example}.seed)"
    for group, entries in groups.items():
        if line is None:
            title = f"  {group}" if len(groups) > 1 else "  all"
            yield from _named(title, [f"--{entry.name.replace('_', '-')}" for entry in entries], 15, width)
        else:
            if len(groups) > 1:
                yield f"  {group}{': ' if GROUPS.get(group) else ''}{GROUPS.get(group, '')}"
            yield from (line(entry, width) for entry in entries)


def _summary(entry: Entry, width: int) -> str:
    head = f"    --{entry.name.replace('_', '-'):<24}  "
    return head + shorten(entry.summary.rstrip("."), width - len(head))


def _named(title: str, names: Sequence[str], indent: int, width: int | None = None) -> list[str]:
    """Return names behind a title, wrapped."""
    head = f"{title + ':':<{indent}} "
    return textwrap.wrap(
        "  ".join(names), (width or terminal_width()) - 1, initial_indent=head, subsequent_indent=" " * (indent + 1),
        break_on_hyphens=False,
    )  # fmt: skip
