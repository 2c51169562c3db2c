"""Reset: start networks, or their last layers, anew and keep the replay buffer.

Nikishin et al. 2022, *The Primacy Bias in Deep Reinforcement Learning*, arXiv 2205.07802.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from plasticity.callback import Context
from plasticity.isolation import named_modules, named_parameters, unwrap
from plasticity.structure.layers import NORM_MODULES
from plasticity.structure.optimizers import all_parameters
from plasticity.structure.wirings import Wiring
from plasticity.surgery.derived import renew_derived_
from plasticity.surgery.optimizer_state import forget_
from plasticity.surgery.origin import Moved, Origin, Origins, fresh_values

from .anchors import Anchors
from .intervention import numbers_in
from .scheduled import Scheduled


def depths(wired: Wiring) -> dict[str, int]:
    """Return layer -> its distance from the output in weight layers: 1 for output layers, parallel heads alike.

    The longest way counts. A layer whose neurons could not be followed lies behind all that are called after it.
    """
    found: dict[str, int] = {}
    for layer in reversed([layer for layer in wired.layers.values() if layer.num_calls]):
        behind = [found[consumer.layer] for consumer in layer.consumers if consumer.layer in found]
        lost = list(found.values()) if layer.unresolved and not layer.is_output else []
        found[layer.name] = 1 + max(behind + lost, default=0)
    return found


def last_layers(wired: Wiring, num: int) -> set[str]:
    """Return the modules (weight layers, and the norms their neurons pass) of the last ``num`` weight layers."""
    chosen = [wired.layers[name] for name, depth in depths(wired).items() if depth <= num]
    return {layer.name for layer in chosen} | {norm.module for layer in chosen for norm in layer.norms}


@torch.no_grad()
def reset_(
    network: nn.Module,
    origin: Origin,
    optimizers: Iterable[Optimizer],
    generator: torch.Generator,
    modules: set[str] | None = None,
) -> list[str]:
    """Redraw the trainable parameters of a network in place; return the names of all parameters that changed.

    ``modules``: those whose own parameters to redraw; None for all. Their optimizer state is dropped with its step
    count, as a new optimizer would have none, and so is ``.grad``, which belongs to the old weights. Running statistics
    of norms start anew, and spectral norm's vectors are those of the new weights. Frozen parameters stay, but those of
    a plasticity injection are cancelled.
    """
    fresh = fresh_values(network, origin, generator, lambda name, _: modules is None or _owner(name) in modules)
    parameters = named_parameters(network)
    for name, value in fresh.items():
        parameters[name].copy_(value)
        forget_(optimizers, parameters[name])
    changed = list(fresh)
    for path, module in named_modules(network).items():
        if (modules is None or path in modules) and isinstance(module, NORM_MODULES):
            restart_norm_(module)
        if isinstance(module, Moved) and any(name.startswith(f"{path}.") for name in fresh):
            module.cancel_()
            changed += [name for name in parameters if name.startswith(f"{path}.") and name not in fresh]
    renew_derived_(network, modules)
    return changed


def restart_norm_(norm: nn.Module) -> None:
    """Let a norm that keeps running statistics start them anew."""
    if hasattr(norm, "reset_running_stats"):
        norm.reset_running_stats()  # type: ignore[operator]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


@torch.no_grad()
def copy_to_target_(target: nn.Module, network: nn.Module, names: Iterable[str] | None = None) -> None:
    """Copy parameters to the target network: those of these names, or all of them and all buffers."""
    target, network = unwrap(target), unwrap(network)
    if names is None:
        target.load_state_dict(network.state_dict())
        return
    source, sink = named_parameters(network), named_parameters(target)
    for name in names:
        sink[name].copy_(source[name])
    renew_derived_(target)


@dataclass
class Reset(Scheduled):
    """Redraw networks, or their last layers, and keep the replay.

    Weights come from the layers' own initialisers; targets and optimizers follow.

    ``sac``: everything, every 200 000 environment steps. ``drq``: the last four weight layers (all behind the encoder)
    and the temperature, every 25 000 agent steps (50 000 to 100 000 frames). ``spr``: the output layers, four times
    from 20 000 on. ``bro``: everything, at the steps of Nauman et al. 2024 for replay ratio 10.
    Fresh weights are the paper's; ``to`` goes back to others, and the optimizer forgets in any case.
    Learning catches up from the replay buffer, so resets pay off at high replay ratios and hurt at low ones.
    """

    NAME: ClassVar[str] = "reset"
    KIND: ClassVar[str] = "reset"
    PRESETS: ClassVar = {
        "sac": {"every": 200_000, "clock": "env_steps", "temperature": True},
        "drq": {"every": 25_000, "clock": "env_steps", "layers": 4, "temperature": True},
        "spr": {"every": 20_000, "stop": 80_000, "clock": "env_steps", "layers": 1, "temperature": False},
        "bro": {
            "at": (15_001, 50_001, 250_001, 500_001, 750_001, 1_000_001, 1_500_001, 2_000_001),
            "clock": "env_steps",
            "temperature": True,
        },
    }

    preset: Literal["sac", "drq", "spr", "bro"] = "sac"
    """Defaults of the options that are None: those of the paper's agents, or of BRO."""
    layers: int | None = None
    """Number of weight layers to reset, counted from the output; None: all, or as the preset says."""
    temperature: bool | None = None
    """Let parameters that an optimizer trains and no network holds, such as SAC's temperature, go back to their
    first values too; only where networks is empty. None: as the preset says."""
    targets: bool = True
    """Copy what was reset to target networks."""
    to: str = "fresh"
    """Goal of the reset: fresh (a draw), initial (the very first weights), average (a running average of the weights),
    or the folder of a checkpoint of the same agent."""
    momentum: float = 0.999
    """Share of the running average that stays in a gradient step, in [0, 1]; with to average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"Reset: layers is a number of weight layers, at least 1; got {self.layers}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"Reset: momentum is in [0, 1]; got {self.momentum}")
        self.goal = Anchors()
        self.origins = Origins()
        self._loose: dict[str, Tensor] = {}

    def prepare(self, ctx: Context) -> None:
        """Find the weights to go back to; ValueError for a folder that holds none."""
        self.goal = Anchors()
        if self.to in ("initial", "average"):
            self.goal = Anchors.at(self._networks)
        elif self.to != "fresh":
            self.goal = Anchors.saved(Path(self.to), self._networks)
        for optimizer in {id(o): o for o in ctx.optimizers.values()}.values() if self.to == "average" else ():
            self.hook(optimizer.register_step_post_hook(self.named(self._average)))

    def _average(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Move the running average of what an optimizer has just moved."""
        own = set(map(id, all_parameters(optimizer)))
        for name, network in self._networks.items():
            moved = {n: p for n, p in named_parameters(network).items() if id(p) in own}
            self.goal.follow_(name, moved, 1 - self.momentum)

    def parameters_added(self) -> int:
        """Return how many weights are kept to go back to."""
        return numbers_in(self.goal)

    def on_train_start(self, ctx: Context) -> None:
        """Remember how everything began; ValueError for targets that do not match or tensors of unknown networks."""
        super().on_train_start(ctx)
        self.origins = Origins.of(self._networks)
        for name, network in self._networks.items():
            if self.targets and name in ctx.targets:
                require_alike(name, network, ctx.targets[name])
        if self.temperature and not self.networks:
            self._loose = {name: p.detach().clone() for name, p in loose_parameters(ctx).items()}

    def apply(self, ctx: Context) -> None:
        """Reset the networks."""
        changed: dict[str, list[str]] = {}
        details: dict[str, Any] = {}
        for name, network in self._networks.items():
            change = partial(self._reset, ctx, name, network)
            changed[name], moved = self.alter(ctx, name, change)
            layers = list(dict.fromkeys(map(_owner, changed[name])))
            details[name] = {"layers": layers, "function_change": moved}
        for name in changed if self.targets else ():  # after all: networks may share layers
            if name in ctx.targets:
                copy_to_target_(ctx.targets[name], self._networks[name], changed[name] if self.layers else None)
        self._reset_loose(ctx)
        num = sum(map(len, changed.values()))
        details = {**self.occasion(), "networks": details, "loose": list(self._loose)}
        self.report(ctx, details, applications=1, tensors=num)

    def _reset(self, ctx: Context, name: str, network: nn.Module) -> list[str]:
        modules = self._modules(name, network)
        changed = reset_(network, self.origins[name], ctx.optimizers.values(), self.generator, modules)
        parameters = named_parameters(network)
        with torch.no_grad():
            for key in (key for key in changed if self.goal.fits(name, key, parameters[key])):
                parameters[key].copy_(self.goal[name][key])
        if self.goal:
            renew_derived_(network, modules)
        ctx.redrawn({parameters[key]: torch.ones_like(parameters[key], dtype=torch.bool) for key in changed})
        return changed

    def _modules(self, name: str, network: nn.Module) -> set[str] | None:
        return None if self.layers is None else modules_of_last(self, name, network, self.layers)

    def _reset_loose(self, ctx: Context) -> None:
        for name, parameter in loose_parameters(ctx).items() if self._loose else ():
            with torch.no_grad():
                parameter.copy_(self._loose[name])
            forget_(ctx.optimizers.values(), parameter)

    def state_dict(self) -> dict[str, Any]:
        """Return clocks, generator, and how the parameters began."""
        return {
            **super().state_dict(),
            "origins": self.origins.state_dict(),
            "loose": dict(self._loose),
            "goal": self.goal.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        super().load_state_dict(state)
        self.origins.load_state_dict(state["origins"])
        self._loose = dict(state["loose"])
        self.goal.load_state_dict(state.get("goal", {}), self._networks)


def modules_of_last(method: Scheduled, name: str, network: nn.Module, layers: int) -> set[str]:
    """Return the modules of the last weight layers of a network, as its first training pass showed their order.

    Empty before the first gradient step: there is nothing to reset yet. Raises ValueError where no pass was seen since.
    """
    inputs = method.inputs(name)
    if inputs is None and not method.ticks["gradient_steps"]:
        return set()
    if inputs is None:
        raise ValueError(
            f"{type(method).__name__}(layers={layers}) must know the order of the layers of {name}, and no training "
            f"pass of it was seen: call the network itself, not a compiled wrapper, or pass layers=None"
        )
    return last_layers(method.first_wiring(name), layers)


def loose_parameters(ctx: Context) -> dict[str, Tensor]:
    """Return the parameters that an optimizer trains and no network holds, such as SAC's temperature, by place.

    Raises ValueError for one with two dimensions or more: that is a layer of a network that was not passed.
    """
    held = {id(p) for network in (*ctx.networks.values(), *ctx.extras.values()) for p in network.parameters()}
    found = {}
    for name, optimizer in ctx.optimizers.items():
        for place, parameter in enumerate(all_parameters(optimizer)):
            if id(parameter) in held:
                continue
            if parameter.dim() > 1:
                raise ValueError(
                    f"Reset: optimizer {name} trains a parameter of shape {tuple(parameter.shape)} that is in none of "
                    f"the networks {', '.join(ctx.networks)}; pass its network too, or temperature=False"
                )
            found[f"{name}.{place}"] = parameter
    return found


def require_alike(name: str, network: nn.Module, target: nn.Module) -> None:
    """Raise ValueError unless the target has the parameters of the network."""
    ours = {n: tuple(p.shape) for n, p in named_parameters(network).items()}
    theirs = {n: tuple(p.shape) for n, p in named_parameters(unwrap(target)).items()}
    if ours != theirs:
        differing = sorted(set(ours.items()) ^ set(theirs.items()))
        raise ValueError(f"the target of {name} is no copy of it; they differ in {differing[:4]}; pass targets=False")
