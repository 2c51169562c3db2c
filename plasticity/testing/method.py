"""The battery for methods: everything that a run asks of an intervention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plasticity.callback import listeners
from plasticity.interventions import INTERVENTIONS, Intervention

from .runs import QUICK_RUNS, SHORT, check_run, command, last_state, registered, require_same, rows


def check_method(
    kind: type[Intervention],
    settings: Mapping[str, Any],
    idle: Mapping[str, Any] | None = None,
    agent: str = "sac",
) -> None:
    """Check an intervention class against its contract on a small agent, by the command line.

    ``settings``: with which it acts within 100 updates. ``idle``: with which it is on and changes nothing, None where
    there are none; then parameters and random streams must stay as they are without it. ``agent``: one of ``sac``,
    ``td3``, ``dqn`` and ``ppo``. The method is registered in ``INTERVENTIONS`` while the battery runs.

    Checked: it has defaults and refuses unknown presets; it acts, and logs it under ``interventions/<NAME>/`` or as a
    term of the loss, unless it acts by restructuring; it is stopped and resumed to the same bits, evaluated and probed;
    its state survives a checkpoint. Raises AssertionError with the first thing that is broken.
    """
    name = kind.NAME
    assert name.isidentifier(), f"{kind.__name__}.NAME is {name!r}: it must be a name, for flag and events"
    require_refusals(kind)
    with registered(INTERVENTIONS, name, kind), TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = check_run(agent, [*QUICK_RUNS[agent], *flags(name, settings)], folder)
        if not listeners([kind()], "restructure"):
            require_records(name, whole, agent)
        if idle is not None:
            require_idle(agent, flags(name, idle), folder)


def require_refusals(kind: type[Intervention]) -> None:
    """Check that the method needs no arguments, and refuses presets that it does not have."""
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} must be a dataclass: its fields are its options"
    settings = kind().settings()
    assert settings.keys() == {field.name for field in dataclasses.fields(kind)}, "settings() must be all fields"
    if "preset" in settings:
        try:
            kind(preset="no such preset")  # type: ignore[call-arg]
        except ValueError:
            return
        raise AssertionError(f"{kind.__name__} takes an unknown preset")


def require_records(name: str, run: Path, agent: str) -> None:
    """Check that the method has acted, and that its last logged counters are those of its state."""
    found = rows(run)
    logged = {tag: value for row in found for tag, value in row.items() if tag.startswith(f"interventions/{name}/")}
    logged.pop(f"interventions/{name}/parameters_added", None)  # told of any method when training ends
    events = [row for row in found if row.get("event") == name]
    assert logged or events or losses(found) - run_without(agent)[1], (
        f"{name} has logged nothing under interventions/{name}/, no term of a loss and no event {name}: pass settings "
        f"with which it acts"
    )
    counts = last_state(run)["callbacks"][name].get("counts", {})
    for key, count in counts.items() if events else ():
        tag = f"interventions/{name}/{key}"
        if tag in logged:
            assert logged[tag] == count, f"{tag} was last logged as {logged[tag]}, and its state has {count}"


def require_idle(agent: str, options: list[str], folder: Path) -> None:
    """Check that a run with the idle method is that without, in its agent and in all random streams."""
    command("train", agent, *QUICK_RUNS[agent], *options, *SHORT, "--out", folder, "--name", "idle")
    states = [last_state(folder / "idle"), run_without(agent)[0]]
    for part in ("agent", "buffer", "env"):
        require_same(states[0][part], states[1][part], f"{part} of a run in which the method does nothing")
    one, other = (state["callbacks"]["random"] for state in states)
    require_same(one, other, "global random streams of a run in which the method does nothing")


def losses(found: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the tags of losses in the rows of a run."""
    return {tag for row in found for tag in row if tag.startswith("losses/")}


@cache
def run_without(agent: str) -> tuple[dict[str, Any], set[str]]:
    """Return last state and losses of an agent's run without any method; it is trained once in a process."""
    with TemporaryDirectory() as folder:
        command("train", agent, *QUICK_RUNS[agent], *SHORT, "--out", folder, "--name", "without")
        return last_state(Path(folder) / "without"), losses(rows(Path(folder) / "without"))


def flags(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Return a method's settings as options of the command line."""
    prefix = f"--{name.replace('_', '-')}"
    found = [prefix]
    for key, value in settings.items():
        option = f"{prefix}.{key.replace('_', '-')}"
        if isinstance(value, bool):
            found.append(option if value else f"{prefix}.no-{key.replace('_', '-')}")
        else:
            found += [option, *map(str, value if isinstance(value, (tuple, list)) else (value,))]
    return found
