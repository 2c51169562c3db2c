"""The callbacks that log what comes in at every step and update."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from plasticity import Context
from plasticity.agents.records import Episodes, Losses
from plasticity.agents.rows import ended
from plasticity.envs.transition import Rows


def step(reward: list[float], terminated: list[bool], truncated: list[bool]) -> Any:
    return SimpleNamespace(
        reward=torch.tensor(reward), terminated=torch.tensor(terminated), truncated=torch.tensor(truncated)
    )


def test_episodes_of_several_environments_and_after_resuming() -> None:
    episodes, ctx = Episodes(), Context()
    episodes.on_step(ctx, step([1, 10, 100], [False] * 3, [False] * 3))
    assert ctx.latest == {}
    episodes.on_step(ctx, step([2, 20, 200], [True, False, False], [False, True, False]))
    assert ctx.latest == {"charts/episodic_return": (3 + 30) / 2, "charts/episodic_length": 2}

    state = episodes.state_dict()
    assert state["finished"] == 2
    assert state["returns"].tolist() == [0, 0, 300]
    assert state["lengths"].tolist() == [0, 0, 2]
    assert state["returns"].dtype == state["lengths"].dtype == torch.float64  # what older checkpoints hold
    resumed = Episodes()
    resumed.load_state_dict(state)
    resumed.on_step(ctx, step([5, 50, 500], [False] * 3, [False] * 3))
    assert state["returns"].tolist() == [0, 0, 300]
    resumed.forget(torch.tensor([False, True, False]))
    resumed.on_step(ctx, step([7, 70, 700], [False, True, True], [False] * 3))
    assert ctx.latest == {"charts/episodic_return": (70 + 1500) / 2, "charts/episodic_length": (1 + 4) / 2}
    assert resumed.finished == 4


def test_returns_are_summed_in_float64() -> None:
    episodes, ctx = Episodes(), Context()
    for _ in range(100):
        episodes.on_step(ctx, step([0.1], [False], [False]))
    episodes.on_step(ctx, step([1e8], [True], [False]))
    assert abs(ctx.latest["charts/episodic_return"] - 1e8 - 10) < 1e-3


@pytest.mark.parametrize("terminated", [[False, False], [True, False], [True, True]])
@pytest.mark.parametrize("truncated", [[False, False], [False, True]])
def test_ended_is_one_mask_of_both_flags(terminated: list[bool], truncated: list[bool]) -> None:
    expected = [a or b for a, b in zip(terminated, truncated, strict=True)]
    flags = {"terminated": np.array(terminated), "truncated": np.array(truncated)}
    for transition in (step([0.0, 0.0], terminated, truncated), Rows(None, flags)):
        done = ended(transition)
        assert (done is None) is not any(expected)
        assert done is None or (done.dtype is torch.bool and done.tolist() == expected)


def test_metrics_are_0_d_tensors_by_name_or_none_at_all() -> None:
    losses, ctx = Losses(every=1), Context()
    losses.on_train_start(ctx)
    losses.on_update_end(ctx, {})
    assert ctx.latest.keys() == {"charts/SPS"}
    for metrics in (None, {"loss": 1.0}, {"loss": torch.zeros(2)}):
        with pytest.raises(TypeError, match=r"update\(\) of the agent must return"):
            losses.on_update_end(ctx, metrics)  # type: ignore[arg-type]
