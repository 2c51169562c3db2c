"""The networks of a saved agent as patients: with data, the loss of their gradient step, and fresh draws of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from plasticity.diagnosis.fresh import from_origin
from plasticity.diagnosis.trainee import Patient, Surroundings
from plasticity.diagnosis.trials import BANDIT, OWN, RESIDUAL
from plasticity.structure.optimizers import all_parameters
from plasticity.surgery.origin import Origins

from .run import UPDATE_WITHIN, require_update

POLICY_OUTPUTS = {"CategoricalPolicy": "softmax", "Actor": "tanh_gaussian", "DeterministicActor": "bounded"}
"""Class of a policy -> how its outputs are read; the spread of a GaussianPolicy does not depend on its weights."""


class Recorder:
    """Takes the place of a gradient step: keeps its inputs, returns its metrics, and trains nothing."""

    def __init__(self, step: Any) -> None:
        self.step = step
        self.inputs: list[Any] = []

    def __call__(self, *inputs: Any, updates: int) -> Mapping[str, Tensor]:
        """Return the metrics of the loss on these inputs."""
        from plasticity.agents.inputs import gathered

        inputs = tuple(map(gathered, inputs))  # at once: what they are rows of is overwritten
        self.inputs.append(inputs)
        _, metrics = self.step.loss(*inputs)
        return {name: value.detach() for name, value in metrics.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


def record_inputs(agent: Any, env: Any, num: int) -> dict[str, list[Any]]:
    """Return optimizer -> the inputs of ``num`` gradient steps that the agent would take; its networks stay.

    Transitions come from its memory, or from acting in ``env`` where that does not suffice. The agent is one of the
    caller's own: its counters and generators move on. Raises RuntimeError for an agent that makes no update.
    """
    from plasticity.agents.train import context, train

    steps, start = agent.steps, agent.updates
    recorders = {name: Recorder(step) for name, step in steps.items()}
    targets = {name: {k: v.clone() for k, v in t.state_dict().items()} for name, t in agent.targets.items()}
    agent.steps = recorders

    def enough() -> bool:
        return all(len(recorder.inputs) >= num for recorder in recorders.values()) or agent.updates - start >= 20 * num

    try:
        ready = getattr(agent, "buffer", None) is not None and len(agent.buffer) > agent.config.learning_starts
        while ready and not enough():
            agent.update()
        if not enough():
            ctx = train(env, agent, UPDATE_WITHIN, [], context(agent), stop=enough)
            require_update(agent, start, ctx.step)
    finally:
        agent.steps = steps
        for name, target in agent.targets.items():
            target.load_state_dict(targets[name])
    return {name: recorder.inputs[:num] for name, recorder in recorders.items() if recorder.inputs}


StepInputs = Mapping[str, list[Any]]
"""Optimizer -> the inputs of its gradient steps."""


def patients_of(
    agent: Any, origins: Origins, inputs: StepInputs, fresh_inputs: Callable[[], StepInputs] | None = None
) -> list[Patient]:
    """Return a patient for every network that a gradient step trains.

    The loss is that of the step with everything else as it is in the saved agent: the targets of a value do not move,
    and a policy is judged by the saved critics. A clipped policy gradient is of the policy that acts, at any weights.
    ``fresh_inputs()``: inputs of transitions that the agent has just made, where ``inputs`` are of its memory.
    """
    patients = [_patient(agent, name, origins, inputs) for name in agent.networks if step_of(agent, name) in inputs]
    for patient in patients:
        patient.surroundings = _surroundings(agent, patient, fresh_inputs)
    return patients


def _surroundings(
    agent: Any, patient: Patient, fresh_inputs: Callable[[], StepInputs] | None
) -> dict[str, Surroundings]:
    step, found = step_of(agent, patient.name), {}
    if fresh_inputs is not None:
        found["replay"] = Surroundings(
            lambda: replace(patient, batches=fresh_inputs()[step]), lessons=(RESIDUAL, BANDIT, OWN)
        )
    if patient.name in agent.targets and patient.name != "actor":  # no actor's loss has targets in it
        found["target network"] = Surroundings(
            lambda: replace(patient, loss=partial(_loss, with_fresh_targets(agent), patient.name, step)), lessons=(OWN,)
        )
    return found


def copy_of(agent: Any) -> Any:
    """Return a copy of an agent, without its memory, whose steps are not compiled: it lives too short."""
    buffer = getattr(agent, "buffer", None)
    twin = copy.deepcopy(agent, {} if buffer is None else {id(buffer): buffer})  # which is not written to
    for step in twin.steps.values():
        step.compile, step.precision = "off", "float32"
    return twin


def with_fresh_targets(agent: Any) -> Any:
    """Return a copy of an agent whose target networks are its networks as they are now."""
    twin = copy_of(agent)
    for name, target in twin.targets.items():
        target.load_state_dict(twin.networks[name].state_dict())
    return twin


def _patient(agent: Any, name: str, origins: Origins, inputs: Mapping[str, list[Any]]) -> Patient:
    network, step = agent.networks[name], step_of(agent, name)
    forward: Callable[..., Tensor] = lambda module, batch: agent.forward[name](module, batch[0])  # noqa: E731
    on_policy = hasattr(inputs[step][0][0], "log_prob")
    policy = POLICY_OUTPUTS.get(type(network).__name__)
    return Patient(
        name,
        network,
        agent.optimizers[step],
        inputs[step],
        forward,
        from_origin(network, origins[name]),
        loss=partial(_loss, agent, name, step),
        judged=not (on_policy and name == "actor"),
        peek=lambda num, generator: (agent.peek(num, generator),),
        policy=policy,
    )


def step_of(agent: Any, network: str) -> str:
    """Return the name of the optimizer that trains a network, empty for none."""
    own = {id(p) for p in agent.networks[network].parameters()}
    held = {name: {id(p) for p in all_parameters(optimizer)} for name, optimizer in agent.optimizers.items()}
    return next((name for name in held if held[name] & own), "")


def _loss(agent: Any, name: str, step: str, module: nn.Module, inputs: tuple) -> Tensor:
    """Return the loss of a gradient step with ``module`` in the place of a network."""
    batch, *more = inputs
    if name == "actor" and hasattr(batch, "log_prob"):
        log_prob = module(batch.obs).log_prob(batch.action).detach()
        batch = replace(batch, log_prob=log_prob)
    with in_place_of(agent.networks, name, module):
        loss, _ = agent.steps[step].loss(batch, *more)
    return loss


@contextmanager
def in_place_of(networks: dict[str, nn.Module], name: str, module: nn.Module) -> Iterator[None]:
    """Within, a name stands for another network."""
    before, networks[name] = networks[name], module
    try:
        yield
    finally:
        networks[name] = before
