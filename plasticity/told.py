"""Remarks that a run has told of its networks already: every one comes once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Told:
    """Remarks on networks, such as why a value is missing: each is told once in a run, and again once it is another."""

    def __init__(self) -> None:
        self._told: dict[str, set[str]] = {}

    def new(self, network: str, remarks: Mapping[str, str]) -> dict[str, str]:
        """Return those of the remarks, subject -> text, that were not told of the network before; now they are."""
        told = self._told.setdefault(network, set())
        found = {subject: text for subject, text in remarks.items() if f"{subject}: {text}" not in told}
        told |= {f"{subject}: {text}" for subject, text in found.items()}
        return found

    def state_dict(self) -> dict[str, list[str]]:
        """Return network -> what was told."""
        return {network: sorted(told) for network, told in self._told.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[str]] | Sequence[str]) -> None:
        """Go on from :meth:`state_dict`; of earlier versions, which kept the names of networks alone, anew."""
        kept = state if isinstance(state, Mapping) else dict.fromkeys(state, ())
        self._told = {network: set(told) for network, told in kept.items()}
