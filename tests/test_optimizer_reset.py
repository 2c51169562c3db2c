"""Optimizer reset: the length of Adam's first step after it, by hand and by torch's own, and when it is applied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_interventions import Recorder, plain_loop, run_sac
from torch import nn, optim

from plasticity.callback import Callback, Context
from plasticity.interventions import OptimizerReset

pytestmark = pytest.mark.usefixtures("everywhere")


def steady(optimizer: optim.Optimizer, weight: nn.Parameter, steps: int) -> float:
    """Step on a gradient of 1 and return the length of the last step."""
    before = 0.0
    for _ in range(steps):
        before = weight.item()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return before - weight.item()


@pytest.mark.parametrize(("after", "factor"), [(1, 0.316228), (1000, 0.795176)])
@pytest.mark.slow_off_the_cpu
def test_adamrel_shortens_the_first_steps_as_in_the_closed_form(after: int, factor: float) -> None:
    """sqrt(1 - b2^t) / (1 - b1^t) times the length of a step with old moments, t steps after the reset."""
    assert (1 - 0.999**after) ** 0.5 / (1 - 0.9**after) == pytest.approx(factor, abs=1e-6)
    net = nn.Module()
    net.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optim.Adam(net.parameters(), 1e-3, eps=0.0)
    method = OptimizerReset(preset="adamrel", at=(20_000,), clock="gradient_steps")
    method.on_train_start(Context({"net": net}, {"net": optimizer}))
    steady(optimizer, net.w, 20_000)  # both averages are 1 now
    assert optimizer.state[net.w]["step"].item() == 0
    assert optimizer.state[net.w]["exp_avg"].item() == pytest.approx(1.0)
    assert steady(optimizer, net.w, after) == pytest.approx(1e-3 * factor, rel=1e-5)


@pytest.mark.parametrize("what", ["all", "moments", "step"])
def test_only_the_part_named_is_reset_and_weights_and_gradients_stay(what: Any) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = optim.Adam(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    seen: dict[str, Any] = {}
    optimizer.register_step_post_hook(
        lambda *_: seen.update(weight=net.weight.clone(), grad=net.weight.grad.clone(), state=str(optimizer.state))
    )
    OptimizerReset(what=what, every=3).on_train_start(ctx)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    state = optimizer.state[net.weight]
    assert torch.equal(net.weight, seen["weight"])
    assert torch.equal(net.weight.grad, seen["grad"])
    assert state["step"].item() == (3 if what == "moments" else 0)
    assert bool(state["exp_avg"].any()) == bool(state["exp_avg_sq"].any()) == (what == "step")
    assert [event["tensors"] for event in writer.named("optimizer_reset")] == [2]


def test_adamrel_acts_before_the_first_update_on_new_data_and_never_else() -> None:
    counters: list[list[float]] = []

    class Look(Callback):
        def on_update_start(self, ctx: Context) -> None:
            optimizer = ctx.optimizers["critic"]
            counters.append([float(s["step"]) for s in optimizer.state.values()][:1])

    writer: Recorder
    _, _, writer = run_sac([OptimizerReset(preset="adamrel"), Look()], steps=40, updates_per_step=1.5)
    steps = [int(c[0]) for c in counters if c]
    assert set(steps) == {0, 1, 2}  # two environments: three updates on two transitions
    assert steps == [(i + 1) % 3 for i in range(len(steps))]
    assert len(writer.named("optimizer_reset")) == 1


def test_a_loop_without_events_has_no_rollouts() -> None:
    net = nn.Linear(1, 1)
    optimizer = optim.Adam(net.parameters())
    OptimizerReset(preset="adamrel").on_train_start(Context({"net": net}, {"net": optimizer}))
    with pytest.raises(ValueError, match=r"counts rollouts.*fire on_step and on_update_start"):
        steady_many(net, optimizer)


def steady_many(net: nn.Module, optimizer: optim.Optimizer) -> None:
    for _ in range(101):
        net(torch.ones(1, 1)).sum().backward()
        optimizer.step()
