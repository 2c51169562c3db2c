"""The sanity environments have the values they state."""

import pytest
import torch

from plasticity.envs import make_env
from plasticity.envs.sanity import Clock, sanity_ids, values

GAMMA = 0.9


@pytest.mark.parametrize(
    ("name", "q"),
    [
        ("constant", [[1, 1]]),
        ("observation", [[-1, -1], [1, 1]]),
        ("discount", [[0.9, 0.9], [1, 1]]),
        ("action", [[-1, 1]]),
        ("both", [[1, -1], [-1, 1]]),
        ("drift", [[-1, 1]]),
        ("clock", [[10, 10]]),
        ("constant-continuous", [[1, 1, 1, 1, 1]]),
        ("observation-continuous", [[-1] * 5, [1] * 5]),
        ("discount-continuous", [[0.9] * 5, [1] * 5]),
        ("action-continuous", [[-1.25, 0, 0.75, 1, 0.75]]),
        ("drift-continuous", [[-1.25, 0, 0.75, 1, 0.75]]),
        ("both-continuous", [[0.75, 1, 0.75, 0, -1.25], [-1.25, 0, 0.75, 1, 0.75]]),
        ("clock-continuous", [[10] * 5]),
    ],
)
def test_values_are_the_typed_out_ones(name, q):
    known = values(f"sanity/{name}", GAMMA)
    torch.testing.assert_close(known.q, torch.tensor(q, dtype=torch.float32))
    torch.testing.assert_close(known.v, torch.tensor([max(row) for row in q], dtype=torch.float32))
    assert known.obs.shape == (len(q), 1)
    assert len(known.action) == len(q[0])


@pytest.mark.parametrize("name", sanity_ids())
def test_every_transition_satisfies_bellman(name):
    known = values(name, GAMMA)
    env = make_env(name, num_envs=len(known.action), seed=2)
    obs, seen = env.reset(), set()
    assert known.action.dtype == (torch.float32 if name.endswith("-continuous") else torch.int64)
    for _ in range(24):  # each environment takes one of the actions throughout
        transition = env.step(known.action)
        row = (transition.obs == known.obs.T).int().argmax(1)
        following = known.v[(transition.next_obs == known.obs.T).int().argmax(1)]
        target = transition.reward + GAMMA * ~transition.terminated * following
        torch.testing.assert_close(known.q[row, torch.arange(len(row))], target)
        seen |= set(row.tolist())
        obs = env.reset(transition.terminated | transition.truncated)
        assert (obs.abs() <= 1).all()
    assert seen == set(range(len(known.obs)))


@pytest.mark.parametrize(("limit", "ended"), [(None, 1.0), (1, 1.0), (5, 1 / 0.28)])
def test_clock_tells_truncation_from_termination(limit, ended):
    env = make_env("sanity/clock", num_envs=2, max_episode_steps=limit)
    env.reset()
    steps = []
    for _ in range(50):
        steps.append(env.step(torch.tensor([0, 1])))
        env.reset(steps[-1].truncated)
    truncated = torch.stack([step.truncated for step in steps])
    reward = torch.stack([step.reward for step in steps])
    assert not any(step.terminated.any() for step in steps)
    assert truncated.float().mean().item() == pytest.approx(1 / (limit or 1))
    right = wrong = 0.0
    for _ in range(400):  # fitted value iteration of one number, with and without the next value
        right = (reward + GAMMA * right).mean().item()
        wrong = (reward + GAMMA * ~truncated * wrong).mean().item()
    assert right == pytest.approx(values("sanity/clock", GAMMA).v.item(), rel=1e-4)
    assert wrong == pytest.approx(Clock.value_if_ended(GAMMA, limit or 1), rel=1e-4)
    assert wrong == pytest.approx(ended, rel=1e-4)


def test_one_step_tasks_end_by_termination_and_discount_takes_two():
    for name in ("constant", "observation", "action", "both"):
        env = make_env(f"sanity/{name}")
        env.reset()
        assert env.step(torch.tensor([0])).terminated.item()
    env = make_env("sanity/discount")
    assert env.reset().item() == 0.0
    first, second = env.step(torch.tensor([1])), env.step(torch.tensor([1]))
    assert (first.reward.item(), first.terminated.item(), first.next_obs.item()) == (0.0, False, 1.0)
    assert (second.reward.item(), second.terminated.item()) == (1.0, True)
