"""What the tags of a run stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

HEADLINE = ("dormancy", "grama", "effective_rank")
"""Metrics that a report shows if it is not asked for others."""
TITLES = {"charts/eval_return": "evaluation return", "charts/episodic_return": "return of training episodes"}
ALL = "all"
"""In place of a layer: the whole network."""


def plasticity_tags(tags: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (network, metric, layer) of each plasticity tag."""
    matches = (re.fullmatch(r"plasticity/([^/]+)/(.+)/([^/]+)", tag) for tag in tags)
    return [(match[1], match[2], match[3]) for match in matches if match]
