"""Stable-Baselines3: probes and interventions as one callback of ``learn``; replay and episodes that methods steer.

Needs the extra ``sb3``. Networks go by the names under which an agent holds them: ``actor`` and ``critic`` (SAC, TD3,
DDPG, TQC, CrossQ), ``q_net`` (DQN), ``quantile_net`` (QR-DQN), ``policy`` (PPO, A2C, RecurrentPPO).
"""

try:
    import stable_baselines3  # noqa: F401
except ImportError as error:
    raise ImportError('plasticity.sb3 needs stable-baselines3: pip install "plasticity-toolkit[sb3]"') from error

from .callback import PlasticityCallback
from .context import context_of
from .replay import WeightedReplayBuffer
from .stopping import StopEpisodes

__all__ = ["PlasticityCallback", "StopEpisodes", "WeightedReplayBuffer", "context_of"]
