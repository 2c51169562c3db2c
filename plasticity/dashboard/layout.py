"""TensorBoard's Custom Scalars layout, and links that open on the headline tags."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote

from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent

from plasticity.metrics import ordered
from plasticity.tags import ALL, EPISODIC_RETURN, EVAL_RETURN, SPEED, network_prefix, plasticity_tag, plasticity_tags

_FIRST = (EPISODIC_RETURN, EVAL_RETURN, SPEED)


def layout(tags: Iterable[str]) -> Layout:
    """Return a layout for ``tags``: training curves, then one category per network, then the event counts.

    Tags are ``plasticity/<network>/<metric>/<layer>``; a chart shows all layers of one metric of one network. It
    matches them by pattern, so that runs with other layer names share the chart: TensorBoard merges the layouts of all
    runs and shows charts that differ in one tag twice.
    """
    tags = sorted(set(tags))
    categories = [Category(title="training", chart=[_chart(tag, re.escape(tag)) for tag in _training(tags)])]
    parts = plasticity_tags(tags)
    for network in sorted({tag.network for tag in parts}):
        metrics = ordered(tag.metric for tag in parts if tag.network == network)
        charts = [_chart(metric, f"{re.escape(f'{network_prefix(network)}/{metric}')}/[^/]+") for metric in metrics]
        categories.append(Category(title=network, chart=charts))
    counters = [tag for tag in tags if tag.startswith("events/")]
    categories.append(Category(title="events", chart=[_chart(tag, re.escape(tag)) for tag in counters]))
    return Layout(category=[category for category in categories if category.chart])


def pinned_url(base_url: str, tags: Iterable[str]) -> str:
    """Return the link to TensorBoard with the episodic return and the values of whole networks pinned on top.

    One metric of all networks stands side by side.
    """
    tags = set(tags)
    wholes = [tag for tag in plasticity_tags(sorted(tags)) if tag.layer == ALL]
    pinned = [EPISODIC_RETURN] if EPISODIC_RETURN in tags else []
    for metric in ordered(tag.metric for tag in wholes):
        pinned += [plasticity_tag(tag.network, metric) for tag in wholes if tag.metric == metric]
    pins = json.dumps([{"plugin": "scalars", "tag": tag} for tag in pinned], separators=(",", ":"))
    return f"{base_url.rstrip('/')}/?smoothing=0&pinnedCards={quote(pins, safe='')}#timeseries"


def tab_url(base_url: str) -> str:
    """Return the link to the Plasticity tab."""
    return f"{base_url.rstrip('/')}/#plasticity"


def layers_url(base_url: str) -> str:
    """Return the link to the Custom Scalars tab, which shows every layer, without its default smoothing."""
    return f"{base_url.rstrip('/')}/#custom_scalars&_smoothingWeight=0"


def _training(tags: list[str]) -> list[str]:
    """Return the tags of the training category: the returns and the speed first, other charts, then the losses."""
    first = [tag for tag in _FIRST if tag in tags]
    charts = [tag for tag in tags if tag.startswith("charts/") and tag not in first]
    return first + charts + [tag for tag in tags if tag.startswith("losses/")]


def _chart(title: str, pattern: str) -> Chart:
    # TensorBoard matches from the start of a tag only: the end has to be said.
    return Chart(title=title, multiline=MultilineChartContent(tag=[f"^{pattern}$"]))
