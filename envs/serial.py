"""Step environments one after another, as Gymnasium's SyncVectorEnv does, at a fraction of its cost per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv


class Serial(VectorEnv):
    """Make arrays of what some environments of one kind return, and reset them only when told to.

    Every call returns new arrays, which no later one changes. Infos are not kept: to merge them costs more than many an
    environment. One that has ended must be reset before it is stepped, which `GymEnv` sees to.
    """

    def __init__(self, envs: Sequence[gymnasium.Env]) -> None:
        self.envs = list(envs)
        self.num_envs = len(self.envs)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        for env in self.envs:
            found = env.observation_space, env.action_space
            if found != (self.single_observation_space, self.single_action_space):
                raise RuntimeError(
                    f"environments that are stepped together must have the same spaces, got also {found}"
                )
        box = cast("spaces.Box", self.single_observation_space)
        self._shape, self._dtype = box.shape, box.dtype
        self._obs = np.empty((self.num_envs, *box.shape), box.dtype)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start new episodes of all, or of those in `options["reset_mask"]`; `seed` is None or a list of seeds."""
        mask = [True] * self.num_envs if options is None else options["reset_mask"].tolist()
        seeds = [None] * self.num_envs if seed is None else seed
        self._obs = self._obs.copy()
        for index, env in enumerate(self.envs):
            if mask[index]:
                self._obs[index] = self._checked(env.reset(seed=seeds[index])[0])
        return self._obs, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return observations, rewards (N,) float64, and the two flags (N,) bool, of one step of each environment."""
        self._obs = np.empty_like(self._obs)
        reward = np.empty(self.num_envs)
        terminated, truncated = np.empty(self.num_envs, dtype=bool), np.empty(self.num_envs, dtype=bool)
        for index, env in enumerate(self.envs):
            obs, reward[index], terminated[index], truncated[index], _ = env.step(actions[index])
            self._obs[index] = self._checked(obs)
        return self._obs, reward, terminated, truncated, {}

    def _checked(self, obs: Any) -> np.ndarray:
        """Return an observation as an array; raise where it is not what its space says: assigning would broadcast."""
        if type(obs) is not np.ndarray or obs.dtype != self._dtype or obs.shape != self._shape:
            obs = np.asarray(obs)
            if obs.shape != self._shape:
                raise ValueError(f"expected observations of shape {self._shape}, got {obs.shape}")
            return obs.astype(self._dtype, casting="same_kind")
        return obs

    def close_extras(self, **kwargs: Any) -> None:
        """Close all environments."""
        for env in self.envs:
            env.close()


def serial(make_one: Callable[[int], gymnasium.Env]) -> Callable[[list[int]], VectorEnv]:
    """Return what makes one environment per seed, stepped one after another, each made by `make_one(seed)`."""
    return lambda seeds: Serial([make_one(seed) for seed in seeds])
