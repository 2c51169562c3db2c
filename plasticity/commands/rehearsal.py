"""A copy of an agent that takes its own updates on recorded batches: for the RL-adaptation probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from plasticity.diagnosis.trainee import Trainee

from .patients import copy_of, step_of


class AgentCopy:
    """A copy of an agent, to be trained on these inputs of its gradient steps and thrown away."""

    def __init__(self, agent: Any, inputs: list[Any], name: str = "actor") -> None:
        self.agent = copy_of(agent)
        self.trainee = Trainee(self.agent.networks[name], self.agent.optimizers[step_of(self.agent, name)])
        self.inputs = inputs

    def update(self, number: int) -> None:
        """Take the update on the batch of this number; a clipped policy gradient is that of the present policy."""
        batch = self.inputs[number % len(self.inputs)][0]
        if hasattr(batch, "log_prob"):
            log_prob = self.trainee.model(batch.obs).log_prob(batch.action).detach()
            batch = replace(batch, log_prob=log_prob)
        self.agent.learn(batch)
        self.agent.updates += 1


def copies_of(agent: Any, inputs: list[Any]) -> Callable[[], AgentCopy]:
    """Return what makes copies of an agent."""
    return lambda: AgentCopy(agent, inputs)
