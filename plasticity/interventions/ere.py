"""Emphasizing recent experience: the later an update of a round, the newer the transitions that it draws.

Wang & Ross 2019, *Boosting Soft Actor-Critic: Emphasizing Recent Experience without Forgetting the Past*,
arXiv 1906.04009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from plasticity.callback import Context
from plasticity.value_types import require

from .intervention import Intervention
from .swd import Window


def newest(num_rows: int, update: int, round_length: int, eta: float, smallest: float) -> float:
    """Return how many of the newest transitions update k of K draws from: max(N eta^(1000 k / K), c_min), at most N."""
    return min(float(num_rows), max(num_rows * eta ** (1000 * update / round_length), smallest))


@dataclass
class RecentExperience(Intervention):
    """Draw later updates of a round from newer transitions alone.

    The k-th of K updates draws uniformly from the newest max(N eta^(1000 k / K), c_min) of N transitions. The paper
    makes the K updates of a round after an episode of K steps. Agents here update after every step: a round is
    ``round_length`` updates, after which k begins at 1 again. Its eta falls towards 1 as training goes on in the
    paper's annealed variant, which is not here. Other weights of age (``swd``) multiply.

    All environments of a vector share an age: ``smallest`` is divided by their number. Sizes are those of the released
    code (sunfex/weighted-sac), which draws at least a batch and without replacement; here it is with replacement.
    """

    NAME: ClassVar[str] = "ere"
    KIND: ClassVar[str] = "data"
    NEEDS: ClassVar[tuple[str, ...]] = ("buffer",)
    STATE: ClassVar[tuple[str, ...]] = ("updates",)
    PRESETS: ClassVar = {"paper": {}}

    preset: Literal["paper"] = "paper"
    """Defaults of the options that are None; there are none."""
    eta: float = 0.996
    """Decay of the share of the memory within a round, in (0, 1]; 1 for uniform replay."""
    smallest: int = 5000
    """Transitions that every update draws from, at least (c_min)."""
    round_length: int = 1000
    """Updates of a round (K)."""
    seed: int = 0
    """Unused: nothing is drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "0 < eta <= 1": 0 < self.eta <= 1,
            "smallest >= 1": self.smallest >= 1,
            "round_length >= 1": self.round_length >= 1,
        }
        require("RecentExperience", rules, self)
        self.updates = 0

    def on_train_start(self, ctx: Context) -> None:
        """Find the replay buffer."""
        buffer = ctx.require("buffer", type(self).__name__)
        if not (hasattr(buffer, "weigh") and hasattr(buffer, "num_rows")):
            raise ValueError(
                f"RecentExperience needs a replay buffer with weigh(name, weight), unweigh(name) and num_rows; "
                f"{ctx.name} has {type(buffer).__name__}. plasticity.agents.replay.ReplayBuffer does, "
                f"and plasticity.sb3.WeightedReplayBuffer"
            )
        self.claim(ctx, "newest")
        self._buffer, self.updates = buffer, 0

    def on_update_start(self, ctx: Context) -> None:
        """Let the buffer draw from the newest transitions."""
        update, rows = self.updates % self.round_length + 1, self._buffer.num_rows
        smallest = self.smallest / getattr(self._buffer, "num_envs", 1)
        window = newest(rows, update, self.round_length, self.eta, smallest)
        self._buffer.unweigh(self.NAME)
        if window < rows:
            self._buffer.weigh(self.NAME, Window(max(1.0, window), 0.0))

    def on_update_end(self, ctx: Context, metrics: dict[str, Tensor]) -> None:
        """Count the update; report the first one, and log the end of each round."""
        self.updates += 1
        if self.updates == 1:
            self.report(ctx, {"because": "every update from now on"}, applications=1)
        if self.updates % self.round_length == 0:
            weight = self._buffer.weights.get(self.NAME)
            rows = self._buffer.num_rows if weight is None else weight.horizon
            self.log(ctx, {"newest": float(rows), **self.costs()})

    def on_train_end(self, ctx: Context) -> None:
        """Take the weight off the buffer."""
        super().on_train_end(ctx)
        self._buffer.unweigh(self.NAME)
