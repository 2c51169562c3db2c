"""Options that a run of a benchmark was given besides the settings of its suite and of its method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from plasticity.meters import METERS

from .differences import NOTED, SAFE
from .method_names import method_arguments
from .suites import Suite

SAID_HERE = (
    "agent", "config", "dry-run", "env", "first-task", "help", "jobs", "like", "name", "num-tasks", "out", "resume",
    "retries", "seed", "seeds", "steps", "task-seed", "task-steps",
)  # fmt: skip
"""Options of ``plasticity train`` that the bench gives to every run."""
HARMLESS = (*SAID_HERE, *(name.replace("_", "-") for name in SAFE | NOTED - {"precision"}))
"""Options, or globs of them, that change nothing that is learned."""


def options_beside(record: Mapping[str, Any], suite: Suite, method: str) -> str:
    """Return the options of a recorded run that neither its suite nor its method has; another agent before them.

    Runs whose record does not say how they were started count as having none.
    """
    if "arguments" not in record:
        return ""
    given, usual = _options(record["arguments"]), _options(suite.arguments.split())
    known = usual + _options(method_arguments(method))
    meters = (form for name in METERS for form in (name.replace("_", "-"), f"{name.replace('_', '-')}.*"))
    left_out = [*HARMLESS, *meters]  # measuring changes nothing, either
    more = [one for one in given if one not in known and not any(fnmatchcase(one[0][2:], form) for form in left_out)]
    own = record["agent"] == suite.agent and all(one in given for one in usual)
    return " ".join(word for one in [*([] if own else [[record["agent"]]]), *sorted(more)] for word in one)


def _options(words: Sequence[str]) -> list[list[str]]:
    """Return every option with its values, in one spelling."""
    found: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append([flag.replace("_", "-"), *([value] if equals else [])])
        elif found:
            found[-1].append(word)
    return found
