"""Returns of random actions: the lower end of a scale."""

from __future__ import annotations

import numpy as np
import torch

from plasticity.envs import TaskPlan, make_env

RANDOM_STEPS, ALL_STEPS = 4000, 40_000
"""Steps of random actions in a task, at most, and about how many in all tasks."""


def random_returns(
    env: str, seed: int, num_tasks: int, action_repeat: int | None = None, max_episode_steps: int | None = None
) -> list[float]:
    """Return the mean return of the episodes of random actions, one at least, in every task of a seed.

    ``action_repeat`` and ``max_episode_steps``: those of the environment; None for its own.
    """
    tasks, found = TaskPlan(seed, num=num_tasks), []
    for task in range(num_tasks):
        made = make_env(env, seed=seed, tasks=tasks, action_repeat=action_repeat, max_episode_steps=max_episode_steps)
        made.set_task(task)
        made.reset()
        total, returns = 0.0, list[float]()
        for number in range(RANDOM_STEPS):
            if returns and number >= ALL_STEPS / num_tasks:
                break
            step = made.step(torch.as_tensor(np.array([made.action_space.sample()])))
            total += float(step.reward)
            if bool(step.terminated) or bool(step.truncated):
                returns.append(total)
                total = 0.0
                made.reset(step.terminated | step.truncated)
        made.close()
        found.append(float(np.mean(returns or [total])))
    return found
