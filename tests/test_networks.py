"""Closed forms of the policy's density, and the shape of the networks that probes attach to."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from plasticity.agents.networks import Actor, Critic, mlp, squashed_gaussian


def test_log_prob_equals_torch_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = torch.randn(3, 64, 3, generator=generator, dtype=torch.float64).mul(0.5)
    action, log_prob = squashed_gaussian(mean, log_std, noise)
    policy = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    expected = policy.log_prob(torch.tanh(mean + log_std.exp() * noise)).sum(-1)
    torch.testing.assert_close(log_prob, expected, rtol=0, atol=1e-3)  # 3 log(1 + 1e-6 / (1 - a^2)) at |u| <= 4
    inner = (action.abs() < 0.9).all(-1)
    assert inner.sum() > 20
    torch.testing.assert_close(log_prob[inner], expected[inner], rtol=0, atol=2e-5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4), (-1.0, 0.8)])
def test_density_integrates_to_one_and_gives_the_mean_action(mean: float, std: float) -> None:
    noise = torch.linspace(-8, 8, 40_001, dtype=torch.float64).unsqueeze(-1)
    parameters = torch.full_like(noise, mean), torch.full_like(noise, math.log(std))
    action, log_prob = squashed_gaussian(*parameters, noise)
    assert torch.trapezoid(log_prob.exp(), action[:, 0]) == pytest.approx(1, abs=1e-4)
    mean_action = torch.trapezoid(log_prob.exp() * action[:, 0], action[:, 0])
    normal = torch.exp(Normal(0.0, 1.0).log_prob(noise[:, 0]))
    assert mean_action == pytest.approx(torch.trapezoid(normal * action[:, 0], noise[:, 0]).item(), abs=1e-4)


def test_log_prob_by_hand() -> None:
    # u = 0.5 + 2 * 0.25 = 1; log N = -0.25^2/2 - log 2 - log(2 pi)/2; 1 - tanh(1)^2 = 0.41997
    action, log_prob = squashed_gaussian(torch.tensor([[0.5]]), torch.tensor([[math.log(2)]]), torch.tensor([[0.25]]))
    assert action.item() == pytest.approx(0.761594)
    assert log_prob.item() == pytest.approx(-0.03125 - 0.693147 - 0.918939 - math.log(0.419974), abs=1e-5)


def test_saturated_policy_has_finite_log_prob_and_gradients() -> None:
    mean = torch.tensor([[40.0, -40.0]], requires_grad=True)
    _, log_prob = squashed_gaussian(mean, torch.full((1, 2), 2.0), torch.ones(1, 2))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


def test_mlp_is_made_of_modules_that_hooks_see() -> None:
    assert [type(m) for m in mlp(4, (8, 6), 2)] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [type(m) for m in mlp(4, (8,))] == [nn.Linear, nn.ReLU]
    assert [tuple(m.weight.shape) for m in mlp(4, (8, 6), 2) if isinstance(m, nn.Linear)] == [(8, 4), (6, 8), (2, 6)]
    assert list(mlp(4, ())) == []
    names = {name for name, module in Critic(4, 2, (8, 8)).named_modules() if isinstance(module, nn.Linear | nn.ReLU)}
    assert names == {"q.0", "q.1", "q.2", "q.3", "q.4"}
    names = {name for name, module in Actor(4, 2, (8,)).named_modules() if isinstance(module, nn.Linear | nn.ReLU)}
    assert names == {"trunk.0", "trunk.1", "mean", "log_std"}


def test_shapes_and_bounds_of_log_std() -> None:
    actor, critic = Actor(4, 2, (8,)), Critic(4, 2, (8,))
    assert critic(torch.zeros(5, 4), torch.zeros(5, 2)).shape == (5,)
    with torch.no_grad():
        actor.log_std.bias.copy_(torch.tensor([-100.0, 100.0]))
    mean, log_std = actor(torch.zeros(5, 4))
    assert mean.shape == (5, 2)
    torch.testing.assert_close(log_std, torch.tensor([[-20.0, 2.0]]).expand(5, 2))


def test_actor_without_hidden_layers_is_linear() -> None:
    actor = Actor(4, 2, ())
    obs = torch.randn(3, 4)
    torch.testing.assert_close(actor(obs)[0], actor.mean(obs))
