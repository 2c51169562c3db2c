"""DrM: golden numbers, the dormant ratio by numpy, what is perturbed, and the exploration of TD3."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_interventions import plain_loop, run_sac
from torch import Tensor, nn, optim

from plasticity.interventions import DormantMinimization
from plasticity.interventions.drm import dormant_outputs, exploration_scale, perturb_factor

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    ratios = (0.0, 0.2, 0.5, 1.0)
    scales = [exploration_scale(b, 0.2, 10.0) for b in ratios]
    assert scales == pytest.approx([0.119203, 0.5, 0.952574, 0.999665], abs=1e-6)
    assert [perturb_factor(b, 2.0, 0.2, 0.9) for b in ratios] == pytest.approx([0.9, 0.6, 0.2, 0.2])


def test_the_ratio_is_of_linear_outputs_the_output_layer_included() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5))
    with torch.no_grad():
        for layer, rows in ((net[0], 7), (net[2], 4), (net[4], 1)):
            layer.weight[:rows] = 1e-6
            layer.bias[:rows] = 0
    x, dormant, total = torch.randn(50, 4), 0, 0
    h = x
    for layer in (net[0], net[2], net[4]):
        z = layer(h).detach()
        mean = np.abs(z.cpu().numpy()).mean(0)
        dormant, total = dormant + int((mean < 0.025 * mean.mean()).sum()), total + len(mean)
        h = z.relu()
    assert dormant >= 12
    assert dormant_outputs(net, lambda: net(x), 0.025) == dormant / total
    assert not any(m._forward_hooks for m in net.modules())


def loop(net: nn.Module, **lent: Any) -> Any:
    ctx, writer = plain_loop(net, optim.Adam(net.parameters()))
    ctx.peek = lambda num, generator: SimpleNamespace(obs=torch.randn(num, 4))
    ctx.forward = {"net": lambda module, batch: module(batch.obs)}
    for name, value in lent.items():
        setattr(ctx, name, value)
    return ctx, writer


def test_linear_layers_are_mixed_with_fresh_ones_by_the_ratio() -> None:
    net = nn.Sequential(nn.Linear(4, 400), nn.LayerNorm(400), nn.ReLU(), nn.Linear(400, 400))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[1].weight.fill_(5.0)
    scales: list[float] = []
    ctx, writer = loop(net, set_noise=scales.append)
    method = DormantMinimization(every=1, clock="updates", high=0.7, measure_every=100)
    method.on_train_start(ctx)
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}
    method.on_update_end(ctx, {})
    factor = writer.named("drm")[0]["networks"]["net"]["factor"]
    assert factor == perturb_factor(method.ratio or 0.0, 2.0, 0.2, 0.7)
    noise = (net[3].weight - factor * before["3.weight"]) / (1 - factor)
    assert noise.abs().max() <= 0.05 * 1.001  # 1 / sqrt(400)
    assert noise.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert torch.equal(net[1].weight, before["1.weight"])
    assert scales == [exploration_scale(method.ratio or 0.0, 0.2, 10.0)]
    assert [event["dormant_outputs"] for event in writer.named("drm_awake")] == [method.ratio]


def test_a_run_without_past_transitions_is_refused() -> None:
    net = nn.Linear(4, 2)
    ctx, _ = plain_loop(net, optim.SGD(net.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"DormantMinimization needs past transitions to look at, Context\.peek"):
        DormantMinimization(every=1).on_train_start(ctx)


@pytest.mark.slow_off_the_cpu
def test_sac_without_exploration_noise_is_perturbed_all_the_same() -> None:
    _, _, writer = run_sac([DormantMinimization(every=8, clock="updates", measure_every=4, batch_size=8)], steps=50)
    assert writer.named("drm")
    assert len(writer.scalars["interventions/drm/actor/dormant_outputs"]) > len(writer.named("drm"))
