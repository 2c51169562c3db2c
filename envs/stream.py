"""Streams of tasks: an environment that changes after every so many steps, while the agent stays.

Task 0 begins the stream. A task lasts a fixed number of environment steps; at its last one the running episode is
truncated, and the next reset begins the next task. What a task is follows from the seed of the stream and the number
of the task alone, so that training, evaluation, and every parallel environment of a run have the same tasks.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np


@dataclass(frozen=True)
class TaskPlan:
    """The tasks of a stream: which, how many, how long. Raises ValueError for counts below 1 and seeds below 0."""

    seed: int = 0
    """Root of everything that is drawn for a task."""
    steps: int | None = None
    """Environment steps of a task, of all parallel environments together; None: the family's."""
    num: int | None = None
    """Tasks in all, the last of which goes on without end; None: the family's."""
    first: int = 0
    """Task that comes first; with num=1 a fresh agent learns one task of the stream by itself."""

    def __post_init__(self) -> None:
        for what, value, least in (
            ("the length of a task", self.steps, 1), ("the number of tasks", self.num, 1),
            ("the first task of a stream", self.first, 0), ("the seed of a stream", self.seed, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"{what} is at least {least}, got {value}")

    def filled(self, usual: TaskPlan) -> TaskPlan:
        """Return the same with what is None as in `usual`."""
        return replace(self, steps=self.steps or usual.steps, num=self.num or usual.num)

    def shared(self, num_envs: int) -> TaskPlan:
        """Return the plan of one of `num_envs` environments, which share the steps; rounded up."""
        assert self.steps is not None
        return replace(self, steps=-(-self.steps // num_envs))

    def generator(self, kind: str, task: int) -> np.random.Generator:
        """Return the generator of what is drawn for one task of one kind of stream."""
        return np.random.default_rng([self.seed, zlib.crc32(kind.encode()), task])


class Stream(gymnasium.Wrapper):
    """Wrap one environment, and let it play one task after another; subclasses say how tasks differ.

    Args: `plan`, filled, of this environment alone; `cut`, steps after which the running episode is truncated, counted
    from the start of the stream (an agent that learns from whole episodes may want that); None for never.
    """

    def __init__(self, env: gymnasium.Env, plan: TaskPlan, cut: int | None = None) -> None:
        super().__init__(env)
        assert plan.steps is not None
        assert plan.num is not None
        self.plan, self.task_steps, self.num_tasks, self.cut = plan, plan.steps, plan.num, cut
        self.steps = 0
        self.task = plan.first
        """Task of the next action; it moves on in a reset."""
        self.chosen: int | None = None
        self.begin(self.task)

    def begin(self, task: int) -> None:
        """Change the environment to what it is in `task`; called before the reset that begins it, maybe repeatedly."""
        raise NotImplementedError

    def set_task(self, task: int) -> None:
        """Play one task only, from the next reset on, without end."""
        self.chosen = task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode of the present task."""
        done = min(self.steps // self.task_steps, self.num_tasks - 1)
        self.task = self.plan.first + done if self.chosen is None else self.chosen
        self.begin(self.task)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Count the step; truncate the episode at the last one of a task."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.chosen is None and self._ends():
            truncated = True
        return obs, reward, terminated, truncated, info

    def _ends(self) -> bool:
        ends = self.steps % self.task_steps == 0 and self.steps // self.task_steps < self.num_tasks
        return ends or (self.cut is not None and self.steps % self.cut == 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps so far, the present task, and the task that was set."""
        return {"steps": self.steps, "task": self.task, "chosen": self.chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.steps, self.task, self.chosen = state["steps"], state["task"], state["chosen"]
        self.begin(self.task)
