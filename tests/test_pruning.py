"""Gradual magnitude pruning and static sparse training, the presets gmp and static of ne; BBF's shrink and perturb."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from test_interventions import Check, assert_masked, plain_loop, run_sac
from torch import nn, optim

from plasticity.callback import Context
from plasticity.interventions import NeuroplasticExpansion, ShrinkPerturb
from plasticity.interventions.topology import erdos_renyi, pruned_share

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    found = [0.95 * pruned_share(step, 0, 100) for step in (0, 25, 50, 100)]
    assert found == pytest.approx([0, 0.549219, 0.83125, 0.95], abs=1e-6)
    assert pruned_share(10, 20, 40) == 0.0
    assert pruned_share(50, 20, 40) == 1.0


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2))


def test_the_smallest_weights_go_by_the_schedule_and_never_come_back() -> None:
    net = mlp()
    optimizer = optim.Adam(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    weights = [net[0].weight, net[2].weight, net[4].weight]
    previous = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    stepped: list[torch.Tensor] = []
    optimizer.register_step_post_hook(
        lambda *_: stepped.__setitem__(slice(None), [w.detach().clone() for w in weights])
    )
    method = NeuroplasticExpansion("gmp", final_density=0.2, begin=4, end=20, every=2)
    method.on_train_start(ctx)
    last = erdos_renyi([tuple(w.shape) for w in weights], 0.2)
    for step in range(1, 31):
        optimizer.zero_grad()
        net(models.normal(16, 4, seed=step)).square().mean().backward()
        optimizer.step()
        for i, weight in enumerate(weights):
            alive = method._masks["net"][weight]
            assert not (alive & ~previous[i]).any()
            due = step - step % 2
            density = 1 + (last[i] - 1) * pruned_share(due, 4, 20)
            assert int(alive.sum()) == round(density * weight.numel()), step
            gone, kept = stepped[i][previous[i] & ~alive].abs(), stepped[i][alive].abs()
            assert not len(gone) or gone.max() <= kept.min()
            previous[i] = alive.clone()
    assert sum(event["pruned"] for event in writer.named("ne")) == sum(int((~p).sum()) for p in previous)


@pytest.mark.slow_off_the_cpu
def test_static_masks_never_change() -> None:
    method = NeuroplasticExpansion("static", initial_density=0.3, every=1, networks=("critic_1",))
    masks: list[list[torch.Tensor]] = []

    def look(ctx: Context) -> None:
        assert_masked(method, ctx)
        masks.append([method._masks["critic_1"][w].clone() for w in method._masks["critic_1"]])

    run_sac([method, Check(look)], steps=50)
    assert len(masks) > 10
    assert all(torch.equal(a, b) for a, b in zip(masks[0], masks[-1], strict=True))
    shapes = [tuple(mask.shape) for mask in masks[0]]
    for mask, density in zip(masks[0], erdos_renyi(shapes, 0.3), strict=True):
        assert int(mask.sum()) == round(density * mask.numel())


@pytest.mark.parametrize(
    "settings",
    [{"initial_density": 0.9, "final_density": 0.5}, {"preset": "gmp", "begin": 500_000}, {"initial_density": 0.0}],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="NeuroplasticExpansion needs"):
        NeuroplasticExpansion(**settings)


def test_bbf_shrinks_the_encoder_and_redraws_the_heads() -> None:
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, _ = plain_loop(net, optimizer)
    method = ShrinkPerturb(preset="bbf", every=2)
    assert method.layers == 2
    method.on_train_start(ctx)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(10.0)
    for step in range(2):
        net(models.normal(8, 4, seed=step)).sum().backward()
        optimizer.step()
    assert (net[0].weight - 5).abs().max() <= 0.25 + 1e-6  # half of the old weight, half of U(-0.5, 0.5)
    for layer in (net[2], net[4]):
        assert layer.weight.abs().max() <= 20**-0.5 + 1e-6
