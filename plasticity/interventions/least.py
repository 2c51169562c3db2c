"""LEAST, "Learn to Stop": end episodes that look worse than the recent ones (Liu et al. 2025, ICML, arXiv 2506.13672).

No code was published and the paper leaves much open; ``docs/interventions/least.md`` lists every reading taken here.
At step i of an episode, with Q = Q(s_i, a_i) and G a proxy of the gradient that the transition would give:

    eps_i   = median over the last K episodes of their Q at step i
    omega_i = coef * (median over the last K episodes of their G at step i) / G,  within [omega_min, omega_max]
    stop iff  Q < omega_i * eps_i  where eps_i >= 0,   Q < eps_i / omega_i  where eps_i < 0

A novel transition (large G) lowers the threshold: the episode goes on. A stop is a truncation, so it bootstraps, and
the loop resets that environment. Evaluation is never touched: the method acts in ``on_step`` of the training loop only.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from plasticity.callback import Context
from plasticity.value_types import require

from .episodes import MAX_JUDGED, History, Running
from .intervention import Intervention

SMALLEST = 1e-8
"""Guards the two divisions."""


def row_medians(values: Tensor) -> Tensor:
    """Return the median (n,) of the rows of (n, k), NaNs left out: the mean of the middle two; NaN if all are NaN."""
    return (values.nanmedian(-1).values - (-values).nanmedian(-1).values) / 2


def novelty_weight(median_g: Tensor, g: Tensor, coef: float = 1.0, low: float = 0.0, high: float = math.inf) -> Tensor:
    """Return omega = coef * median_g / g within [low, high]; all (n,), g >= 0. The factor is our reading."""
    return (coef * median_g / g.clamp_min(SMALLEST)).clamp(low, high)


def stop_threshold(eps: Tensor, omega: Tensor) -> Tensor:
    """Return omega * eps where eps >= 0, eps / omega where it is negative; both (n,). Larger omega is stricter."""
    return torch.where(eps >= 0, omega * eps, eps / omega.clamp_min(SMALLEST))


def is_unpromising(
    q: Tensor, eps: Tensor, median_g: Tensor, g: Tensor, coef: float = 1.0, low: float = 0.0, high: float = math.inf
) -> Tensor:
    """Return the decision, bool (n,), for value q, medians eps and median_g, and proxy g; never where one is NaN."""
    return q < stop_threshold(eps, novelty_weight(median_g, g, coef, low, high))


def window_entropy(values: Tensor, bins: int = 50, reach: float = 4.0) -> float:
    """Return the entropy in nats of the values (any shape, NaNs left out), standardised, in equal bins on +-reach.

    Outliers count in the outermost bins. 0 where all are equal, NaN where there are fewer than two. The paper's
    estimator is not known; this one is blind to the scale of Q.
    """
    valid = values[~values.isnan()].double()
    if len(valid) < 2:
        return math.nan
    centred = (valid - valid.mean()) / valid.std().clamp_min(SMALLEST)
    share = torch.histc(centred.clamp(-reach, reach), bins, -reach, reach) / len(valid)
    return float(torch.special.entr(share).sum())


def noise_scale(share: float, low: float, high: float, steepness: float = 10.0) -> float:
    """Return the exploration noise for a share in [0, 1] of early stops: a sigmoid from low at 0 to high at 1."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-steepness * (x - 0.5)))

    return low + (high - low) * (sigmoid(share) - sigmoid(0)) / (sigmoid(1) - sigmoid(0))


@dataclass
class LearnToStop(Intervention):
    """End unpromising training episodes early; needs an off-policy agent.

    It needs Q(s, a). List it before callbacks that record episodes. ``paper`` reads the coefficient as a factor on the
    ratio of medians, ``clamped`` as bounds of it, ``constant`` as omega itself; without the factor about half of all
    episodes would stop at every step. There is no official code. All that is not stopped or exempt ends as ever.
    """

    NAME: ClassVar[str] = "least"
    KIND: ClassVar[str] = "data"
    NEEDS: ClassVar[tuple[str, ...]] = ("value",)
    STATE: ClassVar[tuple[str, ...]] = ("k", "sigma", "entropy", "longest", "next_move", "episodes", "vetoes")
    PRESETS: ClassVar = {
        "paper": {"coef": 0.5, "omega_min": 0.0, "omega_max": 1.0},
        "clamped": {"coef": 1.0, "omega_min": 0.3, "omega_max": 0.6},
        "constant": {"coef": 0.5},
    }

    preset: Literal["paper", "clamped", "constant"] = "paper"
    """Reading of omega."""
    coef: float | None = None
    """Factor on omega; the paper's best values lie in [0.3, 0.6]."""
    omega_min: float | None = None
    """Lower bound of omega."""
    omega_max: float | None = None
    """Upper bound of omega; at most 1 means that an episode above the median is never stopped (ours)."""
    proxy: Literal["loss", "error"] = "loss"
    """G of a transition: its squared TD error, the paper's proxy, or the absolute one, which is |dL/dQ|."""
    gamma: float | None = None
    """Discount factor of the TD error, used only where the agent lends none (see ``td_error`` in the docs page); None:
    that of the run's values, 0.99 where it does not say."""
    warmup: int = 100_000
    """Environment steps before the first stop: 10 to 20 % of training in MuJoCo, 5 to 15 % in DMC."""
    min_length: int = 20
    """Steps an episode plays at least before it may be stopped (ours)."""
    min_episodes: int = 20
    """Episodes in the window that must have reached a step before it is judged (ours)."""
    max_stop_rate: float = 0.5
    """Largest share of stopped ones among any ``rate_episodes`` successive episodes (ours)."""
    rate_episodes: int = 100
    """Episodes over which the stop rate is capped."""
    exempt: float = 0.05
    """Share of episodes that are never stopped, so that late steps keep being seen on bad episodes too (ours)."""
    window: int = 250
    """K at the start, in episodes."""
    window_min: int = 50
    """Smallest K (ours)."""
    window_max: int = 1000
    """Largest K, and episodes kept (ours)."""
    window_step: int = 10
    """h, by how much K moves (ours)."""
    window_every: int = 10_000
    """c, environment steps between two moves of K (ours); 0 keeps K."""
    entropy_margin: float = 0.05
    """K grows where the entropy of Q exceeds its running mean by this share, else shrinks; the paper's [0, 0.1]."""
    noise: float = 0.1
    """Exploration noise without early stops; applied only where the agent lends its noise."""
    noise_max: float = 0.3
    """Exploration noise where all episodes stop early: TD3 [0.25, 0.35], SAC [0.15, 0.25], which hardly needs it."""
    noise_episodes: int = 20
    """m, last episodes whose early stops are counted (ours)."""
    noise_early: float = 0.1
    """e, a stop is early before this share of the longest episode so far (ours)."""
    report_every: int = 100
    """Episodes that one event sums up."""
    seed: int = 0
    """Seed of the choice of exempt episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset == "constant":
            self.omega_min = self.omega_max = self.coef
        coef, low, high = self.bounds()
        counts = ("min_length", "min_episodes", "rate_episodes", "noise_episodes", "report_every", "window_min")
        shares = ("max_stop_rate", "exempt", "noise_early")
        amounts = ("warmup", "window_step", "window_every", "entropy_margin", "noise")
        checks = {
            "coef > 0": coef > 0,
            "0 <= omega_min <= omega_max": 0 <= low <= high,
            "proxy 'loss' or 'error'": self.proxy in ("loss", "error"),
            "window_min <= window <= window_max": self.window_min <= self.window <= self.window_max,
            "noise <= noise_max": self.noise <= self.noise_max,
            "gamma in [0, 1]": self.gamma is None or 0 <= self.gamma <= 1,
            **{f"{name} >= 1": getattr(self, name) >= 1 for name in counts},
            **{f"{name} in [0, 1]": 0 <= getattr(self, name) <= 1 for name in shares},
            **{f"{name} >= 0": getattr(self, name) >= 0 for name in amounts},
        }
        require("LearnToStop", checks, self)
        self._begin()

    def _begin(self) -> None:
        """Set all that changes during training to its first value."""
        self.history = History(self.window_max)
        self.k = self.window
        self.sigma = self.noise
        self.entropy: float | None = None
        """Running mean of the window's entropy."""
        self.longest = 0
        self.next_move = self.window_every
        self.outcomes: deque[tuple[int, bool]] = deque(maxlen=max(self.rate_episodes, self.noise_episodes))
        """(length, stopped) of the last episodes."""
        self.unreported: list[int] = []
        """Steps of the stops since the last report."""
        self.episodes, self.vetoes = 0, 0
        """Episodes and vetoed stops since the last report."""
        self._running: Running | None = None
        self._set_noise: Any = None

    def bounds(self) -> tuple[float, float, float]:
        """Return coef, omega_min, omega_max, which the preset has filled in."""
        assert self.coef is not None
        assert self.omega_min is not None
        assert self.omega_max is not None
        return self.coef, self.omega_min, self.omega_max

    def on_train_start(self, ctx: Context) -> None:
        """Check that the run lends a value function; begin without episodes."""
        ctx.require("value", type(self).__name__)
        self._begin()
        self._set_noise = getattr(ctx, "set_noise", None)
        if self._set_noise is None and self.noise_max > self.noise and not ctx.step:
            ctx.event(self.NAME, {"note": f"noise schedule not applied: {ctx.name} lends no exploration noise"})
        if self._set_noise is not None:
            self.claim(ctx, "set_noise")
        self._apply_noise()

    def on_step(self, ctx: Context, transition: Any) -> None:
        """Record Q and G of the step; stop the episodes that fall behind."""
        assert ctx.value is not None
        q = ctx.value(transition.obs, transition.action).detach().float().cpu()
        running = self._running
        if running is None or running.num_envs != len(q):
            self._running = running = Running(len(q))
            self._draw_exempt(running, torch.ones_like(q, dtype=torch.bool))
        g = self._gradient(ctx, transition, q, running)
        over = (transition.terminated | transition.truncated).cpu()
        wanted = self._wanted(ctx.step, q, g, running) & ~over
        running.write(q, g, transition.reward)
        stopped = torch.zeros_like(over)
        for index in (over | wanted).nonzero().flatten().tolist():
            if wanted[index] and not self._room():
                self.vetoes += 1
                continue
            stopped[index] = wanted[index]
            self._finish(*running.take(index), bool(wanted[index]))
        if stopped.any():
            transition.truncated = transition.truncated | stopped.to(transition.truncated.device)
        if (ended := over | stopped).any():
            self._draw_exempt(running, ended)
            self._apply_noise()
        self._move_window(ctx.step)
        if self.episodes >= self.report_every:
            self._report(ctx)

    def _gradient(self, ctx: Context, transition: Any, q: Tensor, running: Running) -> Tensor:
        """Return G, (n,) float32 on the CPU, of the transition whose value is q.

        Where no ``td_error`` is lent, G is that of the transition before, the latest whose next action is known:
        r + gamma Q(s', a') - Q(s, a); NaN at the first step of an episode, which is then not judged.
        """
        td_error = getattr(ctx, "td_error", None)
        if td_error is not None:
            error = td_error(transition).detach().float().cpu()
        else:
            gamma = next(g for g in (self.gamma, ctx.discount, 0.99) if g is not None)
            error = torch.where(running.steps > 0, running.last_reward + gamma * q - running.last_q, math.nan)
        return error.square() if self.proxy == "loss" else error.abs()

    def _wanted(self, step: int, q: Tensor, g: Tensor, running: Running) -> Tensor:
        """Return the environments (n,) whose episode the rule would end now."""
        may = (running.steps + 1 >= self.min_length) & (running.steps < MAX_JUDGED) & ~running.exempt
        if step <= self.warmup or self.history.count < self.min_episodes or not may.any():
            return torch.zeros_like(may)
        rows = self.history.rows(running.steps, self.k)
        known = (~rows[0].isnan()).sum(-1) >= self.min_episodes
        return may & known & is_unpromising(q, row_medians(rows[0]), row_medians(rows[1]), g, *self.bounds())

    def _room(self) -> bool:
        """Return whether one more stop keeps the rate of the last ``rate_episodes`` episodes within its cap."""
        others = list(self.outcomes)[-(self.rate_episodes - 1) :] if self.rate_episodes > 1 else []
        return sum(stopped for _, stopped in others) + 1 <= self.max_stop_rate * (len(others) + 1) + 1e-9

    def _finish(self, length: int, episode: Tensor, stopped: bool) -> None:
        """Move the episode of one environment into the history."""
        self.history.push(episode)
        self.longest = max(self.longest, length)
        self.outcomes.append((length, stopped))
        self.episodes += 1
        if stopped:
            self.unreported.append(length)

    def _draw_exempt(self, running: Running, begun: Tensor) -> None:
        """Decide for the episodes that begin whether they may be stopped."""
        running.exempt[begun] = torch.rand(int(begun.sum()), generator=self.generator, device="cpu") < self.exempt

    def _move_window(self, step: int) -> None:
        """Every ``window_every`` steps: enlarge K where the entropy of Q is above its running mean, else shrink it."""
        if not self.window_every or step < self.next_move:
            return
        self.next_move = step + self.window_every
        found = window_entropy(self.history.rows(torch.arange(self.history.table.shape[1], device="cpu"), self.k)[0])
        if math.isnan(found):
            return
        if self.entropy is None:
            self.entropy = found
            return
        grow = found > (1 + self.entropy_margin) * self.entropy
        moved = self.k + (self.window_step if grow else -self.window_step)
        self.k = min(max(moved, self.window_min), self.window_max)
        self.entropy = 0.9 * self.entropy + 0.1 * found

    def _apply_noise(self) -> None:
        """Set the exploration noise by the share of early stops among the last episodes, where it is lent."""
        recent = list(self.outcomes)[-self.noise_episodes :]
        early = sum(stopped and length < self.noise_early * self.longest for length, stopped in recent)
        self.sigma = noise_scale(early / max(len(recent), 1), self.noise, self.noise_max)
        if self._set_noise is not None:
            self._set_noise(self.sigma)

    def _report(self, ctx: Context) -> None:
        """Sum up the episodes since the last report in one event."""
        if not self.episodes:
            return
        stops = len(self.unreported)
        details: dict[str, float] = {"stop_rate": stops / self.episodes, "window": self.k}
        if stops:
            details["mean_stop_step"] = sum(self.unreported) / stops
        if self._set_noise is not None:
            details["sigma"] = self.sigma
        self.log(ctx, {key: float(value) for key, value in details.items()})
        self.report(ctx, details, episodes=self.episodes, stops=stops, vetoes=self.vetoes)
        self.unreported, self.episodes, self.vetoes = [], 0, 0

    def on_train_end(self, ctx: Context) -> None:
        """Report the last episodes, unless training may go on."""
        super().on_train_end(ctx)
        if not ctx.interrupted:
            self._report(ctx)

    def forget(self, lost: Tensor) -> None:
        """Drop the episodes that will not go on."""
        if self._running is not None and lost.any():
            lost = lost.cpu()
            for index in lost.nonzero().flatten().tolist():
                self._running.take(index)
            self._draw_exempt(self._running, lost)

    def state_dict(self) -> dict[str, Any]:
        """Return the history, the unfinished episodes and all that adapts."""
        return {
            **super().state_dict(),
            "outcomes": [list(outcome) for outcome in self.outcomes],
            "unreported": list(self.unreported),
            "history": {"table": self.history.table.clone(), "count": self.history.count},
            "running": None if self._running is None else self._running.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, unfinished episodes included."""
        super().load_state_dict(state)
        capacity = state["history"]["table"].shape[2]
        if capacity != self.window_max:
            raise ValueError(f"LearnToStop: saved with window_max {capacity}, this one has {self.window_max}")
        self.outcomes.clear()
        self.outcomes.extend((length, stopped) for length, stopped in state["outcomes"])
        self.unreported = list(state["unreported"])
        self.history.table, self.history.count = state["history"]["table"].clone(), state["history"]["count"]
        self._running = None
        if state["running"] is not None:
            self._running = Running(len(state["running"]["steps"]))
            self._running.load_state_dict(state["running"])
        self._apply_noise()
