"""Annealed horizon: the schedule against the published one, and what is replayed against returns by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from plasticity import Callback, Context
from plasticity.agents.dqn import DQN, DQNConfig
from plasticity.agents.train import context
from plasticity.callback import end, fire, start
from plasticity.interventions import Horizon
from plasticity.meters.overestimation import Overestimation
from plasticity.testing import check_method
from plasticity.testing.runs import QUICK_RUNS, check_run

SETTINGS = ["--horizon", "--horizon.every", "9", "--horizon.clock", "updates", "--horizon.steps", "5"]


def published(first: float, last: float, steps: int, now: int, reverse: bool) -> float:
    """Return the schedule as the released code states it: logarithms, moved linearly by the steps that are left."""
    first, last = (1 - first, 1 - last) if reverse else (first, last)
    left = min(max((steps - now) / steps, 0.0), 1.0)
    value = math.exp(left * (math.log(first) - math.log(last)) + math.log(last))
    return 1 - value if reverse else value


def test_the_schedule_is_the_published_one() -> None:
    method = Horizon()
    for since in (0, 1, 777, 5_000, 9_999, 10_000, 30_000):
        method.since = since
        n_step, gamma = method.now()
        assert n_step == round(published(10, 3, 10_000, since, False))
        assert gamma == pytest.approx(published(0.97, 0.997, 10_000, since, True), abs=1e-12)
    method.since = 5_000
    assert method.now() == (5, pytest.approx(1 - math.sqrt(0.03 * 0.003)))


def agent(n_step: int = 5) -> DQN:
    config = DQNConfig(n_step=n_step, buffer_size=100, learning_starts=10, hidden=(4,), gamma=0.9)
    return DQN(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), config)


def filled(n_step: int = 5) -> DQN:
    dqn, never = agent(n_step), torch.zeros(1, dtype=torch.bool)
    for t in range(20):
        parts = {"obs": torch.full((1, 2), float(t)), "next_obs": torch.full((1, 2), t + 1.0)}
        dqn.buffer.add(
            SimpleNamespace(**parts, action=torch.zeros(1, dtype=torch.int64), reward=torch.tensor([float(t)]),
                            terminated=never, truncated=never)
        )  # fmt: skip
    return dqn


@pytest.mark.parametrize(("n_step", "gamma"), [(5, 0.9), (3, 0.5), (2, 0.99)])
def test_what_is_replayed_are_sums_of_so_many_rewards(n_step: int, gamma: float) -> None:
    dqn = filled()
    dqn.set_horizon(n_step, gamma)
    batch = dqn.buffer.read(torch.arange(10))
    for i in range(10):
        assert float(batch.reward[i]) == pytest.approx(sum(gamma**k * (i + k) for k in range(n_step)), rel=1e-6)
        assert float(batch.next_obs[i, 0]) == i + n_step
        assert float(batch.discount[i]) == pytest.approx(gamma**n_step, rel=1e-6)
    dqn.set_horizon(None, None)
    assert (dqn.buffer.n_step, dqn.buffer.gamma) == (5, 0.9)


def test_what_looks_at_the_discount_follows_it() -> None:
    """The meter of overestimation, the error that LEAST weighs, and a context that is made in the middle."""
    dqn, gammas = filled(), list[float]()

    class Look(Callback):
        def on_update_end(self, ctx: Context, metrics: object) -> None:
            gammas.append(Overestimation()._gamma(ctx))
            assert gammas[-1] == dqn.discount == context(dqn).discount
            step = SimpleNamespace(obs=torch.zeros(1, 2), next_obs=torch.ones(1, 2), action=torch.zeros(1).long(),
                                   reward=torch.ones(1), terminated=torch.zeros(1, dtype=torch.bool))  # fmt: skip
            y = 1 + gammas[-1] * dqn.targets["q"](step.next_obs).max()
            assert float(dqn.td_error(step)) == pytest.approx(float((dqn.q(step.obs)[0, 0] - y).abs()), rel=1e-5)

    ctx, method = context(dqn), Horizon(steps=4, n_first=5, n_last=2)
    start([method, Look()], ctx)
    for _ in range(6):
        fire([method, Look()], "on_update_end", ctx, {})
    assert gammas == [pytest.approx(published(0.97, 0.997, 4, k, True)) for k in (1, 2, 3, 4, 4, 4)]
    end([method], ctx)
    assert ctx.discount == dqn.discount == 0.9


def test_what_cannot_be_set_is_refused() -> None:
    assert agent(1).set_horizon is None
    for n_step in (1, 6):
        with pytest.raises(ValueError, match="sums of 2 to --n-step 5 rewards can be replayed"):
            agent().set_horizon(n_step, 0.9)
    with pytest.raises(ValueError, match=r"a discount is in \[0, 1\]"):
        agent().set_horizon(3, 1.5)
    with pytest.raises(ValueError, match="Horizon needs"):
        Horizon(n_last=1)
    assert np.isclose(Horizon().now()[1], 0.97)


@pytest.mark.slow
def test_the_contract_on_dqn_and_beside_the_resets_of_bbf(tmp_path: Path) -> None:
    options = [*QUICK_RUNS["dqn"], "--n-step", "10", *SETTINGS]
    check_run("dqn", [*options, "--shrink-perturb", "--shrink-perturb.preset", "bbf", "--shrink-perturb.every", "9"],
              tmp_path)  # fmt: skip


def test_a_run_without_sums_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"Horizon needs n-step returns and a discount that can be set.*--n-step"):
        check_method(Horizon, {}, agent="dqn")
