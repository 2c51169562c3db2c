"""Replay: its age, how evenly it counts, and how wrong the critic is about it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

from plasticity.callback import Context

from .churn import batch_tensors
from .meter import Measured, Meter

NO_AGES = "the transitions that the run lends have no ages"
NO_ERRORS = "the run lends no TD errors, Context.td_error"


def effective_share(weights: Tensor) -> Tensor:
    """Return the effective sample size over the number of weights, (samples,): (sum w)^2 / (n sum w^2), in (0, 1]."""
    weights = weights.double()
    return weights.sum().square() / (len(weights) * weights.square().sum())


@dataclass
class Replayed(Meter):
    """Age of past transitions, and the distribution of their TD errors.

    Logs, under the network ``replay``: ``replay_age``, the mean age in additions; of agents that lend ``td_error``, its
    mean ``td_error``, its 95 % quantile ``td_error_high``, and ``td_error_effective``, the effective share of samples
    if they were drawn by error: 1 for errors all alike, near 0 where few states hold them all. Transitions are drawn
    evenly, whatever the agent draws. Source: Kish 1965, *Survey sampling*, for the effective size; Schaul et al. 2016
    (arXiv 1511.05952) for errors as priorities.
    """

    NAME: ClassVar[str] = "replay"
    NEEDS: ClassVar[tuple[str, ...]] = ("peek",)

    num_states: int = 256
    """Transitions to look at."""

    def measure(self, ctx: Context) -> Measured:
        """Return what the run lends."""
        assert ctx.peek is not None
        batch = ctx.peek(self.num_states, self.generator)
        age = getattr(batch, "age", None)
        found: dict[str, Tensor | str] = {"replay_age": NO_AGES if age is None else age.double().mean()}
        if ctx.td_error is None:
            found |= dict.fromkeys(("td_error", "td_error_high", "td_error_effective"), NO_ERRORS)
        if ctx.td_error is not None:
            step = SimpleNamespace(**batch_tensors(batch), truncated=torch.zeros_like(batch.terminated))
            errors = ctx.td_error(step).double().abs()
            weights = torch.where(errors.sum() == 0, torch.ones_like(errors), errors)
            found |= {"td_error": errors.mean(), "td_error_high": errors.quantile(0.95)}
            found["td_error_effective"] = effective_share(weights)
        return {"replay": found}
