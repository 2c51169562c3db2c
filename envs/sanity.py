"""Environments of one or two steps whose true values are known: tests of agents.

Each asks one thing of an agent, so the first one that fails says what is broken. Observations are one number. The
discrete form has two actions, which mean -1 and +1; the continuous form ("-continuous") has one action in [-1, 1].
After Andy Jones, "Debugging RL, without the agonizing pain" (2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from .family import Family

PREFIX = "sanity/"
CONTINUOUS = "-continuous"
PERIOD = 500
"""Steps of one environment in a task of "sanity/drift"."""
# The actions at which `values` states Q; the best continuous ones, -0.5 and 0.5, are among them.
GRID = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Sanity(gymnasium.Env):
    """Play a deterministic task on a few numbers; subclasses give its reward, its successor and its true Q."""

    states: tuple[float, ...] = (0.0,)
    starts: tuple[float, ...] = (0.0,)
    limit: int | None = None

    def __init__(self, continuous: bool = False) -> None:
        self.continuous = continuous
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32) if continuous else spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Start in one of `starts`, each equally likely."""
        super().reset(seed=seed)
        self.state = float(self.np_random.choice(self.starts))
        return np.array([self.state], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pay the reward and go to the successor; without one the task has ended."""
        command = float(action[0]) if self.continuous else (-1.0, 1.0)[int(action)]
        reward, successor = self.reward(self.state, command), self.successor(self.state)
        if successor is not None:
            self.state = successor
        return np.array([self.state], np.float32), reward, successor is None, False, {}

    def payoff(self, command: float, target: float) -> float:
        """Return at most 1: discrete a * target, best at a = target; continuous 1 - (a - target/2)^2, at target/2.

        The continuous optimum lies inside [-1, 1], where a squashed policy can reach it.
        """
        return 1.0 - (command - target / 2) ** 2 if self.continuous else command * target

    def reward(self, state: float, command: float) -> float:
        """Return the reward of `command` in `state`."""
        raise NotImplementedError

    def successor(self, state: float) -> float | None:
        """Return the next state; None where the task ends, as it does after one step."""
        return None

    def q(self, state: float, command: float, gamma: float) -> float:
        """Return the true optimal Q: here the reward, for the task ends after one step."""
        return self.reward(state, command)


class Constant(Sanity):
    """Pay 1 and end. V = 1, Q = 1 for every action. Fails: the value loss or its optimizer."""

    def reward(self, state: float, command: float) -> float:
        """Return 1."""
        return 1.0


class Observation(Sanity):
    """Pay the observation, -1 or +1, and end. V(o) = Q(o, a) = o. Fails: back-propagation through the network."""

    states = starts = (-1.0, 1.0)

    def reward(self, state: float, command: float) -> float:
        """Return the observation."""
        return state


class Discount(Sanity):
    """Go from 0 to 1 and pay 1 at the end only. V(0) = gamma, V(1) = 1, whatever the action. Fails: bootstrapping."""

    states = (0.0, 1.0)

    def reward(self, state: float, command: float) -> float:
        """Return 1 in the second state."""
        return state

    def successor(self, state: float) -> float | None:
        """Return 1 from 0; the task ends after it."""
        return 1.0 if state == 0.0 else None

    def q(self, state: float, command: float, gamma: float) -> float:
        """Return gamma in the first state, 1 in the second."""
        return gamma if state == 0.0 else 1.0


class Action(Sanity):
    """Pay for the action. Discrete Q = (-1, 1); continuous Q(a) = 1 - (a - 0.5)^2; V = 1. Fails: the policy."""

    def reward(self, state: float, command: float) -> float:
        """Return the payoff with target 1."""
        return self.payoff(command, 1.0)


class Both(Sanity):
    """Pay for the action that fits the observation o, -1 or +1. Fails: stale or mixed-up batches.

    Discrete Q(o, a) = o * a with a in (-1, +1); continuous Q(o, a) = 1 - (a - o/2)^2; V = 1.
    """

    states = starts = (-1.0, 1.0)

    def reward(self, state: float, command: float) -> float:
        """Return the payoff with the observation as target."""
        return self.payoff(command, state)


class Drift(Sanity):
    """Pay for the action, whose target flips in every task: +1 in even ones, -1 in odd ones. V = 1.

    A task lasts PERIOD steps of the environment. Fails: an agent that has learned one task and cannot learn the next.
    """

    def __init__(self, continuous: bool = False) -> None:
        super().__init__(continuous)
        self.steps = 0
        self.chosen: int | None = None

    @property
    def task(self) -> int:
        """Return the task of the next action: the number of flips of the target so far."""
        return self.steps // PERIOD if self.chosen is None else self.chosen

    def set_task(self, task: int) -> None:
        """Play one task only."""
        self.chosen = task

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Count the step."""
        result = super().step(action)
        self.steps += 1
        return result

    def reward(self, state: float, command: float) -> float:
        """Return the payoff for the target of the present task."""
        return self.payoff(command, 1.0 - 2.0 * (self.task % 2))

    def state_dict(self) -> dict[str, Any]:
        """Return the steps so far, and the task that was set."""
        return {"steps": self.steps, "task": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.steps, self.chosen = state["steps"], state["task"]


class Clock(Sanity):
    """Pay 1 forever in one state, cut by the clock after `limit` steps. V = Q = 1 / (1 - gamma).

    Fails: telling truncation from termination. An agent that takes one for the other learns `value_if_ended`, with
    the standard limit of 1 exactly 1.
    """

    limit = 1

    def reward(self, state: float, command: float) -> float:
        """Return 1."""
        return 1.0

    def successor(self, state: float) -> float | None:
        """Return the same state: the task itself never ends."""
        return state

    def q(self, state: float, command: float, gamma: float) -> float:
        """Return the value of 1 per step without end."""
        return 1.0 / (1.0 - gamma)

    @staticmethod
    def value_if_ended(gamma: float, limit: int = 1) -> float:
        """Return what is learned when truncation zeroes the next value: V = 1 + gamma * (1 - 1/limit) * V."""
        return 1.0 / (1.0 - gamma * (1.0 - 1.0 / limit))


SANITY: dict[str, type[Sanity]] = {
    "constant": Constant,
    "observation": Observation,
    "discount": Discount,
    "action": Action,
    "both": Both,
    "drift": Drift,
    "clock": Clock,
}


@dataclass(frozen=True)
class OptimalValues:
    """True optimal values of M observations and K actions."""

    obs: Tensor
    """(M, 1) float32: every observation there is."""
    action: Tensor
    """(K,) int64, or (K, 1) float32 on a grid that contains the best actions."""
    q: Tensor
    """(M, K) float32."""
    v: Tensor
    """(M,) float32: the maximum of Q."""


def values(name: str, gamma: float) -> OptimalValues:
    """Return the true values of "sanity/..." for the discount `gamma`; raises KeyError for another name."""
    env = _make(name)
    commands = GRID if env.continuous else (-1.0, 1.0)
    q = torch.tensor([[env.q(state, command, gamma) for command in commands] for state in env.states], device="cpu")
    action = torch.tensor(GRID, device="cpu").unsqueeze(1) if env.continuous else torch.arange(2, device="cpu")
    return OptimalValues(torch.tensor(env.states, device="cpu").unsqueeze(1), action, q, q.amax(1))


def _make(name: str) -> Sanity:
    key = name.removeprefix(PREFIX)
    return SANITY[key.removesuffix(CONTINUOUS)](continuous=key.endswith(CONTINUOUS))


def make_sanity(name: str, seed: int, max_episode_steps: int | None = None) -> gymnasium.Env:
    """Make one sanity environment; `max_episode_steps` replaces the limit of "sanity/clock"."""
    del seed  # comes with the first reset
    env = _make(name)
    limit = max_episode_steps or env.limit
    return env if limit is None else TimeLimit(env, limit)


def sanity_ids() -> list[str]:
    """List the sanity environments, the discrete form of each and the continuous one."""
    return [f"{PREFIX}{key}{form}" for key in SANITY for form in ("", CONTINUOUS)]


FAMILY = Family(PREFIX, sanity_ids, make_sanity)
