"""The protocols of agents and environments: any object with these attributes and methods trains in the loop."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Agent(Protocol):
    """Something that acts and learns.

    An agent may also have the following, which the loop lends to callbacks: ``targets``, network name -> slowly
    following copy; ``buffer``, a replay memory with ``state_dict`` and ``load_state_dict``, which checkpoints keep;
    ``value(obs, action)``, ``state_value(obs)`` and ``td_error(transition)``, each (batch,) without gradients;
    ``discount``, of these values, and ``reward_factor()``, by which rewards are scaled first; ``set_noise(scale)``;
    ``set_replay_ratio(ratio)``; ``set_horizon(n_step, gamma)``; ``set_exploitation(share)``; ``takes_arrays``, true
    where ``act`` takes numpy arrays too and returns one then; ``steps``, ``forward`` and ``peek`` as in
    :class:`plasticity.Context`.

    Updates must read networks and optimizers from the two dicts: callbacks put others in their place.
    """

    name: str
    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    updates: int
    """Updates so far."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        config: Any = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "agent",
        compile: str = "auto",
        precision: str = "float32",
    ) -> None:
        """Make the agent for the spaces of an environment; ``AGENTS[name] = (agent class, config class)`` registers it.

        ``config``: a frozen dataclass; its fields become options of ``plasticity train``. ``seed``: of all random
        numbers that the agent draws. ``compile``: auto, on or off, and ``precision``: float32 or bf16, of compiled
        updates; an agent that compiles nothing leaves both alone.
        """

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        """Return an action for every observation, (environments, ...); without ``explore``, draw no random number."""

    def observe(self, transition: Any) -> None:
        """Take in one step of every environment: ``obs``, ``action``, ``reward``, ``next_obs``, ``terminated``, ..."""

    def ready(self) -> bool:
        """Return whether an update is owed."""

    def update(self) -> dict[str, Tensor]:
        """Learn once; return metrics, 0-D tensors still on the device."""

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that going on needs, without the buffer: nested dicts of tensors and numbers."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""


class Env(Protocol):
    """A batch of environments that are reset only when told to."""

    name: str
    num_envs: int
    obs: Tensor
    """The present observations, from which a resumed loop goes on."""

    def reset(self, done: Tensor | None = None) -> Tensor:
        """Start new episodes, of all environments or of those marked in ``done``; return all observations."""

    def step(self, action: Tensor) -> Any:
        """Advance every environment; return a transition."""

    def close(self) -> None:
        """Release the resources of the environments."""
