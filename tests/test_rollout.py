"""Rollout memory and advantages, against typed-out numbers and stable-baselines3."""

import copy
from typing import Any

import models
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from plasticity.agents.rollout import Experience, Rollout, gae

pytestmark = pytest.mark.usefixtures("everywhere")

NO = False


def column(*values: Any) -> Tensor:
    """One environment: (steps, 1)."""
    return torch.tensor(values)[:, None]


def filled(num_steps: int, num_envs: int, seed: int = 0) -> Rollout:
    """A rollout of random steps that go on from each other, with ends of both kinds."""
    rollout, generator = models.here(Rollout, num_steps, num_envs, (2,), (3,)), models.generator(seed)
    obs = torch.randn(num_envs, 2, generator=generator)
    for _ in range(num_steps):
        next_obs, reset_obs = torch.randn(2, num_envs, 2, generator=generator)
        terminated, truncated = torch.rand(2, num_envs, generator=generator) < 0.2
        truncated &= ~terminated
        rollout.add(
            obs=obs,
            action=torch.randn(num_envs, 3, generator=generator),
            reward=torch.randn(num_envs, generator=generator),
            next_obs=next_obs,
            terminated=terminated,
            truncated=truncated,
        )
        obs = torch.where((terminated | truncated)[:, None], reset_obs, next_obs)
    return rollout


# --- advantages ---


def test_gae_of_an_episode_that_terminates() -> None:
    # gamma 0.5, lambda 0.5: deltas 1 + 0.5 * 20 - 10 = 1; 2 + 0.5 * 30 - 20 = -3; 3 - 30 = -27
    # A_2 = -27, A_1 = -3 - 0.25 * 27 = -9.75, A_0 = 1 - 0.25 * 9.75 = -1.4375
    advantage = gae(
        column(1.0, 2.0, 3.0), column(10.0, 20.0, 30.0), column(20.0, 30.0, 40.0),
        column(NO, NO, True), column(NO, NO, NO), 0.5, 0.5,
    )  # fmt: skip
    assert advantage.flatten().tolist() == [-1.4375, -9.75, -27.0]


def test_gae_of_a_cut_bootstraps_and_does_not_flow_back() -> None:
    # The second step is cut: delta_1 = 2 + 0.5 * 100 - 20 = 32, and A_1 = 32 without A_2 = 3 + 0.5 * 40 - 30 = -7.
    # A_0 = 1 + 0.25 * 32 = 9
    advantage = gae(
        column(1.0, 2.0, 3.0), column(10.0, 20.0, 30.0), column(20.0, 100.0, 40.0),
        column(NO, NO, NO), column(NO, True, True), 0.5, 0.5,
    )  # fmt: skip
    assert advantage.flatten().tolist() == [9.0, 32.0, -7.0]


def test_gae_limits() -> None:
    generator = models.generator()
    reward, value, next_value = torch.randn(3, 5, 2, generator=generator)
    no = torch.zeros(5, 2, dtype=torch.bool)
    one_step = gae(reward, value, next_value, no, no, 0.9, 0.0)
    torch.testing.assert_close(one_step, reward + 0.9 * next_value - value)
    next_value[:-1] = value[1:]
    discount = 0.9 ** torch.arange(6.0)[:, None]
    monte_carlo = (discount[:5] * reward).sum(0) + discount[5] * next_value[-1] - value[0]
    torch.testing.assert_close(gae(reward, value, next_value, no, no, 0.9, 1.0)[0], monte_carlo)


@pytest.mark.parametrize("seed", range(3))
def test_gae_equals_stable_baselines3(seed: int) -> None:
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    rollout = filled(64, 3, seed)
    terminated, cut = rollout.storage["terminated"], rollout.cut()
    value = torch.randn(64, 3, generator=models.generator(seed + 10))
    bootstrap = torch.randn(64, 3, generator=models.generator(seed + 20))
    next_value = torch.where(cut, bootstrap, torch.cat([value[1:], value[:1]]))
    assert (rollout.storage["truncated"].any(0) & terminated.any(0)).all()
    ours = gae(rollout.storage["reward"], value, next_value, terminated, cut, 0.97, 0.9)

    box = spaces.Box(-1, 1, (2,))
    twin = buffers.RolloutBuffer(64, box, box, "cpu", gae_lambda=0.9, gamma=0.97, n_envs=3)
    done = terminated | rollout.storage["truncated"]
    # stable-baselines3 adds the discounted value of a truncated episode's last observation to its last reward
    twin.rewards = (rollout.storage["reward"] + 0.97 * next_value * rollout.storage["truncated"]).numpy(force=True)
    twin.values = value.numpy(force=True)
    twin.episode_starts[1:] = done[:-1].float().numpy(force=True)
    twin.compute_returns_and_advantage(next_value[-1], done[-1].numpy(force=True))
    np.testing.assert_allclose(ours.numpy(force=True), twin.advantages, rtol=1e-5, atol=1e-6)
    experience = Experience(value, value, value, value, ours, value + ours)
    np.testing.assert_allclose(experience.target.numpy(force=True), twin.returns, rtol=1e-5, atol=1e-6)


# --- the memory ---


@pytest.mark.parametrize("num_envs", [1, 3])
def test_gae_equals_its_recursion_and_leaves_what_it_is_given(num_envs: int) -> None:
    generator = models.generator()
    reward, value, next_value = torch.randn(3, 40, num_envs, generator=generator)
    terminated, cut = torch.rand(2, 40, num_envs, generator=generator) < 0.1
    given = [x.clone() for x in (reward, value, next_value)]
    found = gae(reward, value, next_value, terminated, cut, 0.9, 0.8)
    for n in range(num_envs):
        following = 0.0
        for t in reversed(range(40)):
            r, v, after = (float(x[t, n]) for x in (reward, value, next_value))
            goes_on = not (terminated[t, n] or cut[t, n])
            following = r + 0.9 * after * (not terminated[t, n]) - v + 0.9 * 0.8 * following * goes_on
            assert float(found[t, n]) == pytest.approx(following, rel=1e-4, abs=1e-5)
    assert all(map(torch.equal, given, (reward, value, next_value)))


def test_gae_of_what_is_not_finite_is_not_and_says_nothing() -> None:
    reward, zero = torch.full((3, 2), float("inf")), torch.zeros(3, 2)
    no = torch.zeros(3, 2, dtype=torch.bool)
    assert not gae(reward, zero, zero, no, ~no, 0.9, 0.9).isfinite().any()


def test_a_copy_has_rows_of_its_own() -> None:
    one = models.here(Rollout, 2, 1, (1,), (1,))
    row = {name: torch.ones(1, 1) for name in ("obs", "action", "next_obs")}
    row |= {"reward": torch.ones(1), "terminated": torch.ones(1).bool(), "truncated": torch.zeros(1).bool()}
    other = copy.deepcopy(one)
    other.add(**row)
    assert one.storage["obs"].sum() == 0
    assert other.storage["obs"].flatten().tolist() == [1, 0]


def test_cut_is_where_the_next_row_does_not_go_on() -> None:
    rollout = models.here(Rollout, 5, 2, (1,), ())
    obs = [[0, 0], [1, 1], [2, 7], [9, 8], [9, 9]]  # environment 0 is reset after step 2, environment 1 after step 1
    next_obs = [[1, 1], [2, 2], [3, 8], [9, 9], [9, 5]]
    terminated = [[NO, NO], [NO, NO], [NO, NO], [NO, NO], [NO, True]]
    truncated = [[NO, NO], [NO, True], [NO, NO], [True, NO], [NO, NO]]  # step 3 of 0 starts again where it ended
    for row in range(5):
        rollout.add(
            obs=torch.tensor(obs[row])[:, None],
            action=torch.zeros(2),
            reward=torch.zeros(2),
            next_obs=torch.tensor(next_obs[row])[:, None],
            terminated=torch.tensor(terminated[row]),
            truncated=torch.tensor(truncated[row]),
        )
    assert rollout.cut().T.tolist() == [[NO, NO, True, True, True], [NO, True, NO, NO, NO]]


def test_rows_are_kept_in_order_and_cleared() -> None:
    rollout = filled(4, 3)
    assert rollout.full
    assert len(rollout) == 12
    assert repr(rollout) == "Rollout(4 of 4 steps, num_envs=3)"
    assert torch.equal(rollout.flat("obs")[3:6], rollout.storage["obs"][1])
    row = {name: values[0] for name, values in rollout.storage.items()}
    with pytest.raises(RuntimeError, match="is full"):
        rollout.add(**row)
    rollout.clear()
    assert (len(rollout), rollout.full) == (0, False)


def test_a_row_of_another_shape_is_refused() -> None:
    row = {name: values[0] for name, values in filled(2, 3).storage.items()}
    with pytest.raises(ValueError, match=r"reward has shape \(1,\), expected \(3,\)"):
        models.here(Rollout, 2, 3, (2,), (3,)).add(**{**row, "reward": torch.zeros(1)})
    with pytest.raises(ValueError, match="num_steps >= 1"):
        models.here(Rollout, 0, 1, (2,), ())


def test_state_is_a_copy_of_the_filled_rows() -> None:
    half, other = models.here(Rollout, 6, 2, (2,), (3,)), filled(6, 2, seed=9)
    source = filled(6, 2)
    for row in range(4):
        half.add(**{name: values[row] for name, values in source.storage.items()})
    state = half.state_dict()
    half.storage["obs"].zero_()
    other.load_state_dict(state)
    assert other.num_rows == 4
    for name, values in other.storage.items():
        assert torch.equal(values[:4], source.storage[name][:4])
    assert not models.here(Rollout, 5, 2, (2,), (3,)).fits(state)
    with pytest.raises(ValueError, match="saved with 6 steps of 2"):
        models.here(Rollout, 6, 1, (2,), (3,)).load_state_dict(state)


def test_experience_is_indexed_field_by_field() -> None:
    line = torch.arange(4.0)
    part = Experience(line[:, None], line, 10 * line, 100 * line, 1000 * line, 1100 * line)[torch.tensor([2, 0])]
    assert part.obs.tolist() == [[2.0], [0.0]]
    assert part.log_prob.tolist() == [20.0, 0.0]
    assert part.target.tolist() == [2200.0, 0.0]
