"""Read the command line of ``plasticity train``: options of the run, of the agent, and of what is switched on."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from keyword import iskeyword
from typing import Annotated, Any

import tyro

from plasticity.agents import find_agent
from plasticity.interventions import Intervention
from plasticity.meters import Meter
from plasticity.probes import make_probes
from plasticity.writers import require_writers

from .arguments import UsageError, parse_arguments, require_flags
from .contents import SWITCHED, registry
from .inherited import SOURCE_FLAGS, with_sources
from .options import options
from .presets import with_presets
from .run import require_device
from .settings import TrainConfig, resolve

TAKEN = ("--help", "--resume", "--debug", *SOURCE_FLAGS)
"""Flags of the command itself."""
LEAST = {"steps": 1, "seeds": 1, "eval_every": 0, "eval_episodes": 1, "log_every": 1, "torch_threads": 1}
"""Smallest values of settings of a run."""


def parse(agent: str, arguments: Sequence[str]) -> Any:
    """Return the settings that ``arguments`` say, checked; what depends on others is filled in.

    An intervention or a meter is switched on by its bare flag, ``--regrama``, and set by dotted ones,
    ``--regrama.every 500``.
    Raises ValueError for an option that is not known, or that has no effect.
    """
    require_bare_switches(agent, arguments)
    chosen, rest = switched_on(with_presets(agent, with_sources(agent, arguments)))
    require_names(agent)
    require_classes(chosen)
    require_known(rest, agent, chosen)
    config: Any = parse_arguments(config_type(agent, chosen), f"train {agent}", rest)
    for what, least in LEAST.items():
        if getattr(config, what) < least:
            raise ValueError(f"{what} must be at least {least}, got {getattr(config, what)}")
    make_probes(config.probes)  # an unknown name fails here, before anything is written
    require_writers(config.log)
    require_device(config.device)
    return resolve(config)


def switches() -> dict[str, Mapping[str, type]]:
    """Return what bare flags switch on: the kind -> its registry of dataclasses, by name."""
    return {kind: registry(kind) for kind in SWITCHED}


def switched_on(arguments: Sequence[str]) -> tuple[dict[str, dict[str, type]], list[str]]:
    """Return what the bare flags among the arguments switch on, in the order of the registries, and the other ones."""
    given = {_hyphens(argument) for argument in arguments}
    chosen = {
        kind: {name: method for name, method in methods.items() if f"--{_hyphens(name)}" in given}
        for kind, methods in switches().items()
    }
    flags = {f"--{_hyphens(name)}" for methods in chosen.values() for name in methods}
    return chosen, [argument for argument in arguments if _hyphens(argument) not in flags]


def require_bare_switches(agent: str, arguments: Sequence[str]) -> None:
    """Raise UsageError for a word behind a switch, which takes none, with the option that takes it."""
    flags = {f"--{_hyphens(name)}": methods[name] for methods in switches().values() for name in methods}
    for flag, value in pairwise(arguments):
        if _hyphens(flag) not in flags or value.startswith("--"):
            continue
        of_run = [*options(TrainConfig), *options(find_agent(agent)[1])]
        takes = [f"{option.flag} {value}" for option in of_run if value in option.choices]
        own = [option.flag for option in options(flags[_hyphens(flag)], f"{_hyphens(flag)}.")]
        hint = f"did you mean {takes[0]}?" if takes else f"its options are {', '.join(own)}"
        raise UsageError(f"{flag} is a switch and takes no value, got {value!r}; {hint}")


def config_type(agent: str, chosen: Mapping[str, Mapping[str, type]]) -> type:
    """Return the settings of a run: those of training, the agent's own without a prefix, and of what is switched on."""
    # No defaults: an instance made beforehand would have the values of its own preset, and hide those of another one.
    fields = [("agent", Annotated[find_agent(agent)[1], tyro.conf.arg(name="")])]
    for kind, methods in chosen.items():
        group = dataclasses.make_dataclass(kind.title(), list(methods.items()), frozen=True)
        fields.append((kind, Annotated[group, tyro.conf.arg(name="")]))
    name = f"Train{agent.upper()}Config"
    return dataclasses.make_dataclass(name, fields, bases=(TrainConfig,), frozen=True, kw_only=True)


def require_names(agent: str) -> None:
    """Raise ValueError for an intervention or meter whose name cannot be a flag, or is that of something else."""
    names = [name for methods in switches().values() for name in methods]
    if odd := [name for name in names if not name.isidentifier() or iskeyword(name)]:
        raise ValueError(f"{odd[0]!r} cannot be switched on: a name is letters, digits and underscores; rename it")
    flags = fixed_flags(agent)
    groups = {flag.partition(".")[0] for flag in flags if "." in flag}  # of --checkpoint.every also --checkpoint
    counts = Counter([*TAKEN, *flags, *groups, *(f"--{_hyphens(name)}" for name in names)])
    if twice := [flag for flag, count in counts.items() if count > 1]:
        raise ValueError(
            f"{', '.join(twice)} would mean two things; rename the intervention, the meter or the agent's option of "
            "that name"
        )


def require_classes(chosen: Mapping[str, Mapping[str, type]]) -> None:
    """Raise ValueError for something switched on that is no dataclass with the base of its kind."""
    for kind, base in (("interventions", Intervention), ("meters", Meter)):
        for name, entry in chosen[kind].items():
            if not (isinstance(entry, type) and issubclass(entry, base)):
                raise ValueError(
                    f"{kind.upper()}[{name!r}] must be a dataclass that inherits from {base.__name__}, got {entry!r}"
                )


def require_known(arguments: Sequence[str], agent: str, chosen: Mapping[str, Mapping[str, type]]) -> None:
    """Raise ValueError, with the nearest one, for an option that neither the run nor agent or methods have."""
    on = {name: method for methods in chosen.values() for name, method in methods.items()}
    known = [*fixed_flags(agent), *_flags(*((method, f"--{_hyphens(name)}.") for name, method in on.items()))]
    off = {_hyphens(name): name for methods in switches().values() for name in methods if name not in on}
    for argument in arguments:
        name, dot, _ = _hyphens(argument.partition("=")[0]).removeprefix("--").partition(".")
        if dot and name in off and argument.startswith("--"):
            raise UsageError(f"{argument} sets an option of {off[name]}, which is off; switch it on with --{name}")
        if argument.startswith("--") and _hyphens(argument) not in {*known, *(f"--{one}" for one in off)}:
            require_no_value(agent, argument, known)
    require_flags([a for a in arguments if _hyphens(a) not in known], [*known, *(f"--{one}" for one in off)])


def require_no_value(agent: str, flag: str, known: Sequence[str]) -> None:
    """Raise UsageError for a flag that bears the name of a value of an option, such as ``--trac``, with that option.

    A known flag that is nearly the same, such as ``--steps`` for ``--step``, is named before it.
    """
    from .values import option_values

    found = [(value, option.flag) for value, owner, option in option_values() if owner in (agent, "")]
    of_method = "{0} {0}.{1} {2}".format  # of what is off, the switch comes first
    asked = [
        f"{option} {value}" if "." not in option else of_method(*option.split("."), value)
        for value, option in found
        if _hyphens(f"--{value}") == _hyphens(flag)
    ]
    if asked:
        asked = [*get_close_matches(_hyphens(flag), known, 1, 0.8), *asked]
        raise UsageError(f"no option {flag}; did you mean {' or '.join(list(dict.fromkeys(asked))[:3])}?")


def fixed_flags(agent: str) -> list[str]:
    """Return the flags of every run and of the agent."""
    return _flags((TrainConfig, "--"), (find_agent(agent)[1], "--"))


def _flags(*classes: tuple[type, str]) -> list[str]:
    """Return the flags of dataclasses, each with its prefix; a switch has one that turns it off."""
    found = [option for cls, prefix in classes for option in options(cls, prefix)]
    return [flag for option in found for flag in option.flags]


def _hyphens(text: str) -> str:
    return text.replace("_", "-")
