"""A named set of arguments, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Preset:
    """The arguments of one agent on some environments, and their source."""

    agent: str
    arguments: str
    source: str
    environments: str = "*"
    """Patterns of names, separated by spaces."""
    left_out: str = ""
    """Deeds of the source that these agents cannot do, or do otherwise."""

    def fits(self, agent: str, environment: str) -> bool:
        """Return whether this is for an agent on an environment."""
        return agent == self.agent and any(fnmatchcase(environment, one) for one in self.environments.split())

    @property
    def notes(self) -> str:
        """Return the source, and what is left out of it, in one line."""
        return self.source + (f"; not as there: {self.left_out}" if self.left_out else "")
