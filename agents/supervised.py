"""Supervised learning: a network answers the examples that an environment shows, and learns the right answers.

An observation is an example, followed by the right answer to the one before (`envs/examples.py`). One update, on the
last `batch_size` examples, none of which was learned before:

    J = mean cross-entropy(f(x), y)     where an answer is one of a list
    J = mean (f(x) - y)^2               where it is a number
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .acting import Acting
from .bodies import make_body, widths
from .forward import of_obs
from .gradient import Compile
from .learner import Learner
from .networks import Predictor
from .optimizers import AgentConfig
from .products import Precision
from .rows import like, row_of, writable
from .seeding import drawn_on_the_cpu, split_seed
from .spaces import is_discrete, num_actions

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


@dataclass
class Examples:
    """Some examples; the first dimension of every field is the batch."""

    obs: Tensor  # the inputs, without an answer
    target: Tensor  # (batch,), the right answers


@dataclass(frozen=True)
class SupervisedConfig(AgentConfig):
    lr: float = 1e-3
    """Learning rate."""
    batch_size: int = 16
    """Examples per update."""
    memory_size: int = 2_048
    """Last examples, which meters and methods may look at; none is learned twice."""

    def rules(self) -> dict[str, bool]:
        return {**super().rules(), "1 <= batch_size <= memory_size": 1 <= self.batch_size <= self.memory_size}


class Supervised(Learner):
    """Supervised learning of the examples of an environment, each once.

    One pass over a stream, errors taken before learning: Dohare et al. 2024, doi 10.1038/s41586-024-07711-7.
    """

    COUNTERS: ClassVar[dict[str, str]] = {**Learner.COUNTERS, "waiting": "waiting"}

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: SupervisedConfig | None = None,
        *,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        seed: int = 0,
        name: str = "supervised",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        config = config or SupervisedConfig()
        how: dict[str, Any] = {"compile": compile, "precision": precision}
        super().__init__(observation_space, config, name=name, num_envs=num_envs, device=device, **how)
        if getattr(observation_space, "num_answers", None) != 1:
            raise ValueError(
                f"{name} needs an environment of examples, whose observations end with the right answer to the one "
                f"before, such as bitflip or permuted-digits; found observations {observation_space}"
            )
        if num_envs > config.memory_size:
            raise ValueError(f"{name}: memory_size {config.memory_size} must hold one example of each of {num_envs} "
                             "environments")  # fmt: skip
        self.obs_shape = (self.obs_shape[0] - 1,)
        self.classifies = is_discrete(action_space)
        num = num_actions(action_space, name) if self.classifies else 1
        (weights,) = split_seed(seed, 1)
        with drawn_on_the_cpu(weights):
            body = make_body(config, self.obs_shape, widths(config, "value", (100, 100, 100)))
            self.add_networks({"net": Predictor(body, num)})
        self.output = Acting(self.networks, "net")
        self.forward = {"net": of_obs}
        self.add_step("net", self.net_loss, ["net"], config.lr)
        rows = config.memory_size // num_envs * num_envs
        self.storage = {
            "obs": torch.zeros(rows, *self.obs_shape, device=device),
            "target": torch.zeros(rows, device=device),
        }
        self._rows = writable(self.storage)
        self.waiting = 0
        """Examples that were seen and not learned."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = writable(self.storage)  # a copy has memory of its own

    def act(self, obs: Any, explore: bool) -> Any:
        """Return answers: classes (N,) int64, or numbers (N, 1). Nothing is drawn."""
        del explore
        output = self.output(self.seen(obs)[:, :-1])
        return like(output.argmax(-1) if self.classifies else output, obs)

    def observe(self, transition: Any) -> None:
        """Keep the examples that were answered, with their right answers."""
        row = row_of(transition, self.device, self.obs_dtype, ("obs", "next_obs"))
        num, capacity = self.num_envs, len(self.storage["target"])
        place = self.env_steps % capacity
        self._rows["obs"][place : place + num] = row["obs"][:, :-1]
        self._rows["target"][place : place + num] = row["next_obs"][:, -1]
        self.env_steps += num
        self.waiting = min(self.waiting + num, capacity)

    def ready(self) -> bool:
        """Return whether there are enough examples for an update."""
        return self.waiting >= self.config.batch_size

    def update(self) -> dict[str, Tensor]:
        """Learn the oldest examples that wait, and return metrics."""
        first = self.env_steps - self.waiting
        metrics = self.learn(self._at(torch.arange(first, first + self.config.batch_size, device=self.device)))
        self.updates += 1
        self.waiting -= self.config.batch_size
        return metrics

    def learn(self, batch: Examples) -> dict[str, Tensor]:
        """Take the gradient step on these examples, and return metrics."""
        metrics = self.steps["net"](batch, updates=self.updates)
        self.check(metrics, "net_loss")
        return metrics

    def net_loss(self, batch: Examples) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of some examples, and metrics."""
        output = self.networks["net"](batch.obs)
        if self.classifies:
            loss = F.cross_entropy(output, batch.target.long())
        else:
            loss = F.mse_loss(output.squeeze(-1), batch.target)
        return loss, {"net_loss": loss}

    def peek(self, num: int, generator: torch.Generator) -> Examples:
        """Return some of the last examples, drawn evenly with replacement; ValueError before the first."""
        known = min(self.env_steps, len(self.storage["target"]))
        if known == 0:
            raise ValueError(f"{self.name}: nothing to look at yet: wait for the first step")
        return self._at(torch.randint(known, (num,), generator=generator, device=generator.device))

    def _at(self, index: Tensor) -> Examples:
        index = (index % len(self.storage["target"])).to(self.device)
        return Examples(**{name: values[index] for name, values in self.storage.items()})

    def own_state(self) -> dict[str, Any]:
        """Return the last examples."""
        return {"examples": self.storage}

    def load_own_state(self, state: Any) -> None:
        """Take the last examples back; those of another size are forgotten, and none waits then."""
        saved = state["examples"]
        if saved["obs"].shape != self.storage["obs"].shape:
            self.waiting = 0
            return
        for name, values in self.storage.items():
            values.copy_(saved[name])
