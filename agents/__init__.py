"""Agents one reads from top to bottom. They know nothing of plasticity: probes and interventions attach from outside.

`AGENTS` is the contents page: the name used on the command line -> (agent class, config dataclass).
"""

from .sac import SAC, SACConfig

AGENTS: dict[str, tuple[type, type]] = {
    "sac": (SAC, SACConfig),
}

__all__ = ["AGENTS", "SAC", "SACConfig"]
