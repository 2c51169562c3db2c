"""The picture of a stream: mean returns over all tasks, and the gap to a fresh agent in every task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from plasticity.reports.series import MAX_POINTS, Series, band
from plasticity.reports.tasks import Protocol
from plasticity.storage.files import write_atomically

from .method_names import NONE, ORACLE

if TYPE_CHECKING:
    from plasticity.reports.figures import Curve

NUM_DRAWN = 7
"""Methods in a picture: the oracle, none, and those with the highest areas."""

TASK_POINTS = 20
"""Points of a curve in each task; one where there would be more than a curve has."""


def draw(protocol: Protocol, task_steps: int, file: Path) -> Path | None:
    """Draw the methods of a stream, tasks as bands; None without matplotlib."""
    try:
        from plasticity.reports.figures import Panel, draw_curves, encoded
    except ImportError:
        return None

    names = drawn_methods(protocol)
    num = next(iter(protocol.everyone().values())).shape[1]
    bands = [(k * task_steps, (k + 1) * task_steps) for k in range(1, num, 2)]
    returns = [c for i, name in enumerate(names) if (c := _returns(protocol, name, i, task_steps))]
    rows = [[Panel(protocol.env, "training return", returns, shades=bands)]]
    lost = [c for i, name in enumerate(names) if (c := _gaps(protocol, name, i, task_steps))]
    if lost and num > 1:
        rows.append([Panel("gap to a fresh agent: 0 is as plastic, 1 learns nothing", "gap", lost, shades=bands)])
    write_atomically(file, encoded(draw_curves(rows, "environment steps"), file.suffix[1:]))
    return file


def drawn_methods(protocol: Protocol) -> list[str]:
    """Return the methods of the picture, the oracle and none first."""
    areas = {name: float(curves.mean()) for name, curves in protocol.everyone().items()}
    first = [name for name in (ORACLE, NONE) if name in areas]
    named = [name for name in protocol.published if name in areas and name not in first]
    others = sorted(set(areas) - {*first, *named}, key=lambda name: -areas[name])
    return [*first, *named, *others][:NUM_DRAWN]


def _returns(protocol: Protocol, name: str, style: int, task_steps: int) -> Curve | None:
    values = protocol.everyone()[name]
    seeds, tasks, bins = values.shape
    points = TASK_POINTS if tasks * TASK_POINTS <= MAX_POINTS else 1  # few of many would be drawn, each of another part
    if bins % points == 0:  # iterations are too many to be seen
        bins, values = points, values.reshape(seeds, tasks, points, -1).mean(-1)
    return _curve(name, style, (np.arange(tasks * bins) + 0.5) * task_steps / bins, values.reshape(len(values), -1))


def _gaps(protocol: Protocol, name: str, style: int, task_steps: int) -> Curve | None:
    found = protocol.gaps_of(name) if name != ORACLE else np.empty((0, 0))
    if not found.size:
        return None
    return _curve(name, style, (np.arange(found.shape[1]) + 0.5) * task_steps, found)


def _curve(name: str, style: int, steps: NDArray[Any], values: Sequence[Any] | NDArray[Any]) -> Curve | None:
    from plasticity.reports.figures import Curve

    found, _ = band([Series(steps, one) for one in values])
    return None if found is None else Curve(name, style, found)
