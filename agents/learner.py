"""The parts that all agents share: networks, optimizers and gradient steps by name, counters, and state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import native
from .batch_norm import batch_norms
from .draws import Draws
from .gradient import COMPILE_AFTER, Compile, GradientStep
from .normalise import RunningNorm, running_norms
from .optimizers import load_optimizer_, without_dynamo
from .products import Precision
from .replay import Batch, restore_generator
from .rows import as_array
from .spaces import obs_dtype, obs_shape
from .updates import Finite

if TYPE_CHECKING:  # importing it takes long, and help needs none of it
    from gymnasium import spaces


class Learner:
    """Base of an agent.

    A subclass makes its networks with `add_network`, its optimizers with `add_step`, and calls `finish` last. It has
    `act`, `observe`, `ready`, `update` and `peek`; `docs/extending.md` shows one.
    """

    COUNTERS: ClassVar[dict[str, str]] = {"steps": "env_steps", "updates": "updates"}
    """Name in the saved state -> attribute: what changes in training apart from tensors."""

    MOVES_BATCH_NORMS: ClassVar[bool] = False
    """True if the updates move the running statistics of batch norms (`batch_norm.py`)."""

    forward: Mapping[str, Callable[[nn.Module, Any], Tensor]]
    """Network -> `(module, batch) -> output`, one tensor: how to run it, or a target or copy of it (`forward.py`)."""

    def __init__(
        self,
        observation_space: spaces.Space,
        config: Any,
        *,
        name: str,
        num_envs: int = 1,
        device: torch.device | str = "cpu",
        compile: Compile = "auto",
        precision: Precision = "float32",
    ) -> None:
        self.config, self.name, self.num_envs, self.device = config, name, num_envs, torch.device(device)
        self.takes_arrays = self.device.type == "cpu"
        """True if `act` takes arrays too, of the agent's dtype, and returns one then."""
        self.obs_shape, self.obs_dtype = obs_shape(observation_space, name), obs_dtype(observation_space)
        self.env_steps = 0
        """Environment steps observed."""
        self.updates = 0
        self.finite = Finite(name)
        self.generators: dict[str, torch.Generator] = {}
        self.draws: Draws | None = None
        """Random numbers by which the agent explores."""
        self.networks: dict[str, nn.Module] = {}
        self.targets: dict[str, nn.Module] = {}
        """Network -> its slowly following copy, where it has one."""
        self.optimizers: dict[str, Optimizer] = {}
        self.steps: dict[str, GradientStep] = {}
        """Optimizer -> the gradient step that uses it."""
        self.norms: list[RunningNorm] = []
        """Running norms inside the networks and targets."""
        self._numbers: dict[str, tuple[float, Tensor]] = {}
        self._how: dict[str, Any] = {"compile": compile, "precision": precision}

    @property
    def discount(self) -> float | None:
        """The discount of the values that are learned, per step; None where no setting says it."""
        return getattr(self.config, "gamma", None)

    def add_generator(self, name: str, seed: int) -> None:
        """Add a generator on the agent's device."""
        self.generators[name] = torch.Generator(self.device).manual_seed(seed)

    def add_draws(self, draw: Callable[..., Tensor], shape: Iterable[int], seed: int) -> None:
        """Add the generator "act", and the numbers (num_envs, *shape) that it gives in every step."""
        self.add_generator("act", seed)
        self.draws = Draws(draw, (self.num_envs, *shape), self.generators["act"])

    def compiles(self) -> bool:
        """Return whether single steps are computed by compiled code; counted, so that a resumed run decides alike."""
        how = self._how["compile"]
        pays = how == "on" or (how == "auto" and self.updates >= COMPILE_AFTER)
        return pays and self.takes_arrays and native.available()

    def seen(self, obs: Any) -> Any:
        """Return observations in the agent's dtype: an array where the agent is on the CPU, else a tensor there."""
        return obs if isinstance(obs, np.ndarray) else as_array(obs.to(self.device, self.obs_dtype))

    def add_networks(self, networks: Mapping[str, nn.Module], targets: Iterable[str] = ()) -> None:
        """Add networks, moved to the agent's device, and frozen copies of those named in `targets`."""
        if not self.MOVES_BATCH_NORMS and batch_norms(networks.values()):
            raise ValueError(
                f"{self.name}: crossq has batch norms, whose statistics sac and td3 move in their joint pass; "
                "choose another network"
            )
        self.networks |= {name: network.to(self.device) for name, network in networks.items()}
        self.targets |= {name: copy.deepcopy(self.networks[name]).requires_grad_(False) for name in targets}
        self.norms = running_norms([*self.networks.values(), *self.targets.values()])

    def add_step(
        self,
        name: str,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        trains: Iterable[str],
        lr: float,
        *,
        targets: bool = False,
        max_norm: float | None = None,
        **defaults: Any,
    ) -> None:
        """Add an optimizer of the networks in `trains` and the step that it takes on `loss(batch, *more)`.

        `targets`: whether the loss reads those too. `defaults`: the agent's own settings of the optimizer, such as eps.
        """
        parameters = [p for network in trains for p in self.networks[network].parameters()]
        self.optimizers[name] = self.config.make_optimizer(parameters, lr, **defaults)
        reads = [self.networks, self.targets] if targets else [self.networks]
        self.steps[name] = GradientStep(loss, reads, self.optimizers, name, max_norm=max_norm, **self._how)

    def number(self, name: str, value: float) -> Tensor:
        """Return a setting that changes seldom as a metric, 0-D on the agent's device."""
        known = self._numbers.get(name)
        if known is None or known[0] != value:
            known = self._numbers[name] = value, torch.full((), value, device=self.device)
        return known[1]

    def check(self, metrics: Mapping[str, Tensor], *losses: str) -> None:
        """Raise FloatingPointError if a loss or a term is not finite; on a device perhaps some updates later."""
        terms = [name for step in self.steps.values() if step.terms for name in step.terms if name in metrics]
        self.finite.check({name: metrics[name] for name in (*losses, *terms)}, self.updates + 1)

    def peek(self, num: int, generator: torch.Generator) -> Batch:
        """Return `num` past transitions, drawn evenly with replacement; nothing that is learned changes."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that is needed to act and to go on, except a replay memory (`buffer.state_dict()`).

        Raises FloatingPointError where a loss was not finite: such a state must not replace a good one.
        """
        self.finite.verify()
        with without_dynamo():
            optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return copy.deepcopy(
            {
                "networks": {name: dict(network.state_dict()) for name, network in self.networks.items()},
                "targets": {name: dict(target.state_dict()) for name, target in self.targets.items()},
                "optimizers": optimizers,
                "optimizer_kinds": {name: type(optimizer).__name__ for name, optimizer in self.optimizers.items()},
                "generators": {name: generator.get_state() for name, generator in self.generators.items()},
                "draws": {} if self.draws is None else self.draws.state_dict(),
                "counters": {name: getattr(self, attribute) for name, attribute in self.COUNTERS.items()},
                **self.own_state(),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; learning rates come from the saved optimizers.

        Raises ValueError, with nothing changed, for an optimizer of another kind than was saved.
        """
        for name, optimizer in self.optimizers.items():
            saved, here = state["optimizer_kinds"].get(name), type(optimizer).__name__
            if saved != here:
                raise ValueError(
                    f"{self.name}: its optimizer {name} was saved as {saved}, and is {here} now; a callback that "
                    f"replaces an optimizer must do so in restructure, and be given again when the run goes on"
                )
        for kind, modules in (("networks", self.networks), ("targets", self.targets)):
            for name, module in modules.items():
                module.load_state_dict(state[kind][name])
        for name, optimizer in self.optimizers.items():
            load_optimizer_(optimizer, state["optimizers"][name])
        for name, generator in self.generators.items():
            restore_generator(generator, state["generators"][name])
        if self.draws is not None and state.get("draws"):  # version 0.1.0 drew anew in every step
            self.draws.load_state_dict(state["draws"])
        for name, attribute in self.COUNTERS.items():
            setattr(self, attribute, state["counters"][name])
        self.load_own_state(state)
        self.settle()

    def settle(self) -> None:
        """Put weights where updates put them: kernels may round by where a weight lies in memory.

        Without it, what a resumed run does before its first update, and its first one, could differ in the last bits.
        """
        for step in self.steps.values():
            step.settle()

    def own_state(self) -> dict[str, Any]:
        """Return what a subclass adds to the state; it need not be a copy."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `own_state` returned, from the whole state."""
