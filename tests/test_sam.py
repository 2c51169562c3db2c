"""SAM, spectral normalisation and re-warming: by hand, against naive implementations, eager and compiled."""

from __future__ import annotations

import copy
from typing import Any

import models
import pytest
import torch
from test_interventions import run_sac, small_sac, weights
from torch import nn, optim
from torch.nn.utils.parametrizations import spectral_norm

from plasticity.agents.gradient import GradientStep
from plasticity.callback import Context
from plasticity.interventions import SAM, HareTortoise, Rewarm, SpectralNormalization
from plasticity.interventions.sam import climb_

pytestmark = pytest.mark.usefixtures("everywhere")


def stepping(network: nn.Module, loss: Any, lr: float = 0.1) -> tuple[Context, Any]:
    networks, optimizers = {"net": network}, {"net": optim.SGD(network.parameters(), lr)}
    step = GradientStep(loss, [networks], optimizers, "net", compile="off")
    return Context(networks, optimizers, steps={"net": step}), step


def test_sam_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    ctx, step = stepping(network, lambda batch: (network.weight.square().sum(), {}))
    method = SAM(rho=0.1)
    method.on_train_start(ctx)
    ctx.steps["net"](torch.zeros(1), updates=0)
    assert network.weight.grad is not None
    assert network.weight.grad.item() == pytest.approx(2.2)  # at 1.1
    assert network.weight.item() == pytest.approx(1 - 0.1 * 2.2)  # and taken from 1
    assert method.measured({}) == {"net/sharpness": pytest.approx(0.2)}
    ctx.steps["net"].max_norm = 3.0
    assert step.max_norm == 3.0  # it is the step's
    method.on_train_end(ctx)
    assert ctx.steps["net"] is step


def test_climbing_by_hand() -> None:
    parameters = [torch.zeros(1), torch.ones(1), torch.zeros(2)]
    assert climb_(parameters, [torch.tensor([3.0]), torch.tensor([4.0]), torch.zeros(2)], 0.5).item() == 5
    torch.testing.assert_close(torch.cat(parameters), torch.tensor([0.3, 1.4, 0.0, 0.0]))
    climb_(parameters, [torch.zeros(1), torch.zeros(1), torch.zeros(2)], 0.5)
    assert torch.cat(parameters).isfinite().all()


def test_sam_against_a_naive_implementation() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    twin = copy.deepcopy(net)
    optimizer = optim.SGD(twin.parameters(), 0.1)
    ctx, _ = stepping(net, lambda batch: ((net(batch) - 1).square().mean(), {}))
    SAM(rho=0.2, only=("0.*",)).on_train_start(ctx)
    for seed in range(4):
        x = models.normal(8, 3, seed=seed)
        ctx.steps["net"](x, updates=seed)
        (twin(x) - 1).square().mean().backward()
        moved = [twin[0].weight, twin[0].bias]
        norm = torch.cat([p.grad.flatten() for p in moved]).norm()
        shift = [0.2 * p.grad / norm for p in moved]
        optimizer.zero_grad()
        for sign in (1, -1):
            with torch.no_grad():
                for p, s in zip(moved, shift, strict=True):
                    p += sign * s
            if sign == 1:
                (twin(x) - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for a, b in zip(net.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_spectral_normalisation_is_pytorchs_once_the_vectors_have_converged() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    theirs = copy.deepcopy(net)
    method, optimizer = SpectralNormalization(networks=()), optim.SGD(net.parameters(), 0.0)
    ctx = Context({"net": net}, {"net": optimizer})
    parameters = list(net.parameters())
    method.restructure(ctx, None)
    assert {id(p) for p in net.parameters()} == {id(p) for p in parameters}  # the optimizer's, still
    method.on_train_start(ctx)
    x = models.normal(3, 4)
    for _ in range(300):
        optimizer.step()
    spectral_norm(theirs[2], n_power_iterations=300)
    theirs.eval()
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert torch.linalg.svdvals(net[2].weight.detach())[0].item() == pytest.approx(1.0, rel=1e-4)
    assert method.measured({})["net/sigma"] == pytest.approx(
        torch.linalg.svdvals(parameters[2].detach())[0].item(), 1e-4
    )
    with pytest.raises(ValueError, match="SpectralNormalization finds no layer 7; there are 0, 2, 4"):
        SpectralNormalization(networks=(), layers=("7",)).restructure(Context({"net": copy.deepcopy(theirs)}), None)


def moves(methods: list[Rewarm | HareTortoise], steps: int, events: bool) -> tuple[list[float], optim.SGD]:
    """Return how far a weight moves in each of some steps of a gradient and a rate of 1, and the optimizer."""
    weight = nn.Linear(1, 1, bias=False)
    optimizer = optim.SGD(weight.parameters(), 1.0)
    ctx = Context({"net": weight}, {"net": optimizer})
    for method in methods:
        method.on_train_start(ctx)
    moved = []
    for _ in range(steps):
        before = weight.weight.item()
        weight.weight.grad = torch.ones(1, 1)
        optimizer.step()
        moved.append(before - weight.weight.item())
        assert optimizer.param_groups[0]["lr"] == 1.0
        for method in methods if events else ():
            method.on_update_end(ctx, {})
    return moved, optimizer


def test_rewarming_by_hand() -> None:
    moved, optimizer = moves([Rewarm(at=(2,), clock="gradient_steps", steps=4)], 8, events=True)
    assert moved == pytest.approx([1, 1, 0.25, 0.5, 0.75, 1, 1, 1], abs=1e-5)
    assert not optimizer._optimizer_step_pre_hooks  # fast again


def test_rewarming_in_a_loop_without_events_beside_a_method_behind_it() -> None:
    behind = HareTortoise(at=(100,), clock="gradient_steps")
    moved, _ = moves([Rewarm(at=(2, 4, 8), clock="gradient_steps", steps=3), behind], 12, events=False)
    assert moved == pytest.approx([1, 1, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1, 1, 1 / 3, 2 / 3, 1, 1], abs=1e-5)


@pytest.mark.parametrize("events", [True, False])
def test_two_rewarm_one_optimizer_by_the_product_of_their_shares(events: bool) -> None:
    methods = [Rewarm(at=(2,), clock="gradient_steps", steps=4), Rewarm(at=(3,), clock="gradient_steps", steps=2)]
    moved, _ = moves([*methods], 8, events)  # moves() sees that the rate is whole behind every step
    one, other = [1, 1, 0.25, 0.5, 0.75, 1, 1, 1], [1, 1, 1, 0.5, 1, 1, 1, 1]
    assert moved == pytest.approx([a * b for a, b in zip(one, other, strict=True)], abs=1e-5)


@pytest.mark.on_real_devices
@pytest.mark.usefixtures("as_traced")
def test_eager_and_compiled_updates_end_alike() -> None:
    ends = {}
    for compile in ("off", "on"):
        agent = small_sac()
        for step in agent.steps.values():
            step.compile = compile
        methods = [
            SAM(rho=0.01, log_every=2),
            SpectralNormalization(log_every=2),
            Rewarm(every=5, clock="updates", steps=3),
        ]
        agent, _, writer = run_sac(methods, agent=agent, steps=40)
        ends[compile] = weights(agent)
        assert bool(agent.steps["critic"]._graphs) == (compile == "on")
        assert writer.scalars["interventions/sam/critic/sharpness"]
    for key, value in ends["off"].items():
        torch.testing.assert_close(ends["on"][key], value, rtol=1e-2, atol=1e-3)
