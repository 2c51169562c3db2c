"""Settings of a file, ``--config run.toml``, or of another run, ``--like RUN``, as arguments before those typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from plasticity.agents import find_agent
from plasticity.storage.record import RECORD, read_record

from .contents import SWITCHED, nearest, registry
from .imports import require_imports
from .options import Option, options
from .presets import with_presets
from .settings import CONTROL, TrainConfig, unresolved

SOURCE_FLAGS = ("--like", "--config")
"""Flags that name a source of settings; a later one goes before an earlier one, and what is typed before both."""
NOT_TAKEN = {*CONTROL, "name", "out", "quiet"}
"""Settings of a run that another one does not take over."""


def take_sources(arguments: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """Return flag -> path of the sources that the arguments name, and the other arguments."""
    sources: dict[str, Path] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in SOURCE_FLAGS:
            rest.append(word)
            continue
        if not (value := value if equals else next(words, "")):
            raise ValueError(f"{flag} needs a path: {flag} {'runs/first' if flag == '--like' else 'run.toml'}")
        if flag in sources:
            raise ValueError(f"{flag} is given twice; pass one")
        sources[flag] = Path(value)
    return sources, rest


def agent_of(sources: Mapping[str, Path]) -> str | None:
    """Return the agent that the sources name, None for none; ValueError where they disagree."""
    named = {path: name for flag, path in sources.items() if (name := _read(flag, path)[0]) is not None}
    if len({*named.values()}) > 1:
        raise ValueError(f"{' and '.join(f'{path} is for {name}' for path, name in named.items())}")
    return next(iter(named.values()), None)


def with_sources(agent: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those of their ``--like`` and ``--config`` in front.

    ``--no-METHOD`` takes a method off that a source switches on. Raises ValueError for a setting that is not known, by
    its name and file, and for a source of another agent.
    """
    sources, rest = take_sources(arguments)
    if not sources:
        return list(arguments)
    if (named := agent_of(sources)) not in (None, agent):
        raise ValueError(f"{' and '.join(map(str, sources.values()))} is for {named}, not for {agent}")
    off = {name for word in rest if (name := _switched_off(word))}
    found: list[str] = []
    for flag in SOURCE_FLAGS:
        if flag in sources:
            settings = {key: value for key, value in _read(flag, sources[flag])[1].items() if key not in off}
            found += _words(agent, sources[flag], settings)
    return [*with_presets(agent, found), *(word for word in rest if not _switched_off(word))]


def _switched_off(word: str) -> str:
    """Return the method that ``--no-METHOD`` takes off; empty for another word."""
    names = {f"--no-{name.replace('_', '-')}": name for kind in SWITCHED for name in registry(kind)}
    return names.get(word.replace("_", "-"), "")


def _read(flag: str, path: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the agent and the settings of a source, those of the agent and of methods beside those of the run."""
    if flag == "--config":
        settings = _toml(path)
        agent = settings.pop("agent", None)
        if not isinstance(agent, str | None):
            raise ValueError(f'{path}: agent is the name of one, such as "sac"; its settings stand beside it')
        return agent, {key.replace("-", "_"): value for key, value in settings.items()}
    record = read_record(path)
    require_imports(record, path)
    config = unresolved(record["config"])
    if ":" in config.get("env", ""):  # it may come from somebody else, and nothing that it names is imported
        del config["env"]
    groups = [config.pop(kind, {}) for kind in ("agent", *SWITCHED)]
    flat = {key: value for group in (config, *groups) for key, value in group.items()}
    return record["agent"], {key: value for key, value in flat.items() if key not in NOT_TAKEN and value is not None}


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, too
        raise ValueError(f"{path} is no TOML: {error}") from error


def _words(agent: str, path: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings as arguments; ValueError for one that is not known."""
    known = {option.flag: option for option in [*options(TrainConfig), *options(find_agent(agent)[1])]}
    switches = {name: method for kind in SWITCHED for name, method in registry(kind).items()}
    for key, value in settings.items():
        if key in switches:
            flag = f"--{key.replace('_', '-')}"
            if value is False:
                continue
            yield flag
            of_method = {option.flag: option for option in options(switches[key], f"{flag}.")}
            table = value if isinstance(value, Mapping) else {} if value is True else None
            if table is None:
                raise ValueError(f"{path}: {key} is switched on by a table, [{key}], or by {key} = true")
            for name, inner in table.items():
                yield from _flag(path, f"{key}.{name}", inner, of_method, [])
        elif isinstance(value, Mapping) and key == "checkpoint":
            for name, inner in value.items():
                yield from _flag(path, f"{key}.{name}", inner, known, [])
        elif key in NOT_TAKEN:
            raise ValueError(f"{path}: {key} belongs to the command, not to the settings of a run: pass it as a flag")
        else:
            yield from _flag(path, key, value, known, list(switches))


def _flag(path: Path, key: str, value: Any, known: Mapping[str, Option], others: list[str]) -> list[str]:
    """Return one setting as arguments; None gives nothing."""
    option = known.get(f"--{key.replace('_', '-')}")
    if option is None:
        names = [flag.removeprefix("--").replace("-", "_") for flag in known]
        version = f"{path / RECORD}, of another version," if path.is_dir() else str(path)
        raise ValueError(
            f"{version} has a setting {key!r} that is not known; {nearest(key, [*names, *others])}".rstrip()
        )
    if value is None:
        return []
    if not option.type and isinstance(value, bool):
        return [option.flags[0] if value else option.flags[1]]
    if isinstance(value, Mapping) or not option.type:
        raise ValueError(f"{path}: {key} is {option.type or 'true or false'}, not {value!r:.60}")
    return [option.flag, *map(str, value)] if isinstance(value, list | tuple) else [option.flag, str(value)]
