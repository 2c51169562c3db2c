"""One step of an agent's environments, as callbacks see it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch import Tensor

from .stopping import StopEpisodes


def stopper_of(model: BaseAlgorithm) -> StopEpisodes | None:
    """Return the wrapper of an agent's environments that ends episodes, None where there is none."""
    env: Any = model.env
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, StopEpisodes):
            return env
        env = env.venv
    return None


class EnvStep:
    """A step of all environments, (environments, ...) each; tensors are made when they are asked for.

    ``obs`` and ``action`` are what the agent's networks take; ``reward`` is scaled where the agent's is. ``next_obs``
    is what the environments returned, the first of the next episode where one ended; with :class:`StopEpisodes`, before
    wrappers around it.
    """

    def __init__(self, model: Any, actions: np.ndarray, obs: Any, rewards: Any, dones: Any, infos: Any) -> None:
        self._model, self._actions, self._obs = model, actions, obs
        self._rewards, self._dones, self._infos = rewards, dones, infos
        self._scaled = False

    @classmethod
    def from_locals(cls, model: Any, values: Mapping[str, Any]) -> EnvStep:
        """Return the step that an agent has just made, from the local variables of its loop."""
        step = cls(model, *(values[name] for name in ("actions", "new_obs", "rewards", "dones", "infos")))
        step._scaled = True
        return step

    @cached_property
    def obs(self) -> Any:
        """Observations before the step."""
        return self._model.policy.obs_to_tensor(self._model._last_obs)[0]

    @cached_property
    def action(self) -> Tensor:
        """Actions, on the scale of the networks."""
        actions = self._actions
        if isinstance(self._model.action_space, spaces.Box) and getattr(self._model, "replay_buffer", None) is not None:
            actions = self._model.policy.scale_action(actions)
        return torch.as_tensor(actions, device=self._model.device)

    @cached_property
    def next_obs(self) -> Any:
        """Observations after the step."""
        return self._model.policy.obs_to_tensor(self._obs)[0]

    @cached_property
    def reward(self) -> Tensor:
        """Rewards."""
        normalise = None if self._scaled else self._model._vec_normalize_env
        rewards = self._rewards if normalise is None else normalise.normalize_reward(self._rewards)
        return torch.as_tensor(rewards, dtype=torch.float32)

    @cached_property
    def terminated(self) -> Tensor:
        """Episodes that the task ended."""
        return torch.as_tensor(self._dones & ~self._cut())

    @cached_property
    def truncated(self) -> Tensor:
        """Episodes that ended for another reason; callbacks may set entries."""
        return torch.as_tensor(self._dones & self._cut())

    def _cut(self) -> np.ndarray:
        return np.array([bool(info.get("TimeLimit.truncated", False)) for info in self._infos])

    def stopped(self) -> np.ndarray:
        """Return which episodes callbacks ended, (environments,) bool."""
        if "truncated" not in self.__dict__:
            return np.zeros_like(self._dones)
        return self.truncated.numpy(force=True) & ~self._dones

    def require_unstopped(self) -> None:
        """Raise ValueError if a callback ended an episode, which nothing here can do."""
        if self.stopped().any():
            raise ValueError(
                "a callback ended an episode (transition.truncated), which takes the wrapper "
                "plasticity.sb3.StopEpisodes around the environments: "
                'SAC("MlpPolicy", StopEpisodes(make_vec_env(...)))'
            )
