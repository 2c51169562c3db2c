"""Agents one reads from top to bottom. They know nothing of plasticity: probes and interventions attach from outside.

`AGENTS` is the contents page: the name used on the command line -> (agent class, config dataclass).
"""

from .dqn import DQN, DQNConfig
from .optimizers import OPTIMIZERS
from .ppo import PPO, PPOConfig
from .sac import SAC, SACConfig
from .td3 import TD3, TD3Config

AGENTS: dict[str, tuple[type, type]] = {
    "dqn": (DQN, DQNConfig),
    "ppo": (PPO, PPOConfig),
    "sac": (SAC, SACConfig),
    "td3": (TD3, TD3Config),
}

__all__ = ["AGENTS", "DQN", "OPTIMIZERS", "PPO", "SAC", "TD3", "DQNConfig", "PPOConfig", "SACConfig", "TD3Config"]
