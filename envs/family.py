"""Families of environments: how the environments of one prefix are listed and made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from .contract import watch_contract
from .journal import Journal
from .serial import serial
from .stream import TaskPlan
from .wrappers import adapt, repeat_actions

MakeVector = Callable[[list[int]], VectorEnv]
"""Builds one environment per seed, stepped as one."""


NO_TASKS = TaskPlan()


@dataclass(frozen=True)
class Family:
    """Make and list the environments whose names begin with one prefix.

        ENVS["my"] = Family("my/", ids=lambda: ["my/maze"], make=lambda name, seed, limit: Maze())

    Raises ValueError unless exactly one of `make` and `make_vector` is given.
    """

    prefix: str
    """Begins every name of the family, such as "dmc/"; "" only for Gymnasium's own ids."""
    ids: Callable[[], list[str]]
    """Returns all names, prefix included; `plasticity list envs` prints them."""
    make: Callable[[str, int, int | None], gymnasium.Env] | None = None
    """(name, seed, max_episode_steps) -> one environment. The seed comes again with the first reset; the limit, in
    simulator steps, replaces the environment's own, None keeps it."""
    action_repeat: int = 1
    """Simulator steps per decision where the user does not say."""
    make_vector: Callable[[str, int, int, int | None], VectorEnv] | None = None
    """(name, num_envs, action_repeat, max_episode_steps) -> all environments, for a simulator that steps them together.
    Its `reset` takes a list of seeds and the option `reset_mask`; its `step` never resets; spaces as `adapt` makes."""
    accepts: Callable[[str], bool] | None = None
    """name -> true if the family has it, where some spellings are not in `ids`; None: only those listed."""
    observe: Callable[[gymnasium.Env, str], gymnasium.Env] | None = None
    """(environment, name) -> environment with other observations; outside the action repeat, once per decision."""
    stream: Callable[[gymnasium.Env, str, TaskPlan, int], gymnasium.Env] | None = None
    """(environment, name, plan of this environment, number of environments) -> stream of tasks; outermost of all."""
    tasks: TaskPlan = NO_TASKS
    """Length and number of the tasks of a stream, where the user does not say."""

    def __post_init__(self) -> None:
        if (self.make is None) == (self.make_vector is None):
            raise ValueError(f"Family {self.prefix!r} takes either make or make_vector")

    def has(self, name: str) -> bool:
        """Return whether the family makes `name`."""
        if self.accepts is not None:
            return self.accepts(name)
        return name.startswith(self.prefix) and name in self.names()

    def names(self) -> list[str]:
        """Return all names; RuntimeError, with the family's prefix, where `ids` fails."""
        try:
            return list(self.ids())
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise RuntimeError(f"the family {self.prefix!r} cannot list its names: {reason}") from error

    def vector(
        self, name: str, action_repeat: int | None, limit: int | None, tasks: TaskPlan | None = None
    ) -> MakeVector:
        """Return the function that makes `name` once per seed, in the form that `GymEnv` steps.

        Raises ValueError for `tasks` that say how long or how many where the family has no stream.
        """
        times, plan = action_repeat or self.action_repeat, (tasks or TaskPlan()).filled(self.tasks)
        if self.stream is None and tasks is not None and (tasks.steps or tasks.num or tasks.first):
            raise ValueError(f"{name} has no tasks that follow each other; task_steps and num_tasks are for streams")
        if self.make_vector is not None:
            make_vector = self.make_vector
            return lambda seeds: make_vector(name, len(seeds), times, limit)

        def make_one(seed: int, num_envs: int) -> gymnasium.Env:
            env = repeat_actions(watch_contract(self._made(name, seed, limit), name), times)
            env = adapt(env if self.observe is None else self.observe(env, name), name)
            if self.stream is not None:
                env = self.stream(env, name, plan.shared(num_envs), num_envs)
            return Journal(env)

        return lambda seeds: serial(partial(make_one, num_envs=len(seeds)))(seeds)

    def _made(self, name: str, seed: int, limit: int | None) -> gymnasium.Env:
        assert self.make is not None
        env: Any = self.make(name, seed, limit)
        if not isinstance(env, gymnasium.Env):
            kind = f"{type(env).__module__}.{type(env).__qualname__}"
            raise TypeError(
                f"{name}: make must return a gymnasium.Env, got {kind}; the old gym package has another API"
            )
        return env
