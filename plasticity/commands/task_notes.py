"""The note of a run that plays other steps than those of all tasks of its stream."""

from __future__ import annotations

from typing import Any

from plasticity.envs import TaskPlan, find_family


def notes_of_tasks(config: Any) -> list[str]:
    """Return a line where the steps of a run end before the tasks of its stream, or go on after them."""
    family = find_family(config.env)
    if family.stream is None:
        return []
    plan = TaskPlan(steps=config.task_steps, num=config.num_tasks).filled(family.tasks)
    tasks, least = plan.num or 1, plan.steps or 1
    of_task = config.num_envs * (plan.shared(config.num_envs).steps or 1)
    whole, begun = of_task * tasks, min(tasks, -(-config.steps // of_task))
    all_steps = f"all {tasks} of {of_task:,} steps: --steps {whole:_}"
    if config.steps < least * tasks:
        return [f"note: {config.steps:,} steps begin {begun} of the {tasks} tasks of {config.env}; {all_steps}"]
    if config.steps > whole:
        return [f"note: the last task of {config.env} goes on from step {whole:,} to {config.steps:,}; {all_steps}"]
    return []
