"""Parts that the updates of several agents have in common."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import adam
from .flat import Flat, runs
from .layout import Held
from .native import places_of
from .replay import Batch

# Updates on a device between two looks at whether the losses are finite: each waits for all that was launched.
CHECK_EVERY = 100


def gradient_step(optimizer: Optimizer, loss: Tensor, max_norm: float | None = None) -> Tensor | None:
    """Take one step of `optimizer`, whose parameters alone receive gradients.

    With `max_norm`, a gradient that is longer in all is shortened to it, and its norm before that is returned.

    An actor's loss passes through critics. `backward(inputs=...)` leaves their `.grad` as it was and skips the cost of
    their weight gradients, like freezing them with requires_grad_(False), but without touching any flag: a hook on a
    critic sees the same kind of graph in both passes, parameters that a user froze stay frozen, and nothing is left
    switched off after an exception. autograd.grad would skip the hooks of `.grad`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None  # as zero_grad() does, which imports a compiler
    loss.backward(inputs=parameters)
    norm = None if max_norm is None else nn.utils.clip_grad_norm_(parameters, max_norm)
    adam.step(optimizer, parameters)
    return norm


class Finite:
    """Stops a run whose losses are not finite: at once on a CPU; on a device, which would have to be waited for, the
    losses are summed up there and looked at every `CHECK_EVERY` updates, and before a state is saved."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._sums: dict[str, Tensor] = {}
        self._update = 0

    def check(self, losses: Mapping[str, Tensor], update: int) -> None:
        """Take in the losses of an update; FloatingPointError names agent, loss and update."""
        self._update = update
        if next(iter(losses.values())).device.type == "cpu":
            if not math.isfinite(sum([loss.item() for loss in losses.values()])):
                self._sums = dict(losses)
                self.verify()
            return
        self._sums = {k: self._sums[k] + v if k in self._sums else v for k, v in losses.items()}
        if update % CHECK_EVERY == 0:
            self.verify()

    def verify(self) -> None:
        """Raise FloatingPointError unless all losses so far were finite: one host synchronisation."""
        if self._sums and not math.isfinite(sum(self._sums.values()).item()):  # type: ignore[union-attr]
            found = {key: value.item() for key, value in self._sums.items() if not value.isfinite()}
            where = "" if next(iter(self._sums.values())).device.type == "cpu" else " or shortly before"
            raise FloatingPointError(
                f"{self.name}: {next(iter(found))} is not finite at update {self._update}{where}: {found}. The "
                "parameters are already affected: go back to a checkpoint, and look at rewards, observations, "
                "learning rates and terms that were added to the loss."
            )
        self._sums = {}


class Followers:
    """The targets that move towards their networks, as vectors where steps have made vectors of the networks."""

    def __init__(self, networks: Mapping[str, nn.Module], targets: Mapping[str, nn.Module]) -> None:
        self.networks, self.targets = networks, targets
        self._held: Held | None = None

    @torch.no_grad()
    def move(self, tau: float) -> None:
        """target += tau * (network - target), every parameter, in place."""
        self.settle()
        torch._foreach_lerp_(self._to, self._from, tau)

    def settle(self) -> None:
        """Make vectors of the targets, where that is not done or one of them was given other memory."""
        modules = [*self.targets.values(), *(self.networks[name] for name in self.targets)]
        if self._held is None or not self._held.holds(modules) or places_of(self._parameters) != self._places:
            self._find(modules)

    def _find(self, modules: list[nn.Module]) -> None:
        self._held, half = Held(modules), len(self.targets)
        to, source = ([p for module in part for p in module.parameters()] for part in (modules[:half], modules[half:]))
        try:
            self._from, vector = runs(source), Flat(to).weights
            self._to = list(vector.split([*map(Tensor.numel, self._from)]))
        except ValueError:  # of several types, or not contiguous
            self._from, self._to = source, to
        self._parameters = [*to, *source]
        self._places = places_of(self._parameters)

    def __getstate__(self) -> dict[str, Any]:
        return {"networks": self.networks, "targets": self.targets, "_held": None}  # a copy has others


def as_batch(transition: Any, device: torch.device, obs_dtype: torch.dtype) -> Batch:
    """Return the steps just taken as a batch that a loss can judge, on `device`; its age and index mean nothing."""
    names = ("obs", "action", "reward", "next_obs", "terminated")
    obs, action, reward, next_obs, terminated = (getattr(transition, key).to(device) for key in names)
    return Batch(obs.to(obs_dtype), action, reward, next_obs.to(obs_dtype), terminated, age=reward, index=reward)
