"""Hare and Tortoise: the average against a loop by hand, what it touches, and its way through a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_interventions import plain_loop, run_sac
from torch import nn, optim

from plasticity.callback import Callback, Context
from plasticity.interventions import HareTortoise
from plasticity.interventions.anchors import Anchors

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_number() -> None:
    anchors = Anchors({"net": {"w": torch.tensor([1.0], dtype=torch.float64)}})
    anchors.follow_("net", {"w": torch.tensor([2.0], dtype=torch.float64)}, 1 - 0.999)
    assert anchors["net"]["w"].item() == pytest.approx(1.001, abs=1e-12)


def test_the_weights_become_their_own_average_and_the_optimizer_stays() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = optim.Adam(net.parameters(), 0.05)
    slow = [p.detach().clone() for p in net.parameters()]
    ctx, writer = plain_loop(net, optimizer)
    moments: list[Any] = []

    def by_hand(*_: Any) -> None:
        for average, p in zip(slow, net.parameters(), strict=True):
            average.mul_(0.7).add_(p.detach(), alpha=0.3)
        moments[:] = copy.deepcopy(list(optimizer.state.values()))

    optimizer.register_step_post_hook(by_hand)
    HareTortoise(every=5, momentum=0.7).on_train_start(ctx)
    for step in range(1, 11):
        optimizer.zero_grad()
        net(torch.ones(2, 3) * step).square().mean().backward()
        optimizer.step()
        same = [torch.allclose(p, s) for p, s in zip(net.parameters(), slow, strict=True)]
        assert all(same) == (step % 5 == 0)
    assert str(moments) == str(list(optimizer.state.values()))
    assert writer.scalars["interventions/hare_tortoise/parameters_added"] == [21.0, 21.0]
    assert [event["applications"] for event in writer.named("hare_tortoise")] == [1, 1]


@pytest.mark.slow_off_the_cpu
def test_momentum_1_goes_back_to_the_first_weights_and_0_changes_nothing() -> None:
    agent, _, _ = run_sac([HareTortoise(every=1, clock="updates", momentum=1.0, networks=("critic*",))], steps=30)
    first, _, _ = run_sac([], steps=8)  # no update yet
    for p, q in zip(agent.networks["critic_1"].parameters(), first.networks["critic_1"].parameters(), strict=True):
        assert torch.equal(p, q)
    one, _, _ = run_sac([HareTortoise(every=1, clock="updates", momentum=0.0)], steps=30)
    plain, _, _ = run_sac([], steps=30)
    for p, q in zip(one.networks["actor"].parameters(), plain.networks["actor"].parameters(), strict=True):
        assert torch.equal(p, q)


class Add(Callback):
    """A method that adds a layer to a network when training goes on."""

    def restructure(self, ctx: Context, state: Any) -> None:
        ctx.networks["net"].add_module("late", nn.Linear(1, 1))
        ctx.optimizers["net"].add_param_group({"params": ctx.networks["net"].late.parameters()})


def test_parameters_without_an_average_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 1))
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, _ = plain_loop(net, optimizer)
    method = HareTortoise(every=2)
    method.on_train_start(ctx)
    Add().restructure(ctx, None)
    late = net.late.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert method.counts == {"applications": 1}
    assert not torch.equal(net.late.weight, late)
