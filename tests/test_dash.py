"""DASH: the golden rows, kernels slice by slice, and the average of gradients against a loop by hand."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop
from torch import nn, optim

from plasticity.interventions import DASH
from plasticity.interventions.dash import alignment

pytestmark = pytest.mark.usefixtures("everywhere")


def test_golden_numbers() -> None:
    w, g = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    cos = alignment(-g, w, (1,))
    assert cos.flatten().tolist() == pytest.approx([1.0, -0.70710678])
    layer = nn.Linear(2, 2, bias=False)
    method = DASH(alpha=1.0, floor=0.3)
    torch.testing.assert_close(w * method.factors(layer, -g, w), torch.tensor([[1.0, 0.0], [0.3, 0.3]]))


def test_factors_are_of_rows_slices_and_vectors() -> None:
    method = DASH(floor=0.1)
    conv, x = nn.Conv2d(3, 4, 2), models.normal(4, 3, 2, 2)
    factors = method.factors(conv, x, conv.weight.detach()).expand(4, 3, 2, 2)
    for o in range(4):
        for i in range(3):
            a, b = x[o, i].flatten(), conv.weight[o, i].detach().flatten()
            expected = max(0.1, min(1.0, float(a @ b / (a.norm() * b.norm()))))
            assert factors[o, i].flatten().tolist() == pytest.approx([expected] * 4, abs=1e-6)
    bias, direction = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert method.factors(nn.Linear(1, 2), direction, bias).item() == pytest.approx(24 / 25)


def test_weights_shrink_by_their_average_gradient_of_all_steps() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    optimizer = optim.SGD(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    averages = [torch.zeros_like(p) for p in net.parameters()]
    before: list[torch.Tensor] = []

    def by_hand(*_: Any) -> None:
        for average, p in zip(averages, net.parameters(), strict=True):
            average.mul_(0.8).add_(-0.2 * p.grad)
        before[:] = [p.detach().clone() for p in net.parameters()]

    optimizer.register_step_post_hook(by_hand)
    DASH(every=4, alpha=0.2, floor=0.05, clear=False).on_train_start(ctx)
    for step in range(1, 9):
        optimizer.zero_grad()
        net(models.normal(8, 3, seed=step).double()).square().mean().backward()
        optimizer.step()
        for old, p, average in zip(before, net.parameters(), averages, strict=True):
            rows = (old, average) if old.dim() > 1 else (old[None], average[None])
            cos = nn.functional.cosine_similarity(*rows, dim=1).clamp(0.05, 1)
            factor = cos[:, None] if old.dim() > 1 else cos
            torch.testing.assert_close(p.detach(), old if step % 4 else old * factor)
        if step % 4 == 0:
            averages = [torch.zeros_like(p) for p in net.parameters()]
    assert len(writer.named("dash")) == 2


def test_norms_and_moments_stay() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))
    optimizer = optim.Adam(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    before: dict[str, torch.Tensor] = {}
    optimizer.register_step_post_hook(
        lambda *_: before.update({n: p.detach().clone() for n, p in net.named_parameters()})
    )
    DASH(every=1).on_train_start(ctx)
    net(models.normal(8, 3)).square().mean().backward()
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert all(state["exp_avg"].any() for state in optimizer.state.values())
    assert writer.named("dash")[0]["networks"]["net"]["tensors"] == 4


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"floor": 1.5}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="DASH needs"):
        DASH(**settings)
