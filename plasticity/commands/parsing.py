"""Read the command line of ``plasticity train``: options of the run, of the agent, and of what is switched on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from plasticity.agents import AGENTS
from plasticity.interventions import INTERVENTIONS
from plasticity.probes import make_probes
from plasticity.writers import require_writers

from .contents import nearest
from .options import Option, options
from .run import require_device
from .settings import TrainConfig, resolve


def parse(agent: str, arguments: Sequence[str], saved: Mapping[str, Any] | None = None) -> Any:
    """Return the settings that ``arguments`` say, checked; what depends on others is filled in, or as it was saved.

    An intervention is switched on by its bare flag, ``--regrama``; its settings are dotted, ``--regrama.every 500``.
    Raises ValueError for an option that is not known, or that has no effect.
    """
    chosen, rest = switched_on(arguments)
    require_known(rest, agent, chosen)
    config: Any = tyro.cli(config_type(agent, chosen), prog=f"plasticity train {agent}", args=rest)
    for what in ("steps", "seeds"):
        if getattr(config, what) < 1:
            raise ValueError(f"{what} must be at least 1, got {getattr(config, what)}")
    make_probes(config.probes)  # an unknown name fails here, before anything is written
    require_writers(config.log)
    require_device(config.device)
    return resolve(config, saved)


def switched_on(arguments: Sequence[str]) -> tuple[dict[str, type], list[str]]:
    """Return the methods whose bare flags are among the arguments, in the order of the registry, and the rest."""
    flags = {f"--{_hyphens(name)}": name for name in INTERVENTIONS}
    named = {flags[_hyphens(argument)] for argument in arguments if _hyphens(argument) in flags}
    rest = [argument for argument in arguments if _hyphens(argument) not in flags]
    return {name: method for name, method in INTERVENTIONS.items() if name in named}, rest


def config_type(agent: str, methods: Mapping[str, type]) -> type:
    """Return the settings of a run: those of training, the agent's own without a prefix, and those of some methods."""
    # No defaults: an instance made beforehand would have the values of its own preset, and hide those of another one.
    interventions = dataclasses.make_dataclass("Interventions", list(methods.items()), frozen=True)
    fields = [
        ("agent", Annotated[AGENTS[agent][1], tyro.conf.arg(name="")]),
        ("interventions", Annotated[interventions, tyro.conf.arg(name="")]),
    ]
    name = f"Train{agent.upper()}Config"
    return dataclasses.make_dataclass(name, fields, bases=(TrainConfig,), frozen=True, kw_only=True)


def require_known(arguments: Sequence[str], agent: str, methods: Mapping[str, type]) -> None:
    """Raise ValueError, with the nearest one, for an option that neither the run nor agent or methods have."""
    found = [*options(TrainConfig), *options(AGENTS[agent][1])]
    found += [option for name, method in methods.items() for option in options(method, f"--{_hyphens(name)}.")]
    known = [flag for option in found for flag in _spellings(option)]
    for argument in arguments:
        flag = _hyphens(argument.partition("=")[0])
        if not flag.startswith("--") or flag in known:
            continue
        name, dot, _ = flag[2:].partition(".")
        switches = {_hyphens(method): method for method in INTERVENTIONS}
        if dot and name in switches and switches[name] not in methods:
            raise ValueError(f"{argument} sets an option of {switches[name]}, which is off; switch it on with --{name}")
        hint = nearest(flag, [*known, *(f"--{one}" for one in switches)])
        raise ValueError(f"no option {argument.partition('=')[0]}; {hint}add --help for all of them")


def _spellings(option: Option) -> list[str]:
    return [option.flag] if option.type else option.usage.split(" | ")


def _hyphens(text: str) -> str:
    return text.replace("_", "-")
