"""The names under which numbers are logged."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

ALL = "all"
"""In place of a layer: the whole network."""
EPISODIC_RETURN, EVAL_RETURN, SPEED = "charts/episodic_return", "charts/eval_return", "charts/SPS"
RETURN_TITLES = {EVAL_RETURN: "evaluation return", EPISODIC_RETURN: "return of training episodes"}
"""Tag of a return -> its title; the first is the one to compare runs by."""
UPDATES = "charts/updates"
"""Optimizer steps made so far, of the network that is measured first."""
OVERHEAD = "plasticity/overhead"
"""Share of wall-clock time that measuring takes."""
TIMED = (SPEED, OVERHEAD)
"""Tags whose values depend on the speed of the machine, beside the seconds of methods: see :func:`is_timed`."""

UNMEASURED, MEASURED, TASK = "unmeasured", "measured", "task"
PLAIN_EVENTS = (UNMEASURED, MEASURED, TASK)
"""Events in which nothing was changed: what has no value, on what ranks are taken, the start of a task."""


def is_timed(tag: str) -> bool:
    """Return whether a tag's values depend on the speed of the machine; no checkpoint holds them."""
    return tag in TIMED or (tag.startswith("interventions/") and tag.endswith("/seconds"))


class Tag(NamedTuple):
    """The parts of ``plasticity/<network>/<metric>/<layer>``; ``str`` joins them again."""

    network: str
    metric: str
    layer: str

    def __str__(self) -> str:
        return f"{network_prefix(self.network)}/{self.metric}/{self.layer}"


def network_prefix(network: str) -> str:
    """Return the beginning of all plasticity tags of a network."""
    return f"plasticity/{network}"


def plasticity_tag(network: str, metric: str, layer: str = ALL) -> str:
    """Return ``plasticity/<network>/<metric>/<layer>``."""
    return str(Tag(network, metric, layer))


def parse_tag(tag: str) -> Tag | None:
    """Return the parts of ``plasticity/<network>/<metric>/<layer>``, None for other tags; a metric may hold slashes."""
    return _parts("plasticity", tag)


def relatives(tag: str, tags: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return those of ``tags`` that name the same kind of measurement as ``tag``, and those of the same network.

    ``tag`` may be misspelt: a first part that is nearly the same counts as the same.
    """
    head, network = (*tag.split("/"), "")[:2]
    kin = [t for t in tags if t.count("/") >= 2 and SequenceMatcher(None, t.split("/")[0], head).ratio() > 0.8]
    return kin, [t for t in kin if t.split("/")[:2] == [head, network]]


def plasticity_tags(tags: Iterable[str]) -> list[Tag]:
    """Return the parts of each plasticity tag among ``tags``, in their order."""
    return [parts for tag in tags if (parts := parse_tag(tag)) is not None]


def score_tag(network: str, probe: str, layer: str) -> str:
    """Return ``scores/<network>/<probe>/<layer>``, the tag of the scores of a layer's neurons."""
    return f"scores/{network}/{probe}/{layer}"


def parse_score_tag(tag: str) -> Tag | None:
    """Return network, probe and layer of ``scores/<network>/<probe>/<layer>``, None for another tag."""
    return _parts("scores", tag)


def is_chart(tag: str) -> bool:
    """Return whether a tag is a curve of training: a return, a speed, a loss; not a measurement, score or count."""
    return not tag.startswith(("plasticity/", "scores/", "events/"))


def _parts(head: str, tag: str) -> Tag | None:
    first, *middle = tag.split("/")
    if first != head or len(middle) < 3 or not all(middle):
        return None
    return Tag(middle[0], "/".join(middle[1:-1]), middle[-1])
