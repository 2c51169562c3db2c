"""The sequel of a collapse in one run: the intervention that followed, and how much of the layer came back."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from plasticity.tags import ALL, plasticity_tag

CAME_BACK, STAYED = 2 / 3, 1 / 3
"""Share of what was lost from which on a layer has recovered, and up to which it stays collapsed."""


def aftermath(
    collapse: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> dict[str, Any]:
    """Return what became of a collapse: ``act`` and ``step`` of the first intervention, ``then``, ``now``, ``fate``.

    ``events`` are those of the run as the tab tells them; one counts that acted on the layer, or on its whole network,
    from the end of the collapse on. ``then`` is [step, value] of the first measurement after it, ``now`` of the last
    one at all. ``fate``: recovered, partly recovered, still collapsed; by the share of the loss that ``now`` has back.
    """
    act = next((event for event in events if _treats(event, collapse)), None)
    steps, values = series[plasticity_tag(collapse["network"], collapse["metric"], collapse["layer"])]
    known = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    after = bisect_right(known, act["step"], key=lambda point: point[0]) if act else len(known)
    now = known[-1]
    return {
        "act": act and act["name"],
        "step": act and act["step"],
        "then": list(known[after]) if after < len(known) else None,
        "now": list(now),
        "fate": _fate(collapse["before"], collapse["after"], now[1]),
    }


def _treats(event: Mapping[str, Any], collapse: Mapping[str, Any]) -> bool:
    here = (collapse["network"], collapse["layer"]), (collapse["network"], ALL)
    return (
        not event["note"]
        and event["step"] >= collapse["stop"]
        and any(s[:2] in map(list, here) for s in event["sites"])
    )


def _fate(before: float, after: float, now: float) -> str:
    back = (after - now) / (after - before)
    return "recovered" if back >= CAME_BACK else "still collapsed" if back <= STAYED else "partly recovered"
