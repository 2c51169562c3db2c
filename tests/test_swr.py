"""Selective weight re-initialisation: the golden step, a naive twin, stochastic rounding, and what is cleared."""

from __future__ import annotations

from typing import Any

import models
import numpy as np
import pytest
import torch
from test_interventions import plain_loop
from torch import nn, optim

from plasticity.interventions import SelectiveReinitialization
from plasticity.interventions.swr import lowest_entries
from plasticity.surgery.laws import Law

pytestmark = pytest.mark.usefixtures("everywhere")


def vector(values: list[float]) -> nn.Module:
    net = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([values]))
    return net


def test_the_golden_step() -> None:
    """Utilities behind the step are (0.09, 0.36, 1.11, 1.84); scored before it, entry 1 would go."""
    net = vector([1.0, 2.0, 4.0, 5.0])
    optimizer = optim.SGD(net.parameters(), 1.0)
    ctx, writer = plain_loop(net, optimizer)
    method = SelectiveReinitialization(every=1, share=0.25, to="mean")
    method.on_train_start(ctx)
    method.origins["net"].laws["weight"] = Law("uniform", (-0.5, 0.5))  # four numbers do not tell it
    net.weight.grad = torch.tensor([[0.9, 0.2, 0.3, 0.4]], dtype=torch.float64)
    optimizer.step()
    assert net.weight[0].tolist() == pytest.approx([0.0, 1.8, 3.7, 4.6])
    assert net.weight.grad.tolist() == [[0.0, 0.2, 0.3, 0.4]]
    assert writer.named("swr")[0]["networks"]["net"]["entries"] == 1


def test_a_weight_that_began_symmetric_goes_to_0_and_a_gain_to_1() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, _ = plain_loop(net, optimizer)
    SelectiveReinitialization(every=1, share=1.0, to="mean", utility="magnitude").on_train_start(ctx)
    with torch.no_grad():
        net[1].weight.fill_(3.0)
    net(models.normal(8, 16)).sum().backward()
    optimizer.step()
    assert not net[0].weight.any()
    assert net[1].weight.tolist() == [1.0] * 32
    assert not net[1].bias.any()


@pytest.mark.parametrize("utility", ["magnitude", "gradient"])
@pytest.mark.parametrize("ema", [0.0, 0.7])
@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_replaced_entries_are_those_of_a_naive_twin(utility: Any, ema: float, threshold: float | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    optimizer = optim.Adam(net.parameters(), 0.05)
    ctx, _ = plain_loop(net, optimizer)
    averages = {name: np.zeros(tuple(p.shape)) for name, p in net.named_parameters()}
    before: dict[str, torch.Tensor] = {}

    def look(*_: Any) -> None:
        for name, p in net.named_parameters():
            now = np.abs((p.detach() * (p.grad if utility == "gradient" else torch.ones_like(p))).cpu().numpy())
            averages[name] = ema * averages[name] + (1 - ema) * now
            before[name] = p.detach().clone()

    optimizer.register_step_post_hook(look)
    SelectiveReinitialization(every=3, share=0.25, threshold=threshold, utility=utility, ema=ema).on_train_start(ctx)
    for step in range(1, 10):
        optimizer.zero_grad()
        net(models.normal(8, 5, seed=step).double()).square().mean().backward()
        optimizer.step()
        for name, p in net.named_parameters():
            changed = (p.detach() != before[name]).cpu().numpy()
            if step % 3:
                assert not changed.any()
                continue
            u = averages[name]
            if threshold is None:  # every size but 2 is divisible by 4; 2 is rounded at random
                lowest = np.argsort(u.flatten(), kind="stable")[: max(1, u.size // 4)]
                expected = np.isin(np.arange(u.size), lowest).reshape(u.shape)
            else:
                expected = u <= threshold * u.mean()
            assert (changed == expected).all() or (u.size == 2 and threshold is None and not changed.any())
            averages[name][changed] = 0
            state = optimizer.state[p]
            assert not state["exp_avg"][torch.as_tensor(changed, device=p.device)].any()


def test_a_fraction_of_an_entry_is_replaced_now_and_then() -> None:
    net = vector([1.0, 2.0, 3.0, 4.0])
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    SelectiveReinitialization(every=1, share=0.1, utility="magnitude").on_train_start(ctx)
    for _ in range(400):
        net.weight.grad = torch.ones_like(net.weight)
        optimizer.step()
    counts = [event["networks"]["net"]["entries"] for event in writer.named("swr")]
    assert set(counts) == {0, 1}
    assert sum(counts) / 400 == pytest.approx(0.4, abs=0.08)


def test_a_utility_that_is_not_finite_replaces_nothing() -> None:
    assert lowest_entries(torch.tensor([[3.0, 1.0], [2.0, 0.5]]), 2).tolist() == [[False, True], [False, True]]
    assert not lowest_entries(torch.tensor([torch.nan, 1.0]), 1).any()


@pytest.mark.parametrize("settings", [{"share": 2.0}, {"threshold": -1.0}, {"ema": 1.0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SelectiveReinitialization needs"):
        SelectiveReinitialization(**settings)
