"""Emphasizing recent experience: golden sizes of the window, and what is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_interventions import Check, run_sac
from torch import nn, optim

from plasticity.callback import Context
from plasticity.interventions import RecentExperience
from plasticity.interventions.ere import newest

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    found = [newest(100_000, k, 1000, 0.996, 5000) for k in (1, 500, 1000)]
    assert [int(size) for size in found] == [99600, 13479, 5000]
    assert newest(300, 1000, 1000, 0.996, 5000) == 300


@pytest.mark.slow_off_the_cpu
def test_each_update_of_a_round_draws_from_newer_transitions() -> None:
    method, ages = RecentExperience(eta=0.999, smallest=4, round_length=4), list[tuple[int, int, float]]()

    def look(ctx: Context) -> None:
        weight = ctx.buffer.weights.get("ere")  # type: ignore[union-attr]
        rows = ctx.buffer.num_rows  # type: ignore[union-attr]
        drawn = ctx.buffer.sample(512).age.max().item()  # type: ignore[union-attr]
        ages.append((method.updates, rows, drawn))
        assert drawn <= (weight.horizon if weight else rows)

    run_sac([method, Check(look)], steps=60)
    assert len(ages) > 20
    for update, rows, drawn in ages:
        k = (update - 1) % 4 + 1
        expected = newest(rows, k, 4, 0.999, 2)  # two environments share an age
        assert drawn == int(expected)


@pytest.mark.slow_off_the_cpu
def test_no_weight_is_left_and_eta_1_is_uniform() -> None:
    agent, _, _ = run_sac([RecentExperience(eta=1.0)], steps=30)
    plain, _, _ = run_sac([], steps=30)
    assert not agent.buffer.weights
    for p, q in zip(agent.networks["actor"].parameters(), plain.networks["actor"].parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_run_without_a_buffer_is_refused() -> None:
    net = nn.Linear(2, 2)
    ctx = Context({"actor": net}, {"actor": optim.SGD(net.parameters(), 0.1)}, name="ppo")
    with pytest.raises(ValueError, match="RecentExperience needs a replay buffer; ppo has none"):
        RecentExperience().on_train_start(ctx)


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"smallest": 0}, {"round_length": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RecentExperience needs"):
        RecentExperience(**settings)
