"""A wrapper of vectorised environments that ends single episodes early, for LEAST."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

Judge = Callable[[np.ndarray, VecEnvObs, np.ndarray, np.ndarray, list[dict]], np.ndarray]
"""``(actions, observations, rewards, dones, infos) -> (environments,) bool``: episodes to end."""


class StopEpisodes(VecEnvWrapper):
    """End the episodes that a method calls unpromising: ``SAC("MlpPolicy", StopEpisodes(make_vec_env(id)))``.

    Goes right around the environments, inside ``VecNormalize`` or ``VecFrameStack``. A stop is a truncation: the
    transition bootstraps, and the environment is reset. Does nothing until a ``PlasticityCallback`` with such a method
    (``LearnToStop``) runs. Returns and lengths of stopped episodes are those of a ``Monitor``, where there is one.

    Raises TypeError for environments that are not vectorised and ValueError for some that are wrapped already.
    """

    def __init__(self, venv: VecEnv) -> None:
        if not isinstance(venv, VecEnv):
            raise TypeError(
                f"StopEpisodes takes vectorised environments, from make_vec_env(id) or DummyVecEnv; got "
                f"{type(venv).__name__}"
            )
        if not isinstance(venv, (DummyVecEnv, SubprocVecEnv)):
            raise ValueError(
                f"StopEpisodes goes right around the environments, and got a {type(venv).__name__}: write "
                f"{type(venv).__name__}(StopEpisodes(...), ...)"
            )
        super().__init__(venv)
        self.judge: Judge | None = None
        """Decides which episodes end; set while a callback trains."""
        self._actions = np.zeros(0)
        self._start = time.time()
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=int)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every environment."""
        self._returns[:], self._lengths[:] = 0, 0
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        """Send the actions."""
        self._actions = actions
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Return the step; episodes that the judge ends are truncated, and their environments reset."""
        obs, rewards, dones, infos = self.venv.step_wait()
        self._returns += rewards
        self._lengths += 1
        if self.judge is not None:
            stopped = self.judge(self._actions, obs, rewards, dones, infos) & ~dones
            for index in stopped.nonzero()[0].tolist():
                self._stop(index, obs, infos)
            dones = dones | stopped
        self._returns[dones], self._lengths[dones] = 0, 0
        return obs, rewards, dones, infos

    def _stop(self, index: int, obs: Any, infos: list[dict]) -> None:
        """End an episode as the environments themselves end one."""
        info = infos[index]
        info["terminal_observation"] = _at(obs, index)
        info["TimeLimit.truncated"] = True
        if self.venv.env_is_wrapped(Monitor, indices=[index])[0]:
            seconds = round(time.time() - self._start, 6)
            length = int(self._lengths[index])
            info["episode"] = {"r": round(float(self._returns[index]), 6), "l": length, "t": seconds}
        first, reset_info = self.venv.env_method("reset", indices=[index])[0]
        self.venv.reset_infos = [*self.venv.reset_infos[:index], reset_info, *self.venv.reset_infos[index + 1 :]]
        _put(obs, index, first)


def _at(obs: Any, index: int) -> Any:
    if isinstance(obs, dict):
        return {key: value[index].copy() for key, value in obs.items()}
    return tuple(value[index].copy() for value in obs) if isinstance(obs, tuple) else obs[index].copy()


def _put(obs: Any, index: int, first: Any) -> None:
    """Write one observation into those of all environments."""
    keys = first if isinstance(first, dict) else range(len(first)) if isinstance(obs, tuple) else None
    if keys is None:
        obs[index] = first
    else:
        for key in keys:
            obs[key][index] = first[key]
