"""Go on in the middle of an episode after a restart: play it again from its start.

A simulator cannot be saved in general, but an episode is determined by the state it began with and by its actions. Both
are noted: the random state, and the state of every layer that has `state_dict` and `load_state_dict`. On resuming, the
actions are played again. Observation, rewards and states must then be the saved ones, bit for bit; where they are not,
the episode is given up for a new one.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch

from . import layers

MAX_NOTED = 200_000
"""Of one episode; a longer one is not noted, and given up on resuming."""


class Journal(gymnasium.Wrapper):
    """Wrapper, outside all others, that records the running episode so that it can be played again.

    The random state is that of `env.unwrapped`: its methods `random_state()` and `set_random_state(state)` if it has
    them, else Gymnasium's `np_random`. State that outlives an episode belongs into the `state_dict` of its layer, which
    is saved and restored. An environment that keeps some without having one is found out as far as its observations,
    its rewards or its plain attributes show it.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.replayed = True
        """True if the last `resume` gave the saved rewards and observation."""
        self.unrestored: dict[str, tuple[Any, Any]] = {}
        """Attribute -> its value when saved and after the last `resume`, in a replayed episode, where they differ."""
        self._stateful = layers.stateful(env)
        self._seed: int | None = None
        self._random: dict[str, Any] | None = None  # at the start of the running episode; None: right after seeding
        self._start: list[Any] = []  # states of the layers, before the running episode
        self._played: list[tuple[bytes, Any]] = []  # actions, which nobody can change later, and their rewards
        self._like: Any = None  # an action: the dtype and shape of all
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
            self._random = env_random_state(self.env.unwrapped)
        self._start = layers.states(self._stateful)
        self._played.clear()
        self._obs, info = self.env.reset(seed=seed, options=options)
        return self._obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Note the action, play it, and note the reward."""
        noted, self._like = action.tobytes(), action
        result = self.env.step(action)
        if len(self._played) <= MAX_NOTED:
            reward = result[1]
            self._played.append((noted, reward.copy() if isinstance(reward, np.ndarray) else reward))
        self._obs = result[0]
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the start, the actions, the rewards and the present observation and states of the running episode."""
        if self._seed is None or self._obs is None:
            raise RuntimeError("an environment has a state to save once it was reset with a seed")
        return {
            "seed": self._seed,
            "random": self._random,
            "start": self._start,
            "actions": self._actions() if self._played else None,
            "rewards": torch.tensor([float(reward) for _, reward in self._played], dtype=torch.float64, device="cpu"),
            "obs": torch.from_numpy(np.array(self._obs)),
            "after": env_random_state(self.env.unwrapped),
            "states": layers.states(self._stateful),
            "attributes": layers.attributes(self.env),
        }

    def _actions(self) -> torch.Tensor:
        noted = np.frombuffer(b"".join(action for action, _ in self._played), self._like.dtype)
        return torch.from_numpy(noted.reshape(-1, *self._like.shape).copy())

    def resume(self, state: dict[str, Any]) -> None:
        """Make the next `reset` play the episode of `state_dict()` again, and go on from there."""
        self._saved = state

    def _replay(self, saved: dict[str, Any]) -> Any:
        obs = self._begin_again(saved)
        self.replayed = self._play_again(saved, obs) and self._has_states(saved)
        self.unrestored = {}
        if self.replayed:
            now = layers.attributes(self.env)
            before = saved.get("attributes", now)  # version 0.1.0 did not save them
            differing = [name for name in now if name in before and not layers.same(before[name], now[name])]
            self.unrestored = {name: (before[name], now[name]) for name in differing}
        else:
            set_random_state(self.env.unwrapped, saved["after"])  # not the random numbers of this episode once more
            layers.load_states(self._stateful, saved.get("states", layers.states(self._stateful)))
            self.reset()
        return self._obs

    def _begin_again(self, saved: dict[str, Any]) -> Any:
        """Start the saved episode from the state in which it began; return its first observation."""
        start = saved.get("start", layers.states(self._stateful))
        layers.load_states(self._stateful, start)
        obs, _ = self.reset(seed=saved["seed"])
        if saved["random"] is not None:
            set_random_state(self.env.unwrapped, saved["random"])
            layers.load_states(self._stateful, start)
            obs, _ = self.reset()
        return obs

    def _play_again(self, saved: dict[str, Any], obs: Any) -> bool:
        """Play the saved actions; return whether rewards and last observation are the saved ones."""
        actions, rewards = saved["actions"], saved.get("rewards")
        steps = 0 if actions is None else len(actions)
        if steps > MAX_NOTED:
            return False
        for index in range(steps):
            action = actions[index].numpy()
            obs, reward, terminated, truncated, _ = self.step(action if action.ndim else action[()])
            if terminated or truncated or (rewards is not None and float(reward) != float(rewards[index])):
                return False
        return np.array_equal(obs, saved["obs"].numpy())

    def _has_states(self, saved: dict[str, Any]) -> bool:
        """Return whether the layers' states are the saved ones; load these first where they are not."""
        states = saved.get("states", layers.states(self._stateful))
        if layers.same(layers.states(self._stateful), states):
            return True
        layers.load_states(self._stateful, states)
        return layers.same(layers.states(self._stateful), states)


def env_random_state(env: Any) -> dict[str, Any]:
    """Return the random state of an unwrapped environment."""
    return env.random_state() if hasattr(env, "random_state") else env.np_random.bit_generator.state


def set_random_state(env: Any, state: dict[str, Any]) -> None:
    """Let an unwrapped environment go on from `env_random_state`."""
    if hasattr(env, "set_random_state"):
        env.set_random_state(state)
    else:
        env.np_random.bit_generator.state = state
