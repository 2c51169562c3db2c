"""Go on in the middle of an episode after a restart: play it again from its start.

A simulator cannot be saved in general, but an episode is determined by the random state it began with and by its
actions. Both are noted; on resuming, the actions are played again, and the observation that they lead to must be the
saved one, bit for bit. Where it is not, the episode is given up.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

MAX_STEPS = 200_000
"""Of one episode; a longer one is not noted, and given up on resuming."""


class Journal(gymnasium.Wrapper):
    """Note how the running episode came about; goes around everything else.

    The random state is that of `env.unwrapped`: its methods `random_state()` and `set_random_state(state)` if it has
    them, else Gymnasium's `np_random`. An environment that keeps other secrets from one episode to the next does not
    play the same again, and is found out.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.replayed = True
        """Whether the last `resume` led to the observation that was saved."""
        self._seed: int | None = None
        self._random: dict[str, Any] | None = None  # at the start of the running episode; None: right after seeding
        self._actions: list[np.ndarray] = []
        self._obs: np.ndarray | None = None
        self._saved: dict[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; after `resume`, go on with the saved one."""
        if self._saved is not None:
            saved, self._saved = self._saved, None
            return self._replay(saved), {}
        if seed is not None:
            self._seed, self._random = seed, None
        else:
            self._random = random_state(self.env.unwrapped)
        self._actions.clear()
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Note the action and play it."""
        if len(self._actions) <= MAX_STEPS:
            self._actions.append(np.array(action))
        result = self.env.step(action)
        self._obs = result[0]
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the start, the actions and the present observation of the running episode."""
        if self._seed is None or self._obs is None:
            raise RuntimeError("an environment has a state to save once it was reset with a seed")
        return {
            "seed": self._seed,
            "random": self._random,
            "actions": torch.from_numpy(np.stack(self._actions)) if self._actions else None,
            "obs": torch.from_numpy(np.array(self._obs)),
            "after": random_state(self.env.unwrapped),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Let the next `reset` go on from `state_dict()`."""
        self._saved = state

    def _replay(self, saved: dict[str, Any]) -> Any:
        actions: Tensor | None = saved["actions"]
        obs, _ = self.reset(seed=saved["seed"])
        if saved["random"] is not None:
            set_random_state(self.env.unwrapped, saved["random"])
            obs, _ = self.reset()
        steps = 0 if actions is None else len(actions)
        ended = False
        for index in range(min(steps, MAX_STEPS)):
            assert actions is not None
            action = actions[index].numpy()
            obs, _, terminated, truncated, _ = self.step(action if action.ndim else action[()])
            if ended := terminated or truncated:
                break
        self.replayed = steps <= MAX_STEPS and not ended and np.array_equal(obs, saved["obs"].numpy())
        if not self.replayed:
            set_random_state(self.env.unwrapped, saved["after"])  # not the random numbers of this episode once more
            obs, _ = self.reset()
        return obs


def random_state(env: Any) -> dict[str, Any]:
    """Return the random state of an unwrapped environment."""
    return env.random_state() if hasattr(env, "random_state") else env.np_random.bit_generator.state


def set_random_state(env: Any, state: dict[str, Any]) -> None:
    """Let an unwrapped environment go on from `random_state`."""
    if hasattr(env, "set_random_state"):
        env.set_random_state(state)
    else:
        env.np_random.bit_generator.state = state
