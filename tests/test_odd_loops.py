"""Methods in a user's loop with odd networks: several optimizers, bfloat16 weights, stacked weights, a single layer."""

from __future__ import annotations

import copy
from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop
from torch import Tensor, nn, optim

from plasticity.agents.gradient import GradientStep
from plasticity.agents.replay import Batch
from plasticity.callback import Context, end, fire, start
from plasticity.interventions import (
    FeatureNormPenalty,
    InFeR,
    Intervention,
    NeuroplasticExpansion,
    Parseval,
    PlasticityInjection,
    ProximalFeatures,
    ReBorn,
)
from plasticity.interventions.intervention import never_acted

pytestmark = [pytest.mark.usefixtures("everywhere"), pytest.mark.on_real_devices]


class Ensemble(nn.Module):
    """Three networks whose weights are stacked, behind a layer that they share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.w1, self.w2 = (nn.Parameter(torch.randn(3, a, b) / 3) for a, b in ((6, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bi,kij->kbj", self.first(x).relu(), self.w1).relu()
        return torch.einsum("kbj,kjo->kbo", h, self.w2).mean(0)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def step(net: nn.Module, optimizers: list[optim.Optimizer], seed: int) -> None:
    x = models.normal(12, 4, seed=seed).to(next(net.parameters()).dtype)
    for optimizer in optimizers:
        optimizer.zero_grad()
    (net(x) - 1).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


# -- several optimizers ------------------------------------------------------------------------------------------------


def split_run() -> tuple[nn.Sequential, list[optim.Optimizer], Context, NeuroplasticExpansion]:
    torch.manual_seed(0)
    net = mlp()
    optimizers: list[optim.Optimizer] = [
        optim.Adam(net[:2].parameters(), 0.01),
        optim.SGD(net[2:].parameters(), 0.05, 0.9),
    ]
    ctx = Context({"net": net}, dict(zip("ab", optimizers, strict=True)))
    method = NeuroplasticExpansion("rigl", initial_density=0.4, every=3, end=60)
    return net, optimizers, ctx, method


def test_connections_grow_by_the_gradients_of_every_optimizer_that_trains_a_network() -> None:
    net, optimizers, ctx, method = split_run()
    start([method], ctx)
    number = 0
    for seed in range(1, 13):
        masks = {} if seed == 1 else {i: ctx.connections(net[i].weight) for i in (2, 4)}
        dense: dict[int, Tensor] = {}
        for optimizer in optimizers:
            optimizer.zero_grad()
        (net(models.normal(12, 4, seed=seed)) - 1).square().mean().backward()
        dense = {i: net[i].weight.grad.abs().clone() for i in (2, 4)}
        for optimizer in optimizers:
            optimizer.step()
        if seed % 3 == 0:
            for i, before in masks.items():
                now = ctx.connections(net[i].weight)
                assert now is not None
                assert before is not None
                grown, free = now & ~before, ~(now | before)
                number += int(grown.sum())
                assert not grown.any() or dense[i][grown].min() >= dense[i][free].max()
    assert number >= 5


def test_a_network_of_two_optimizers_is_resumed_to_the_bit() -> None:
    net, optimizers, ctx, method = split_run()
    start([method], ctx)
    for seed in range(16):
        if seed == 8:
            saved = copy.deepcopy([net.state_dict(), [o.state_dict() for o in optimizers], method.state_dict()])
        step(net, optimizers, seed)
    again, others, resumed, other = split_run()

    def load() -> None:
        again.load_state_dict(saved[0])
        for optimizer, state in zip(others, saved[1], strict=True):
            optimizer.load_state_dict(state)

    start([other], resumed, [saved[2]], load)
    for seed in range(8, 16):
        step(again, others, seed)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("first", [True, False])
def test_a_head_is_injected_into_a_sparse_network_within_a_step(first: bool) -> None:
    torch.manual_seed(0)
    net = mlp()
    optimizer = optim.Adam(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    sparse = NeuroplasticExpansion("static", initial_density=0.5)
    injection = PlasticityInjection(at=(3,), clock="gradient_steps")
    start([sparse, injection] if first else [injection, sparse], ctx)
    for seed in range(6):
        step(net, [optimizer], seed)
    assert writer.named("plasticity_injection")
    released = {layer for event in writer.named("ne_released") for layer in event["layers"]}
    kept = [la for la in ("0", "2", "4") if la not in released and isinstance(net[int(la)], nn.Linear)]
    for layer in kept:
        mask = ctx.connections(net[int(layer)].weight)
        assert mask is None or not net[int(layer)].weight[~mask].any()
    end([sparse, injection], ctx)


# -- weights of another type, or stacked ones --------------------------------------------------------------------------


def test_neurons_of_bfloat16_are_split() -> None:
    torch.manual_seed(0)
    net = mlp().bfloat16()
    optimizer = optim.Adam(net.parameters(), 0.01)
    ctx, writer = plain_loop(net, optimizer)
    start([ReBorn(every=1, threshold=0.9, active=1.02)], ctx)
    for seed in range(4):
        step(net, [optimizer], seed)
    assert writer.named("reborn")
    assert all(p.isfinite().all() for p in net.parameters())


def with_step(net: nn.Module, method: Intervention) -> Context:
    optimizers = {"net": optim.Adam(net.parameters(), 0.01)}
    dtype = next(net.parameters()).dtype

    def forward(module: nn.Module, batch: Any) -> Tensor:
        return module(batch.obs.to(dtype))

    def loss(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return (forward(net, batch) - 1).square().mean(), {}

    ctx = Context({"net": net}, optimizers, forward={"net": forward}, peek=lambda num, generator: batch(num))
    ctx.steps = {"net": GradientStep(loss, [ctx.networks], optimizers, "net", compile="off")}
    start([method], ctx)
    for updates in range(3):
        fire([method], "on_update_start", ctx)
        ctx.steps["net"](batch(8, updates), updates=updates)
        fire([method], "on_update_end", ctx, {})
    return ctx


def batch(num: int, seed: int = 0) -> Batch:
    x, rest = models.normal(num, 4, seed=seed), torch.zeros(num)
    return Batch(x, torch.zeros(num, 1), rest, x, rest.bool(), rest.long(), rest.long())


def test_heads_are_of_the_type_of_the_network() -> None:
    method = InFeR(networks=("net",), heads=2)
    with_step(mlp().bfloat16(), method)
    assert method.made["net"].weight.dtype == torch.bfloat16


def test_stacked_weights_are_penalised_and_their_features_are_refused_in_words() -> None:
    torch.manual_seed(0)
    net = Ensemble()
    ctx = with_step(net, Parseval(coef=0.1))
    assert set(ctx.steps["net"].terms) == {"parseval_net"}
    with pytest.raises((ValueError, RuntimeError), match=r"features of .*w2.* cannot be penalised: these are parts"):
        with_step(Ensemble(), FeatureNormPenalty())


def test_a_network_without_hidden_layers_has_nothing_to_make_orthogonal_and_the_end_says_so() -> None:
    net = nn.Linear(4, 2)
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, _ = plain_loop(net, optimizer)
    method = Parseval()
    start([method], ctx)
    before = net.weight.detach().clone()
    step(net, [optimizer], 0)
    assert net.weight.grad is not None
    torch.testing.assert_close(net.weight.detach(), before - 0.1 * net.weight.grad)
    assert never_acted({"parseval": method}) == {"parseval": "no hidden layer has as many inputs as neurons, or more"}
    with pytest.raises((ValueError, RuntimeError), match="ProximalFeatures finds no hidden layer in net"):
        with_step(nn.Linear(4, 2), ProximalFeatures(networks=("net",)))
