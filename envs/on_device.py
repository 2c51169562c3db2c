"""Simulators whose tensors live on a device, as those of MuJoCo Warp, MJX, Brax and Isaac Lab: no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from .transition import Transition

VERIFY_EVERY = 1000  # steps between two looks at whether all numbers were finite, each of which waits for the device


class Simulator(Protocol):
    """A batch of environments whose tensors are on one device; `reset` and `step` must not read them on the host.

    One that has `state_dict()` and `load_state_dict(state)` is resumed where it was; another begins anew.
    """

    num_envs: int
    observation_space: spaces.Box
    """Of one environment."""
    action_space: spaces.Box | spaces.Discrete
    """Of one environment: Box(-1, 1) in one dimension, or Discrete from 0."""

    def reset(self, done: Tensor | None) -> Tensor:
        """Start new episodes where the mask (N,) is true, None for all; return all observations (N, ...)."""
        ...

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the true successors (N, ...), rewards (N,), and whether each episode terminated or was cut (N,).

        It resets none. One that does returns the last observation of the episode here, and the next one's in `reset`.
        """
        ...


class OnDevice:
    """Step a simulator whose tensors are on `device`; implements `Env`, for `train` with an agent on the same device.

    The loop resets by mask without asking whether an episode has ended. Observations and rewards that are not finite
    are noted on the device; every `VERIFY_EVERY` steps, and before a state is saved, FloatingPointError names the step
    and the environment. Raises ValueError where the first observations are of another shape or device.
    """

    resets_by_mask = True
    """The loop passes the mask of what has ended to `reset` in every step, and does not look into it."""
    task: Tensor | None = None

    def __init__(self, name: str, simulator: Simulator, device: torch.device | str) -> None:
        self.name, self.simulator, self.device = name, simulator, torch.device(device)
        self.num_envs = simulator.num_envs
        self.observation_space, self.action_space = simulator.observation_space, simulator.action_space
        self._obs: Tensor | None = None
        self._steps = 0
        self._broken = torch.full((self.num_envs,), -1, dtype=torch.int64, device=self.device)  # at which step

    @property
    def obs(self) -> Tensor:
        """Return the present observations (N, ...); RuntimeError before the first reset."""
        if self._obs is None:
            raise RuntimeError(f"{self.name}: call reset() first, to start all environments")
        return self._obs

    def reset(self, done: Tensor | None = None) -> Tensor:
        """Start new episodes of all, or of those where the bool mask (N,) is true; return all observations."""
        obs = self.simulator.reset(done)
        shape = (self.num_envs, *self.observation_space.shape)
        if self._obs is None and (tuple(obs.shape) != shape or obs.device.type != self.device.type):
            raise ValueError(
                f"{self.name}: expected observations of shape {shape} on {self.device}, got {tuple(obs.shape)} on "
                f"{obs.device}"
            )
        self._obs = obs
        return obs

    def step(self, action: Tensor) -> Transition:
        """Advance all environments by one decision; never resets."""
        before = self.obs
        obs, reward, terminated, truncated = self.simulator.step(action)
        self._obs, reward = obs, reward.float()
        self._steps += 1
        sound = reward.isfinite()
        if obs.is_floating_point():
            sound = sound & obs.isfinite().flatten(1).all(1)
        self._broken = torch.where(sound | (self._broken >= 0), self._broken, self._steps)
        if self._steps % VERIFY_EVERY == 0:
            self.verify()
        return Transition(before, action, reward, obs, terminated, truncated & ~terminated)

    def verify(self) -> None:
        """Raise FloatingPointError if an observation or a reward was not finite; waits for the device."""
        broken = self._broken.tolist()
        if max(broken) >= 0:
            step, index = min((step, index) for index, step in enumerate(broken) if step >= 0)
            raise FloatingPointError(
                f"{self.name}: an observation or the reward of environment {index} was not finite at step {step} of "
                "every environment"
            )

    def set_task(self, task: Tensor | int) -> bool:
        """Return False: there are no tasks."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the simulator's state, where it has one, and the steps so far."""
        self.verify()
        save = getattr(self.simulator, "state_dict", None)
        return {"steps": self._steps, "simulator": None if save is None else save(), "obs": self.obs.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Tensor:
        """Go on from `state_dict()`; return a bool mask (N,) of the episodes that had to be given up for new ones."""
        self._steps = state["steps"]
        if lost := state["simulator"] is None:
            self.reset()
        else:
            self.simulator.load_state_dict(state["simulator"])  # type: ignore[attr-defined]
            self._obs = state["obs"].to(self.device)
        return torch.full((self.num_envs,), lost, device="cpu")

    def close(self) -> None:
        """Close the simulator, where it can be closed."""
        getattr(self.simulator, "close", lambda: None)()
