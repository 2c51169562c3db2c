"""Continuous continual backprop: the share of each neuron, and one step entry by entry."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop
from torch import nn, optim

from plasticity.interventions import ContinuousBackprop
from plasticity.interventions.ccbp import reset_shares

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    """s(0, 0.5, 1, 2)."""
    shares = reset_shares(torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64), 1.0, 16.0)
    expected = [0.99999989, 0.99966465, 0.5, 1.1253516e-7]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-8)


class Constant:
    """An initialiser that draws 7 for weights."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def weight(self, generator: torch.Generator) -> torch.Tensor:
        return torch.full_like(self.module.weight, 7.0)


@pytest.mark.parametrize(("preset", "moments"), [("paper", True), ("official", False)])
def test_a_step_is_that_of_a_naive_twin(preset: Any, moments: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    optimizer = optim.Adam(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    before: dict[str, torch.Tensor] = {}
    averages: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        before.update({name: p.detach().clone() for name, p in net.named_parameters()})
        averages.update({name: optimizer.state[p]["exp_avg"].clone() for name, p in net.named_parameters()})

    optimizer.register_step_post_hook(keep)
    every = 1 if preset == "paper" else 2
    method = ContinuousBackprop(preset=preset, rate=0.2, steepness=3.0, decay=0.5, every=every, moments=moments)
    monkeypatch.setattr(method, "initialiser", lambda network, layer, module: Constant(module))
    method.on_train_start(ctx)
    u, first = torch.ones(5, dtype=torch.float64), net[0].bias.detach().clone()
    for seed in range(4):
        x = models.normal(8, 3, seed=seed).double()
        optimizer.zero_grad()
        h = net[:2](x).detach()
        net(x).square().mean().backward()
        gradients = net[0].weight.grad.abs().mean(1) + net[0].bias.grad.abs()
        optimizer.step()
        now = h.abs().mean(0) if preset == "paper" else gradients
        now = now / now.mean()
        u = 0.5 * u + 0.5 * now
        alpha = 0.2 / (1 + torch.exp(3 * (u - 1))) if (seed + 1) % every == 0 else torch.zeros(5)
        u = u + alpha * (1 - u)
        for i in range(5):
            a = alpha[i].item()
            torch.testing.assert_close(net[0].weight[i], (1 - a) * before["0.weight"][i] + a * 7)
            torch.testing.assert_close(net[0].bias[i], (1 - a) * before["0.bias"][i] + a * first[i])
            torch.testing.assert_close(net[2].weight[:, i], (1 - a) * before["2.weight"][:, i])
            kept = 1 - a if moments else 1.0
            torch.testing.assert_close(optimizer.state[net[0].weight]["exp_avg"][i], kept * averages["0.weight"][i])
        assert torch.equal(net[2].bias, before["2.bias"])
    assert len(writer.named("ccbp")) == 1


def test_a_layer_that_cannot_be_cut_stays() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    net[2].requires_grad_(False)
    optimizer = optim.SGD(net[0].parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    ContinuousBackprop().on_train_start(ctx)
    first = net[0].weight.detach().clone()
    net(models.normal(8, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(net[0].weight, first)
    assert not writer.named("ccbp")
