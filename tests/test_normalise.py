"""One row by numpy: the numbers that torch finds for many."""

import copy

import models
import pytest
import torch

from plasticity.agents.normalise import RunningNorm
from plasticity.agents.rewards import ReturnScaler

pytestmark = pytest.mark.usefixtures("everywhere")


@pytest.mark.parametrize("clip", [None, 1.5])
def test_rows_one_by_one_and_all_at_once(clip: float | None) -> None:
    one, many = RunningNorm((3,), clip=clip), RunningNorm((3,), clip=clip)
    rows = 5 * models.normal(50, 3) + torch.tensor([0.0, 100.0, -7.0])
    for row in rows:
        one.update(row[None])
    many.update(rows)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, many.state_dict()[name])
    torch.testing.assert_close(torch.cat([one(row[None]) for row in rows]), many(rows))
    assert clip is None or one(rows[:1] + 1e6).tolist() == [[clip] * 3]
    assert clip is None or one(rows[:1] - 1e6).tolist() == [[-clip] * 3]


def test_a_copy_and_a_loaded_state_have_statistics_of_their_own() -> None:
    norm, x = RunningNorm((2,)), torch.tensor([[1.0, 2.0]])
    norm.update(x)
    other = copy.deepcopy(norm)
    other.update(x + 4)
    assert norm.mean.tolist() == [1, 2]
    assert other.mean.tolist() == [3, 4]
    norm.load_state_dict(other.state_dict())
    assert norm.double().mean is not other.mean
    torch.testing.assert_close(norm(x), other(x), rtol=0, atol=0)


def test_rewards_of_one_environment_by_numbers_and_by_torch() -> None:
    numbers, tensors = ReturnScaler(1, 0.9, clip=1.2), ReturnScaler(1, 0.9, clip=1.2)
    for reward, ending in 3 * models.normal(60, 2, 1):
        done = ending < -2.5
        found = numbers.update(reward, done)
        expected = tensors.update(reward.clone().requires_grad_(), done)  # which is left to torch
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    for name, value in numbers.state_dict().items():
        torch.testing.assert_close(value, tensors.state_dict()[name])


@pytest.mark.on_cpu
def test_memory_that_is_exchanged_is_noticed() -> None:
    norm, twin = RunningNorm((2,)), RunningNorm((2,))
    for i in range(6):
        x = models.normal(1, 2, seed=i)
        norm.update(x)
        twin.update(x)
        norm.mean.data = norm.mean.data.clone()
        norm.share_memory()
    assert torch.equal(norm.mean, twin.mean)
    assert torch.equal(norm.var, twin.var)
    assert torch.equal(norm(x), twin(x))
