"""Agents one reads from top to bottom. They know nothing of plasticity: probes and interventions attach from outside.

`AGENTS` is the contents page: the name used on the command line -> (agent class, config dataclass).
"""

from dataclasses import is_dataclass

from .choices import pick
from .dqn import DQN, DQNConfig
from .optimizers import OPTIMIZERS
from .ppo import PPO, PPOConfig
from .sac import SAC, SACConfig
from .supervised import Supervised, SupervisedConfig
from .td3 import TD3, TD3Config

AGENTS: dict[str, tuple[type, type]] = {
    "dqn": (DQN, DQNConfig),
    "ppo": (PPO, PPOConfig),
    "sac": (SAC, SACConfig),
    "supervised": (Supervised, SupervisedConfig),
    "td3": (TD3, TD3Config),
}


def find_agent(name: str) -> tuple[type, type]:
    """Return the class and the config dataclass of an agent; ValueError if it is unknown or registered wrongly."""
    entry = pick(AGENTS, name, "agent")
    if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], type) and is_dataclass(entry[1])):
        raise ValueError(f"AGENTS[{name!r}] must be (agent class, config dataclass), got {entry!r}")
    return entry


__all__ = [
    "AGENTS", "DQN", "OPTIMIZERS", "PPO", "SAC", "TD3", "DQNConfig", "PPOConfig", "SACConfig", "Supervised",
    "SupervisedConfig", "TD3Config",
]  # fmt: skip
