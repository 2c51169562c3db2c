"""Gymnasium's ids, such as CartPole-v1, as batches of tensors."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, find_highest_version
from gymnasium.vector import VectorEnv
from torch import Tensor

from . import extras
from .advice import GYMNASIUM_MUJOCO, without_advice
from .drawing import picture
from .family import Family
from .floats import FLOAT32, LARGEST, ordinary, to_float32
from .journal import Journal
from .tasks import Tasks
from .transition import Rows, Transition

# Its ids stand for single frames of the screen; `atari.py` makes the games as agents are trained on them.
ALE = "ale_py"
BOX2D = "gymnasium.envs.box2d"


class GymEnv:
    """Step N adapted Gymnasium environments; implements `Env`.

    Args: `make_vector(seeds)` builds them as a vector environment whose `reset` takes a list of seeds and the option
    `reset_mask`, and whose `step` resets none that has not ended. Its single observation space is a Box (float32, or a
    uint8 image), its single action space Box(-1, 1, (n,)) or Discrete from 0. `seed` is the root of all randomness:
    environment i gets the same numbers whatever `num_envs` is.
    """

    def __init__(
        self, name: str, make_vector: Callable[[list[int]], VectorEnv], num_envs: int, seed: int, device: str = "cpu"
    ) -> None:
        actions, episodes = np.random.SeedSequence(seed).spawn(2)
        self.name = name
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.seeds = [int(child.generate_state(1)[0]) for child in episodes.spawn(num_envs)]
        self._vector = make_vector(self.seeds)
        self.observation_space = cast("spaces.Box", self._vector.single_observation_space)
        self.action_space = cast("spaces.Box | spaces.Discrete", self._vector.single_action_space)
        self.action_space.seed(int(actions.generate_state(1)[0]))
        discrete = isinstance(self.action_space, spaces.Discrete)
        self._num_actions = int(self.action_space.n) if discrete else None
        self._actions = np.dtype(np.int64 if discrete else np.float32), (num_envs, *(self.action_space.shape or ()))
        self._images = self.observation_space.dtype == np.uint8
        self._on_cpu = self.takes_arrays = self.device.type == "cpu"
        self._tasks = Tasks(getattr(self._vector, "envs", ()), self.device)
        self.task: Tensor | None = None
        self._obs: np.ndarray | None = None  # the present observations
        self._sent: tuple[np.ndarray | None, Tensor] = None, torch.empty(0)  # and their tensor
        self._over, self._waiting = np.ones(num_envs, dtype=bool), True
        self._steps = 0

    def reset(self, done: Tensor | None = None) -> Tensor:
        """Start new episodes of all, or of those where the bool mask (N,) is true; return all observations.

        The first call seeds the environments; later ones continue their streams. Raises ValueError for a mask of
        another shape or dtype, RuntimeError when a mask comes before the first full reset.
        """
        if done is None:
            # Only the first reset seeds: seeding each time would start every episode from the same state.
            obs, _ = self._vector.reset(seed=[*self.seeds] if self._obs is None else None)
            mask = np.ones(self.num_envs, dtype=bool)
        else:
            mask = self._mask(done)
            if self._obs is None:
                raise RuntimeError(f"{self.name}: call reset() without a mask first, to start all environments")
            if True not in mask.tolist():
                return self.obs
            obs, _ = self._vector.reset(options={"reset_mask": mask})
        self._over[mask] = False
        self._waiting = True in self._over.tolist()
        if not (self._images or ordinary(obs)):
            self._check_finite("observation", obs)
        if self._obs is None:
            self._tasks.find()
        self.task = self._tasks.present()
        self._obs = obs
        return self.obs

    def step(self, action: Any) -> Transition:
        """Advance all by one decision: (N, action_dim) floats in [-1, 1], or (N,) integers; a tensor or an array.

        Raises RuntimeError when an environment has to be reset first, ValueError for an action of the wrong shape,
        dtype or range, FloatingPointError for a non-finite action, observation or reward.
        """
        before, task = self._obs, self.task
        if before is None or self._waiting:
            waiting = np.flatnonzero(self._over).tolist()
            raise RuntimeError(f"{self.name}: call reset() before step(): no episode is running in {waiting}")
        command = self._command(action)
        obs, reward, terminated, truncated, _ = self._vector.step(command)
        self._steps += 1
        goes_on = not (True in terminated.tolist() or True in truncated.tolist())  # four times as fast as any()
        if not goes_on:
            self._over, self._waiting = terminated | truncated, True
            truncated = truncated > terminated  # the end of the task wins, for its value is known
        if not (self._images or ordinary(obs)):
            self._check_finite("observation", obs)
        self._obs, reward = obs, self._checked(reward)
        if task is not None:
            self.task = self._tasks.present()
        step = {
            "obs": before, "action": command, "reward": reward, "next_obs": obs,
            "terminated": terminated, "truncated": truncated,
        }  # fmt: skip
        if self._on_cpu:
            return Rows(task, step, goes_on)
        return Transition(**{name: self._tensor(values) for name, values in step.items()}, task=task)

    def _checked(self, reward: np.ndarray) -> np.ndarray:
        """Return rewards (N,) as float32, or raise where one is not finite."""
        if sum(map(abs, reward.tolist())) < LARGEST:
            return reward.astype(FLOAT32)
        self._check_finite("reward", single := to_float32(reward))
        return single

    def set_task(self, task: Tensor | int) -> bool:
        """Let every environment play its task, of (N,) ids or one for all, from the next reset on, and no other.

        Returns False, and changes nothing, where the environments have no method `set_task(task)`.
        """
        return self._tasks.set(task)

    @property
    def episode_limit(self) -> int | None:
        """Return the simulator steps after which the environments' own wrapper ends an episode; None for no such."""
        found, env = [], next(iter(getattr(self._vector, "envs", ())), None)
        while isinstance(env, gymnasium.Wrapper):
            found += [env._max_episode_steps] if isinstance(env, gymnasium.wrappers.TimeLimit) else []
            env = env.env
        return min(found, default=None)

    @property
    def fps(self) -> float | None:
        """Return the decisions per second of simulated time that the environments say, None where they do not."""
        env = next(iter(getattr(self._vector, "envs", ())), None)
        return None if env is None else env.unwrapped.metadata.get("render_fps")

    def picture(self) -> np.ndarray:
        """Return a picture (height, width, 3) uint8 of the first environment; RuntimeError where there is none."""
        if self._obs is None:
            raise RuntimeError(f"{self.name}: call reset() first, to start all environments")
        return picture(next(iter(getattr(self._vector, "envs", ())), None), self._obs[0], self.name)

    @property
    def obs(self) -> Tensor:
        """Return the present observations (N, ...); RuntimeError before the first reset."""
        if self._obs is None:
            raise RuntimeError(f"{self.name}: call reset() first, to start all environments")
        return self._tensor(self._obs)

    def _tensor(self, values: np.ndarray) -> Tensor:
        """Return values on the device; present observations are sent there once."""
        if self._on_cpu:
            return torch.from_numpy(values)
        if values is self._obs is not self._sent[0]:
            self._sent = values, torch.as_tensor(values, device=self.device)
        return self._sent[1] if values is self._sent[0] else torch.as_tensor(values, device=self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the start and the course of the running episodes, the states of the environments that have one, and
        the random state of the actions."""
        journals = self._journals()
        return {
            "episodes": None if journals is None else [journal.state_dict() for journal in journals],
            "action_space": self.action_space.np_random.bit_generator.state,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        """Go on from `state_dict()`; return a bool mask (N,) of the episodes that had to be given up for new ones.

        Warns, by name, of attributes that are no longer what they were: the environment keeps them from one episode to
        the next and has no `state_dict`.
        """
        journals = self._journals()
        lost = np.ones(self.num_envs, dtype=bool)
        if journals is None:
            # Not the seeds of the start: the same episodes would come again.
            children = np.random.SeedSequence([*self.seeds, state["steps"]]).spawn(self.num_envs)
            obs, _ = self._vector.reset(seed=[int(child.generate_state(1)[0]) for child in children])
        else:
            for journal, saved in zip(journals, state["episodes"], strict=True):
                journal.resume(saved)
            obs, _ = self._vector.reset()
            lost = np.array([not journal.replayed for journal in journals])
            self._warn_of_unrestored(journals)
        self.action_space.np_random.bit_generator.state = state["action_space"]
        self._steps = state["steps"]
        self._over, self._waiting = np.zeros_like(self._over), False
        self._tasks.find()
        self.task = self._tasks.present()
        self._obs = obs
        return self._tensor(lost)

    def _warn_of_unrestored(self, journals: list[Journal]) -> None:
        differing = {name: values for journal in journals for name, values in journal.unrestored.items()}
        if differing:
            found = ", ".join(f"{name} ({old} when saved, {new} now)" for name, (old, new) in differing.items())
            warnings.warn(
                f"{self.name} keeps state beyond its episodes that was not saved: {found}; give the environment or "
                "wrapper state_dict() and load_state_dict(), which are saved and restored",
                RuntimeWarning,
                stacklevel=3,
            )

    def _journals(self) -> list[Journal] | None:
        """Return the journals of all environments; None where they are stepped as one, as Atari games are."""
        envs = getattr(self._vector, "envs", None)
        return envs if envs and all(isinstance(env, Journal) for env in envs) else None

    def close(self) -> None:
        """Close all environments; may be called twice."""
        if not self._vector.closed:
            self._vector.close()
        self._obs, self._over = None, np.ones(self.num_envs, dtype=bool)

    def _mask(self, done: Tensor) -> np.ndarray:
        mask = torch.as_tensor(done)
        if mask.dtype != torch.bool or mask.shape != (self.num_envs,):
            raise ValueError(
                f"{self.name}: reset takes a bool mask of shape ({self.num_envs},), "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )
        return mask.cpu().numpy()

    def _command(self, action: Any) -> np.ndarray:
        """Return a copy of `action` as float32 (N, n) or int64 (N,), or raise."""
        dtype, shape = self._actions
        if not isinstance(action, np.ndarray):
            action = torch.as_tensor(action)
            action = (action.float() if action.dtype == torch.bfloat16 else action).numpy(force=True)
        if action.dtype != dtype or action.shape != shape:
            action = self._fitting(action)
        command = action.copy()
        if self._num_actions is None:
            if not ordinary(command):
                self._check_finite("action", command)
        elif min(choices := command.tolist()) < 0 or max(choices) >= self._num_actions:
            last = self._num_actions - 1
            index = next(i for i, choice in enumerate(choices) if not 0 <= choice <= last)
            raise ValueError(f"{self.name}: action {choices[index]} of environment {index} is not in 0..{last}")
        return command

    def _fitting(self, action: np.ndarray) -> np.ndarray:
        """Return `action` in the dtype that the environments take, or raise if it is of another kind or shape."""
        dtype, shape = self._actions
        if action.shape != shape or action.dtype.kind not in ("f" if dtype.kind == "f" else "iu"):
            kind = "floats" if dtype.kind == "f" else "integers"
            raise ValueError(
                f"{self.name}: expected {kind} of shape {shape} as action, got {action.dtype} of shape {action.shape}"
            )
        return action.astype(dtype)

    def _check_finite(self, what: str, values: np.ndarray) -> None:
        if np.isfinite(values).all():
            return
        bad = ~np.isfinite(values.reshape(self.num_envs, -1))
        index = int(np.flatnonzero(bad.any(axis=1))[0])
        entry = int(np.flatnonzero(bad[index])[0])
        value = values.reshape(self.num_envs, -1)[index, entry]
        raise FloatingPointError(
            f"{self.name}: {what} of environment {index} is not finite "
            f"(entry {entry} is {value}) after {self._steps} steps"
        )


def find_spec(name: str) -> EnvSpec | None:
    """Return the registered spec of a Gymnasium id, "module:id" importing the module first; None if there is none."""
    module, _, env_id = name.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = gymnasium.registry.get(env_id)
    return None if spec is None or _package(spec) == ALE else spec


def make_gymnasium(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    """Make one Gymnasium environment; `seed` comes with the first reset, as Gymnasium wants it."""
    del seed
    spec = find_spec(name)
    place = "" if spec is None else str(spec.entry_point)
    if place.startswith(BOX2D):
        extras.require_extra("box2d", name)
    try:
        with without_advice() if place.startswith(GYMNASIUM_MUJOCO) else nullcontext():
            return gymnasium.make(name, max_episode_steps=max_episode_steps)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ModuleNotFoundError(f"{name} cannot be made: {error}") from error


def gymnasium_ids() -> list[str]:
    """List the ids of Gymnasium's registry, newest version of each only."""
    newest = (
        spec
        for spec in gymnasium.registry.values()
        if spec.entry_point is not None and spec.version == find_highest_version(spec.namespace, spec.name)
    )
    return sorted(spec.id for spec in newest if _package(spec) != ALE)


def _package(spec: EnvSpec) -> str:
    return str(spec.entry_point).partition(".")[0]


FAMILY = Family("", gymnasium_ids, make_gymnasium, accepts=lambda name: find_spec(name) is not None)
