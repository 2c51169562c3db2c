"""An agent written to the protocol alone: online Q-learning without a memory, which imports nothing of the package."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OnlineQConfig:
    width: int = 8
    """Neurons of the hidden layer."""
    lr: float = 0.01
    """Learning rate."""
    epsilon: float = 0.2
    """Probability of a random action."""


class OnlineQ:
    """One update per step of the environments, on that step."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        config: OnlineQConfig | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "online_q",
        compile: str = "auto",
        precision: str = "float32",
    ) -> None:
        self.config, self.name, self.num_actions = config or OnlineQConfig(), name, int(action_space.n)
        self.generator, width = torch.Generator().manual_seed(seed), self.config.width
        net = nn.Sequential(nn.Linear(observation_space.shape[0], width), nn.ReLU(), nn.Linear(width, self.num_actions))
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5, generator=self.generator)
        self.networks: dict[str, nn.Module] = {"q": net.to(device)}
        self.optimizers = {"q": torch.optim.Adam(net.parameters(), self.config.lr)}
        self.updates = 0
        self.seen: Any = None

    def act(self, obs: Tensor, explore: bool) -> Tensor:
        with torch.no_grad():
            best = self.networks["q"](obs).argmax(1)
        if not explore:
            return best
        lucky = torch.rand(len(best), generator=self.generator) < self.config.epsilon
        return torch.where(lucky, torch.randint(self.num_actions, best.shape, generator=self.generator), best)

    def observe(self, transition: Any) -> None:
        self.seen = transition

    def ready(self) -> bool:
        return self.seen is not None

    def update(self) -> dict[str, Tensor]:
        step, q = self.seen, self.networks["q"]
        with torch.no_grad():
            target = step.reward + 0.9 * ~step.terminated * q(step.next_obs).amax(1)
        loss = (q(step.obs).gather(1, step.action.long()[:, None])[:, 0] - target).square().mean()
        self.optimizers["q"].zero_grad()
        loss.backward()
        self.optimizers["q"].step()
        self.updates, self.seen = self.updates + 1, None
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        parts = {"network": self.networks["q"].state_dict(), "optimizer": self.optimizers["q"].state_dict()}
        return copy.deepcopy({**parts, "generator": self.generator.get_state(), "updates": self.updates})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks["q"].load_state_dict(state["network"])
        self.optimizers["q"].load_state_dict(copy.deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
