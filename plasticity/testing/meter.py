"""The battery for meters: everything that a run asks of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plasticity.meters import METERS, Meter
from plasticity.storage.folder import Checkpoints
from plasticity.tags import ALL, UNMEASURED, parse_tag

from .method import flags
from .runs import QUICK_RUNS, SHORT, check_run, command, registered, require_same, rows

EVERY = 7


def check_meter(kind: type[Meter], settings: Mapping[str, Any] | None = None, agent: str = "sac") -> None:
    """Check a meter class against its contract on a small agent, by the command line.

    ``settings``: in place of defaults. ``agent``: one of ``sac``, ``td3``, ``dqn`` and ``ppo``. The meter is registered
    in ``METERS`` while the battery runs.

    Checked: it has defaults; it logs ``plasticity/<network>/<metric>/all``; a run that is stopped and resumed goes on
    to the same bits and logs the same; agent, memory, environment, global random streams and all other rows are those
    of a run without it. Raises AssertionError with the first thing that is broken.
    """
    name = kind.NAME
    assert name.isidentifier(), f"{kind.__name__}.NAME is {name!r}: it must be a name, for its flag"
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} must be a dataclass: its fields are its options"
    assert "strict" in kind().settings(), "settings() must be all fields"
    options = flags(name, {"every": EVERY, "strict": True, **(settings or {})})
    with registered(METERS, name, kind), TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with_it = check_run(agent, [*QUICK_RUNS[agent], *options], folder)
        command("train", agent, *QUICK_RUNS[agent], *SHORT, "--out", folder, "--name", "without")
        _require_same_run(name, with_it, folder / "without")


def _require_same_run(name: str, with_it: Path, without: Path) -> None:
    """Check that a run with the meter learned what one without did, and logged the values of the meter besides."""
    states = [Checkpoints(folder / "checkpoints").load_latest()[1] for folder in (with_it, without)]
    for part in ("agent", "buffer", "env"):
        require_same(states[0][part], states[1][part], f"{part} of a run with {name}, beside one without")
    one, other = (state["callbacks"]["random"] for state in states)
    require_same(one, other, f"global random streams of a run with {name}, beside one without")
    told, plain = ([row for row in rows(folder) if row.get("event") != UNMEASURED] for folder in (with_it, without))
    new = {tag for row in told for tag in row} - {tag for row in plain for tag in row}
    assert new, f"{name} has logged nothing in a run of 240 steps"
    for tag in new:
        parts = parse_tag(tag)
        assert parts is not None, f"{name} logs {tag}, not plasticity/<network>/<metric>/all"
        assert parts.layer == ALL, f"{name} logs {tag}, not plasticity/<network>/<metric>/all"
    rest = [{tag: v for tag, v in row.items() if tag not in new} for row in told]
    require_same([row for row in rest if row.keys() != {"step"}], plain, f"other rows of a run with {name}")
