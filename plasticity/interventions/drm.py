"""DrM: perturb the networks, and explore, by how dormant the actor is.

Xu et al. 2023, *DrM: Mastering Visual Reinforcement Learning through Dormant Ratio Minimization*, arXiv 2310.19668;
code: github.com/XuGW-Kevin/DrM, `utils.py` and `agents/drm.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from plasticity.callback import Context
from plasticity.isolation import undisturbed
from plasticity.surgery.origin import fresh_values
from plasticity.value_types import require

from .shrink_perturb import shrink_perturb_
from .whole import WholeNetwork


def dormant_outputs(network: nn.Module, run: Callable[[], Any], threshold: float) -> float:
    """Return DrM's dormant ratio of a network that ``run()`` runs, in [0, 1].

    The share of the outputs of all Linear layers, before the activation and output layers included, whose mean |z| is
    below ``threshold`` times their layer's mean. It is not ReDo's: on one MLP it is 0.60 where ReDo's is 0.27.
    """
    counts: list[tuple[int, int]] = []

    def count(module: nn.Module, args: Any, z: Tensor) -> None:
        magnitude = z.detach().flatten(0, -2).abs().mean(0)
        counts.append((int((magnitude < threshold * magnitude.mean()).sum()), len(magnitude)))

    with undisturbed(network, owner=object()), torch.no_grad():
        handles = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Linear)]
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return sum(dormant for dormant, _ in counts) / max(1, sum(number for _, number in counts))


def exploration_scale(ratio: float, target: float, temperature: float) -> float:
    """Return the standard deviation of exploration, 1 / (1 + exp(-T (ratio - target)))."""
    return 1 / (1 + math.exp(-temperature * (ratio - target)))


def perturb_factor(ratio: float, rate: float, low: float, high: float) -> float:
    """Return the share of the old weights that stays, 1 - rate * ratio within [low, high]."""
    return min(max(1 - rate * ratio, low), high)


def exploitation_share(ratio: float, target: float, temperature: float, largest: float) -> float:
    """Return the share of the expectile value in targets, largest / (1 + exp(T (ratio - target)))."""
    return largest / (1 + math.exp(temperature * (ratio - target)))


@dataclass
class DormantMinimization(WholeNetwork):
    """Mix fresh weights in, and explore, by the actor's dormant ratio.

    The ratio b is measured on ``batch_size`` past observations, every ``measure_every`` updates and at each
    application. An application sets theta <- a theta + (1 - a) fresh, a = clip(1 - rate b, low, high), in every Linear
    layer, and the optimizer forgets them. With ``noise``, agents with exploration noise explore with 1 / (1 + exp(-T (b
    - target))): a standard deviation for TD3, the last epsilon for DQN. SAC and TD3 that learn an expectile of the
    value (``--value-expectile 0.9``) lean on it in their targets, with the share exploitation / (1 + exp(T_e (b -
    target))): the less dormant the actor, the more it exploits. The first measurement with b below the target (the
    paper's awakening) is an event, ``drm_awake``.

    ``paper``: every 100 000 environment steps (the paper's are frames), rate 2, a in [0.2, 0.9], the highest of which
    the paper sets by task (0.6 to 1). Convolutions stay, as in the code.
    Differences: there, the ratio is measured in every update, on its batch, and targets are perturbed with draws of
    their own. Compared with the released code (dormant ratios, the three schedules, ten steps of the expectile value):
    equal to the last bit.
    """

    NAME: ClassVar[str] = "drm"
    KIND: ClassVar[str] = "reset"
    NEEDS: ClassVar[tuple[str, ...]] = ("networks", "optimizers", "peek", "forward")
    STATE: ClassVar[tuple[str, ...]] = ("ratio", "awake")
    PRESETS: ClassVar = {"paper": {"every": 100_000, "clock": "env_steps", "clear": True, "sync_targets": False}}

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None."""
    threshold: float = 0.025
    """Share of the layer's mean below which an output is dormant."""
    target: float = 0.2
    """Dormant ratio at which exploration is halved."""
    temperature: float = 10.0
    """How sharply exploration depends on the ratio."""
    rate: float = 2.0
    """How fast old weights give way as the ratio grows."""
    low: float = 0.2
    """Smallest share of the old weights."""
    high: float = 0.9
    """Largest share of the old weights."""
    noise: bool = True
    """Let the ratio set the exploration noise of agents that have some."""
    exploitation: float = 0.6
    """Largest share of the expectile value in targets; 0 for none."""
    exploitation_temperature: float = 50.0
    """How sharply that share depends on the ratio (T_e)."""
    measure_every: int = 1000
    """Updates between two measurements."""
    batch_size: int = 256
    """Observations of a measurement."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "0 <= low <= high <= 1": 0 <= self.low <= self.high <= 1,
            "rate >= 0": self.rate >= 0,
            "exploitation in [0, 1]": 0 <= self.exploitation <= 1,
            "measure_every >= 1": self.measure_every >= 1,
            "batch_size >= 1": self.batch_size >= 1,
        }
        require("DormantMinimization", rules, self)
        self.ratio: float | None = None
        self.awake = False

    def prepare(self, ctx: Context) -> None:
        """Check that past observations can be looked at."""
        super().prepare(ctx)
        ctx.require("peek", type(self).__name__)
        ctx.require("forward", type(self).__name__)
        for part, used in {"set_noise": self.noise, "set_exploitation": self.exploitation}.items():
            if used and getattr(ctx, part) is not None:
                self.claim(ctx, part)
        self._measured = "actor" if "actor" in ctx.networks else next(iter(ctx.networks))

    def takes(self, name: str, parameter: Tensor, module: nn.Module) -> bool:
        """Take the weights and biases of Linear layers."""
        return isinstance(module, nn.Linear)

    def on_update_end(self, ctx: Context, metrics: dict[str, Any]) -> None:
        """Measure now and then, and set the exploration noise."""
        super().on_update_end(ctx, metrics)
        if self.ticks["updates"] % self.measure_every == 0:
            self.measure(ctx)

    def measure(self, ctx: Context) -> float:
        """Measure the dormant ratio, log it, and set the exploration noise; return the ratio."""
        assert ctx.peek is not None
        batch, network = ctx.peek(self.batch_size, self.generator), ctx.networks[self._measured]
        run = ctx.forward[self._measured]
        self.ratio = dormant_outputs(network, lambda: run(network, batch), self.threshold)
        self.log(ctx, {f"{self._measured}/dormant_outputs": self.ratio})
        if self.ratio < self.target and not self.awake:
            self.awake = True
            ctx.event("drm_awake", {"network": self._measured, "dormant_outputs": self.ratio})
        self._balance(ctx)
        return self.ratio

    def _balance(self, ctx: Context) -> None:
        """Set exploration and exploitation by the ratio."""
        if self.ratio is None:
            return
        if self.noise and ctx.set_noise is not None:
            ctx.set_noise(exploration_scale(self.ratio, self.target, self.temperature))
        if self.exploitation and ctx.set_exploitation is not None:
            sharpness = self.exploitation_temperature
            ctx.set_exploitation(exploitation_share(self.ratio, self.target, sharpness, self.exploitation))

    def apply(self, ctx: Context) -> None:
        """Measure, then perturb the networks."""
        self.measure(ctx)
        super().apply(ctx)

    def edit_(self, ctx: Context, network: str, parameters: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Mix fresh weights in."""
        factor = perturb_factor(self.ratio or 0.0, self.rate, self.low, self.high)
        module, origin = self._networks[network], self.origins[network]
        fresh = fresh_values(module, origin, self.generator, lambda name, _: name in parameters)
        shrink_perturb_(parameters, fresh, factor, 1 - factor)
        return {"factor": factor, "dormant_outputs": self.ratio}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the same exploration."""
        super().load_state_dict(state)
        self._balance(self._ctx)
