"""Refusal of probes that could never measure anything, before they are attached."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from .network import NetworkProbe
from .probe import SIGNALS, Probe

REPLACED = ("reduce", "reduces", "add")
"""Methods of 0.1.0 that ``sums()`` replaces."""


def require_probe(name: str, probe: Any) -> Probe:
    """Return ``probe``; raise ValueError, with the correction, for an object that is no usable probe."""
    if isinstance(probe, type) and issubclass(probe, Probe):
        raise ValueError(f"probe {name!r} is the class {probe.__name__}; pass an instance, {probe.__name__}()")
    if not isinstance(probe, Probe):
        raise ValueError(f"probe {name!r} is of type {type(probe).__name__}; pass an instance of plasticity.Probe")
    problem = (
        _no_measure(probe) if isinstance(probe, NetworkProbe) else _unknown_signals(probe) or _missing_methods(probe)
    )
    if problem:
        raise ValueError(f"probe {name!r} ({type(probe).__name__}) {problem}")
    return probe


def _no_measure(probe: Probe) -> str:
    """Return the fault of a network probe, empty if there is none."""
    if getattr(type(probe), "measure", None) is NetworkProbe.measure:
        return "has no measure()"
    if used := sorted({*probe.sums(), *(signal for signal in SIGNALS if probe.takes_rows(signal))}):
        return f"uses {', '.join(used)}: a probe is of layers or of the network, not of both"
    return ""


def _unknown_signals(probe: Probe) -> str:
    """Return the fault in the signals of a probe, empty if there is none."""
    given = {*probe.sums(), *(n for n in dir(probe) if n.startswith("on_") and callable(getattr(probe, n)))}
    if unknown := sorted(given - {*SIGNALS}):
        close = get_close_matches(unknown[0], SIGNALS, 1)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        return f"has {', '.join(unknown)}, which is no signal; {hint} {', '.join(SIGNALS)}"
    if own := sorted(n for n in vars(probe) if n in SIGNALS):
        return f"has {', '.join(own)} as an attribute of the object; write it as a method of the class"
    if bad := sorted(signal for signal, function in probe.sums().items() if not callable(function)):
        return f"has sums() that give no function for {', '.join(bad)}"
    if not probe.signals:
        return f"uses no signal: return one from sums(), or override one of {', '.join(SIGNALS)}"
    return ""


def _missing_methods(probe: Probe) -> str:
    """Return which method a probe lacks, or overrides in vain; empty if none."""
    kind = type(probe)
    for name in REPLACED:
        if getattr(kind, name, None) is not getattr(Probe, name, None):
            return f"overrides {name}(), which sums() replaces"
    if kind.compute is Probe.compute:
        return "has no compute()"
    if probe.per_neuron and kind.scores is Probe.scores:
        return "is per_neuron and has no scores()"
    return ""
