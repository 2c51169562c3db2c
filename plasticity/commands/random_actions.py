"""Returns of random actions: the lower end of a scale."""

from __future__ import annotations

import numpy as np
import torch

from plasticity.envs import TaskPlan, make_env

RANDOM_STEPS = 4000
"""Steps of random actions in every task."""


def random_returns(env: str, seed: int, num_tasks: int) -> list[float]:
    """Return the mean return of the episodes that end within RANDOM_STEPS random actions, of every task."""

    found = []
    for task in range(num_tasks):
        made = make_env(env, seed=seed, tasks=TaskPlan(seed, num=num_tasks))
        made.set_task(task)
        made.reset()
        total, returns = 0.0, []
        for _ in range(RANDOM_STEPS):
            step = made.step(torch.as_tensor(np.array([made.action_space.sample()])))
            total += float(step.reward)
            if bool(step.terminated) or bool(step.truncated):
                returns.append(total)
                total = 0.0
                made.reset(step.terminated | step.truncated)
        made.close()
        found.append(float(np.mean(returns or [total])))
    return found
