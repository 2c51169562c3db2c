"""Sample Weight Decay: replay recent transitions more often (Wu et al. 2026, ICLR, arXiv 2604.01913).

A transition that was inserted ``age`` insertions ago is replayed with probability proportional to
``max(floor, 1 - age / horizon)``, without importance correction. Each weight below knows a closed form of its inverse
cumulative sum (our derivation), so a draw costs the same for a thousand transitions and for a million. The polynomial
has none and is drawn by the memory's exact rejection. All arithmetic is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from plasticity.callback import Context
from plasticity.value_types import require

from .intervention import Intervention


@dataclass(frozen=True)
class AgeWeight:
    """Weight of age: a head of ages 1..m with a shape, then a constant tail. T = ``horizon``, w = ``floor``.

    Called with ages (any shape, float64) it returns weights in [0, 1] of that shape.
    """

    horizon: float
    floor: float

    def __call__(self, age: Tensor) -> Tensor:
        """Return the weights of ``age``."""
        raise NotImplementedError


class _Sampled(AgeWeight):
    """An age weight whose head has a sum in closed form, and that sum an inverse."""

    def tail(self) -> float:
        """Return the weight of all ages beyond the head."""
        raise NotImplementedError

    def head(self) -> float:
        """Return m, the last age of the head."""
        raise NotImplementedError

    def mass(self, age: int) -> float:
        """Return S(a), the sum of the weights of ages 1..a, for a within the head."""
        raise NotImplementedError

    def invert(self, mass: Any) -> Any:
        """Return the real x at which the interpolated S reaches ``mass``, array or tensor; its ceiling is the age."""
        raise NotImplementedError

    def sample(self, num_rows: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return ages (batch_size,) int64 in 1..num_rows, with probability proportional to their weights.

        Uniform where all weights are 0. With u ~ U[0, M), M = S(m) + (num_rows - m) tail:
        age = ceil(S^-1(u)) if u < S(m), else m + 1 + floor((u - S(m)) / tail). Our derivation.
        """
        head = int(min(num_rows, self.head()))
        inside = self.mass(head) if head else 0.0
        total = inside + (num_rows - head) * self.tail()
        draw = torch.rand(batch_size, dtype=torch.float64, generator=generator, device=generator.device)
        if total <= 0:
            return (draw * num_rows).long().clamp_max(num_rows - 1) + 1
        # Of a few hundred numbers on the CPU, numpy takes half the time.
        age = self.find((draw.numpy() if draw.is_cpu else draw) * total, head, inside, num_rows)
        return torch.as_tensor(age, device=generator.device).long()

    def find(self, mass: Any, head: int, inside: float, num_rows: int) -> Any:
        """Return the ages, as floats, at which the sum of the weights reaches ``mass``, an array or a tensor."""
        tail, xp = self.tail(), library(mass)
        age = within(xp.ceil(self.invert(within(mass, 0.0, inside))), 1, max(head, 1))
        if tail > 0 and num_rows > head:
            beyond = within(head + 1 + xp.floor((mass - inside) / tail), 1, num_rows)
            age = xp.where(mass < inside, age, beyond)
        return age


def library(values: Any) -> Any:
    """Return where the functions of an array or tensor are."""
    return torch if isinstance(values, Tensor) else np


def within(values: Any, low: float, high: float) -> Any:
    """Return an array or tensor with what is beyond the bounds moved to them."""
    return values.clamp(low, high) if isinstance(values, Tensor) else np.minimum(np.maximum(values, low), high)


class Linear(_Sampled):
    """max(w, 1 - age/T), the paper's: falls to w at age T(1 - w)."""

    def tail(self) -> float:
        """Return the floor."""
        return self.floor

    def __call__(self, age: Tensor) -> Tensor:
        """Return the weights of ``age``."""
        return (1 - age / self.horizon).clamp_min(self.floor)

    def head(self) -> float:
        """Return the last age above the floor."""
        return math.floor(self.horizon * (1 - self.floor))

    def mass(self, age: int) -> float:
        """Return S(a) = a - a(a + 1) / (2T)."""
        return age - age * (age + 1) / (2 * self.horizon)

    def invert(self, mass: Any) -> Any:
        """Return the smaller root of x^2 - (2T - 1)x + 2T mass, in the form that does not cancel."""
        b = 2 * self.horizon - 1
        return 4 * self.horizon * mass / (b + abs(b * b - 8 * self.horizon * mass) ** 0.5)  # below 0 by rounding alone


class Reversed(_Sampled):
    """min(1, w + age/T), the paper's control SWA: old transitions more often."""

    def tail(self) -> float:
        """Return 1."""
        return 1.0

    def __call__(self, age: Tensor) -> Tensor:
        """Return the weights of ``age``."""
        return (self.floor + age / self.horizon).clamp_max(1)

    def head(self) -> float:
        """Return the last age below weight 1."""
        return math.floor(self.horizon * (1 - self.floor))

    def mass(self, age: int) -> float:
        """Return S(a) = w a + a(a + 1) / (2T)."""
        return self.floor * age + age * (age + 1) / (2 * self.horizon)

    def invert(self, mass: Any) -> Any:
        """Return the positive root of x^2 + (2Tw + 1)x - 2T mass."""
        b = 2 * self.horizon * self.floor + 1
        return 4 * self.horizon * mass / (b + (b * b + 8 * self.horizon * mass) ** 0.5)


class Exponential(_Sampled):
    """max(w, exp(-age/T)); the paper compares with an exponential whose formula it does not give."""

    def tail(self) -> float:
        """Return the floor."""
        return self.floor

    def __call__(self, age: Tensor) -> Tensor:
        """Return the weights of ``age``."""
        return (-age / self.horizon).exp().clamp_min(self.floor)

    def head(self) -> float:
        """Return the last age above the floor."""
        return math.floor(-self.horizon * math.log(self.floor)) if self.floor > 0 else math.inf

    def mass(self, age: int) -> float:
        """Return S(a) = (1 - exp(-a/T)) / (exp(1/T) - 1), a geometric sum."""
        return -math.expm1(-age / self.horizon) / math.expm1(1 / self.horizon)

    def invert(self, mass: Any) -> Any:
        """Return -T log(1 - mass (exp(1/T) - 1))."""
        with np.errstate(divide="ignore"):  # of rounding: infinity, which is cut to the last age
            return -self.horizon * library(mass).log1p(-mass * math.expm1(1 / self.horizon))


class Window(_Sampled):
    """1 up to age T, then 0: uniform over the newest T, the control that reviewers asked for. Has no floor."""

    def tail(self) -> float:
        """Return 0."""
        return 0.0

    def __call__(self, age: Tensor) -> Tensor:
        """Return the weights of ``age``."""
        return (age <= self.horizon).to(age.dtype)

    def head(self) -> float:
        """Return T."""
        return math.floor(self.horizon)

    def mass(self, age: int) -> float:
        """Return a."""
        return float(age)

    def invert(self, mass: Any) -> Any:
        """Return the mass itself."""
        return mass


@dataclass(frozen=True)
class Polynomial(AgeWeight):
    """max(w, (1 - age/T)^power), 1 - age/T cut at 0. Without a closed form."""

    power: float = 2.0

    def __call__(self, age: Tensor) -> Tensor:
        """Return the weights of ``age``."""
        return (1 - age / self.horizon).clamp_min(0).pow(self.power).clamp_min(self.floor)


SHAPES: dict[str, type[AgeWeight]] = {
    "linear": Linear,
    "exponential": Exponential,
    "polynomial": Polynomial,
    "window": Window,
}


def statistics(probability: Tensor, horizon: float) -> dict[str, float]:
    """Return what a batch looks like, from the probabilities (num_rows,) of ages 1, 2, ...; exact expectations.

    ``share_newest_tenth`` of ages up to horizon / 10, ``share_horizon`` up to horizon, ``mean_age``, and
    ``effective_fraction``: the effective sample size (sum w)^2 / sum w^2 as a share of all.
    """
    age = torch.arange(1, len(probability) + 1, dtype=torch.float64, device=probability.device)
    values = torch.stack(
        [
            probability[: int(horizon // 10)].sum(),
            probability[: int(horizon)].sum(),
            (probability * age).sum(),
            1 / (len(probability) * probability.square().sum()),
        ]
    )
    return dict(
        zip(("share_newest_tenth", "share_horizon", "mean_age", "effective_fraction"), values.tolist(), strict=True)
    )


@dataclass
class SampleWeightDecay(Intervention):
    """Replay recent transitions more often.

    The weight of a transition is max(floor, 1 - age / horizon), its age counted in calls of ``buffer.add``.

    All environments of a vector share an age, so with many of them choose ``horizon`` in vector steps. No importance
    correction; critic and actor see the same batch; every update draws its own. ``horizon`` 0 leaves replay uniform.
    Both presets are the same: paper, authors' code and a follow-up agree on weight and defaults.
    """

    NAME: ClassVar[str] = "swd"
    KIND: ClassVar[str] = "data"
    NEEDS: ClassVar[tuple[str, ...]] = ("buffer",)
    STATE: ClassVar[tuple[str, ...]] = ("updates",)
    PRESETS: ClassVar = {"paper": {}, "official": {}}

    preset: Literal["paper", "official"] = "paper"
    """Both sample alike; the authors' SAC reuses one batch for all updates of a step, here every update draws anew."""
    horizon: int = 80_000
    """T, in buffer adds, one per step of the whole vector. Authors' code; a follow-up: 2000 with 1024 environments."""
    floor: float = 0.1
    """w_min, the weight that no transition falls below; ignored by the window."""
    shape: Literal["linear", "exponential", "polynomial", "window"] = "linear"
    """Shape of the weight over age; window: uniform over the newest ``horizon``, the control for all others."""
    power: float = 2.0
    """Exponent of the polynomial."""
    reversed: bool = False
    """Prefer old transitions instead, min(1, floor + age / horizon): the paper's control SWA (linear only)."""
    log_every: int = 1000
    """Updates between two logs of what a batch looks like; 0 for never. Costs one pass over all ages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "horizon >= 0": self.horizon >= 0,
            "floor in [0, 1]": 0 <= self.floor <= 1,
            f"shape one of {', '.join(SHAPES)}": self.shape in SHAPES,
            "power > 0": self.power > 0,
            "log_every >= 0": self.log_every >= 0,
            "shape='linear' where reversed": not self.reversed or self.shape == "linear",
        }
        require("SampleWeightDecay", checks, self)
        self.updates = 0
        self._buffer: Any = None

    def weight(self) -> AgeWeight | None:
        """Return the weight of age; None for horizon 0, which is uniform."""
        if self.horizon == 0:
            return None
        if self.reversed:
            return Reversed(self.horizon, self.floor)
        if self.shape == "polynomial":
            return Polynomial(self.horizon, self.floor, self.power)
        return SHAPES[self.shape](self.horizon, self.floor)

    def on_train_start(self, ctx: Context) -> None:
        """Put the weight on the replay buffer."""
        buffer = ctx.require("buffer", type(self).__name__)
        if not (hasattr(buffer, "weigh") and hasattr(buffer, "unweigh")):
            raise ValueError(
                f"SampleWeightDecay needs a replay buffer that samples by age, with weigh(name, weight) and "
                f"unweigh(name); {ctx.name} has {type(buffer).__name__}. plasticity.agents.replay.ReplayBuffer does, "
                f"and plasticity.sb3.WeightedReplayBuffer"
            )
        self.updates = 0
        weight = self.weight()
        if weight is not None:
            buffer.weigh(self.NAME, weight)
            self._buffer = buffer

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Now and then, log what the batches look like."""
        self.updates += 1
        if self._buffer is None or not self.log_every or self.updates % self.log_every:
            return
        if hasattr(self._buffer, "age_probabilities"):
            self.log(ctx, {**statistics(self._buffer.age_probabilities(), self.horizon), **self.costs()})

    def on_train_end(self, ctx: Context) -> None:
        """Take the weight off the buffer."""
        super().on_train_end(ctx)
        if self._buffer is not None:
            self._buffer.unweigh(self.NAME)
            self._buffer = None
