"""Events in words, collapses of layers, and the change of a layer after an intervention."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from plasticity.metrics import find_metric, headlines, ordered
from plasticity.tags import ALL, PLAIN_EVENTS, TASK, plasticity_tag, plasticity_tags

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Tag -> steps and values, in the order of the steps."""

_TOLD = {"step", "time", "event", "network", "layer", "neurons", "layers", "networks", "scores", "function_change"}
_NOTES = ("_skipped", "_refused", "_released")
MOST = 3
"""Collapses of one layer that are told, the worst; more are noise."""
COLLAPSE = 1 / 3
"""Share of a layer that must be lost within ``WINDOW`` measurements to be called a collapse."""
LEFT = 1 / 5
"""Share of its effective rank at most that a layer has left after a collapse: a critic that learns well may keep a
quarter, and actors that are lost at the first switch of continual CartPole keep a sixth to a ninth."""
WINDOW = 8


class EventSite(NamedTuple):
    """The site of an event: a layer of a network, or all of it; ``neurons`` is their number, None if not said."""

    network: str
    layer: str = ALL
    neurons: int | None = None


def tell(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event row of ``metrics.jsonl`` as the tab shows it.

    ``title``: one sentence. ``details``: further lines. ``sites``: [network, layer, neurons]. ``change``: the largest
    relative change of a network's function, or None. ``note``: whether nothing was changed, something was only said.
    Events of anybody's own work too: ``network``, ``layer`` and ``neurons`` are understood, the rest becomes lines.
    """
    name, sites = str(row.get("event", "event")), _sites(row)
    note = name in PLAIN_EVENTS or name.endswith(_NOTES) or "note" in row
    changes = [_number(part.get("function_change")) for part in (row, *_parts(row))]
    change = max((c for c in changes if c is not None), default=None)
    details = [f"{key.replace('_', ' ')}: {_short(value)}" for key, value in row.items() if key not in _TOLD]
    title = f"{name}: {_deed(row, sites)}"
    if change is not None:
        title += f"; function change {_short(change)}"
    return {
        "step": row.get("step", 0),
        "name": name,
        "note": note,
        "title": title,
        "details": details,
        "sites": [list(site) for site in sites],
        "change": change,
    }


def collapses(series: Curves, widths: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return where a layer lost at least ``COLLAPSE`` of itself within ``WINDOW`` measurements, the worst first.

    Metrics that are shares count as they are. Of the effective rank, a loss of ``COLLAPSE`` of the layer's width
    (``widths``: ``network/layer`` -> neurons) is one, and a fall to ``LEFT`` of what it was: few layers use a third of
    their width. A rank that has only fallen since the first measurement is that of random features, which healthy
    learning gives up, too. One entry per layer and stretch of steps: ``network, layer, metric, start, stop, before,
    after, size``, the share of the layer, or of its rank, that was lost.
    """
    found: list[dict[str, Any]] = []
    places = {name: place for place, name in enumerate(ordered(tag.metric for tag in plasticity_tags(series)))}
    for network, metric, layer in sorted(plasticity_tags(series), key=lambda tag: (places[tag.metric], tag)):
        if layer == ALL:
            continue
        steps, values = series[plasticity_tag(network, metric, layer)]
        for start, stop, size in _worst(metric, values, widths.get(f"{network}/{layer}")):
            entry = {"network": network, "layer": layer, "metric": metric, "start": steps[start], "stop": steps[stop]}
            entry |= {"before": values[start], "after": values[stop], "size": size}
            if not any(_same(entry, other) for other in found):
                found.append(entry)
    return sorted(found, key=lambda entry: -entry["size"])


def jumps(values: Sequence[float], size: float, window: int) -> list[tuple[int, int]]:
    """Return (start, stop), indices between which ``values`` rise by at least ``size`` within ``window`` values.

    As narrow as possible: from the last value near the bottom to the first near the top. What is not finite is skipped.
    """
    known = [i for i, value in enumerate(values) if math.isfinite(value)]
    if not known or max(values[i] for i in known) - min(values[i] for i in known) < size:
        return []
    found, first, position = [], 0, 1
    while position < len(known):
        back = known[max(first, position - window) : position]
        low = min((values[i] for i in back), default=math.inf)
        if values[known[position]] - low < size:
            position += 1
            continue
        ahead = known[position : position + window]
        high = max(values[i] for i in ahead)
        margin = (high - low) / 10
        stop = next(i for i in ahead if values[i] >= high - margin)
        start = max(i for i in back if values[i] <= low + margin)
        found.append((start, stop))
        position = first = known.index(stop) + 1
    return found


def effects(event: Mapping[str, Any], series: Curves) -> list[str]:
    """Return the change of the layers an event acted on: ``critic/trunk.0 dormancy 0.75 to 0.03``.

    Before is the last measurement at or before the event's step, after is the first one behind it.
    """
    lines = []
    for network, layer, _ in event["sites"]:
        for metric in (name for name in headlines() if find_metric(name).kind == "share"):
            steps, values = series.get(plasticity_tag(network, metric, layer), ((), ()))
            after = bisect_right(steps, event["step"])
            if 0 < after < len(steps):
                change = f"{_short(values[after - 1])} to {_short(values[after])}"
                lines.append(f"{network}/{layer} {metric} {change} at step {steps[after]:,}")
                break
    return lines


def _worst(metric: str, values: Sequence[float], width: int | None) -> list[tuple[int, int, float]]:
    """Return the collapses that a metric shows, at most ``MOST``: (start, stop, size), the largest first."""
    shown = find_metric(metric)
    if not shown.tells_loss:
        return []
    if shown.kind == "share":
        found = [(start, stop, values[stop] - values[start]) for start, stop in jumps(values, COLLAPSE, WINDOW)]
    else:
        learned = _behind_the_first_fall(values)
        places = {*jumps([-math.log(max(value, 1)) for value in learned], -math.log(LEFT), WINDOW)}  # the least rank: 1
        if width:
            places |= {*jumps([-value / width for value in learned], COLLAPSE, WINDOW)}
        found = [(start, stop, 1 - values[stop] / values[start]) for start, stop in places]
    return sorted(found, key=lambda jump: -jump[2])[:MOST]


def _behind_the_first_fall(values: Sequence[float]) -> list[float]:
    """Return ranks with NaN for those that only fell since the first: learning gives up random features, in health."""
    known = [place for place, value in enumerate(values) if math.isfinite(value)]
    for before, place in pairwise(known):
        if values[place] >= values[before]:
            return [math.nan] * before + [*values[before:]]
    return [math.nan] * len(values)


def _same(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two metrics speak of one event: the same layer, and stretches that touch."""
    alike = entry["network"] == other["network"] and entry["layer"] == other["layer"]
    return alike and entry["start"] <= other["stop"] and other["start"] <= entry["stop"]


def _sites(row: Mapping[str, Any]) -> list[EventSite]:
    network = str(row.get("network", ""))
    neurons, layers = row.get("neurons"), row.get("layers")
    if isinstance(neurons, Mapping):
        return [EventSite(network, str(layer), _count(n)) for layer, n in neurons.items()]
    if isinstance(layers, Mapping | list | tuple):
        return [EventSite(network, str(layer)) for layer in layers]
    if isinstance(row.get("networks"), Mapping):
        found = []
        for name, part in row["networks"].items():
            inside = part.get("layers", ()) if isinstance(part, Mapping) else ()
            found += [EventSite(str(name), str(layer)) for layer in inside] or [EventSite(str(name))]
        return found
    if "layer" in row:
        return [EventSite(network, str(row["layer"]), _count(neurons))]
    return [EventSite(network)] if network else []


def _parts(row: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    networks = row.get("networks")
    return [part for part in networks.values() if isinstance(part, Mapping)] if isinstance(networks, Mapping) else []


def _deed(row: Mapping[str, Any], sites: Sequence[EventSite]) -> str:
    """Return the action and its place in words, from the counts in the row."""
    where = ", ".join(_place(site, len(sites) > 1) for site in sites[:4]) + (
        f" and {len(sites) - 4} more" if len(sites) > 4 else ""
    )
    if isinstance(row.get("neurons"), Mapping):
        total = sum(site.neurons or 0 for site in sites)
        return f"recycled {total} neuron{'s' * (total != 1)}" + (f" in {where}" if where else "")
    if "grown" in row or "pruned" in row:
        done = f"grew {_short(row.get('grown', 0))} and pruned {_short(row.get('pruned', 0))} connections"
        return f"{done} in {where}" if where else done
    if "stops" in row:
        return f"stopped {_short(row['stops'])} of {_short(row.get('episodes'))} episodes"
    if row.get("event") == TASK:
        return f"{_short(row.get('task'))} begins"
    if "reason" in row:
        return f"{where or 'nothing done'}: {row['reason']}"
    if len(sites) == 1 and sites[0].neurons is not None:
        return f"acted on {sites[0].neurons} neurons of {where}"
    return f"acted on {where}" if where else _short(row.get("note", "applied"))


def _place(site: EventSite, counted: bool) -> str:
    place = "/".join(part for part in (site.network, site.layer) if part)
    return f"{place} ({site.neurons})" if counted and site.neurons is not None else place


def _count(neurons: Any) -> int | None:
    if isinstance(neurons, list | tuple):
        return len(neurons)
    return int(neurons) if isinstance(neurons, int | float) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _short(value: Any) -> str:
    """Return a value in at most 80 characters, numbers with three digits."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "-"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
