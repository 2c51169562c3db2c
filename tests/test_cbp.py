"""Continual backprop: golden numbers, a peer's test, a naive twin of ten steps, and the transfer to biases."""

from __future__ import annotations

import copy
from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop, run_sac
from torch import Tensor, nn, optim

from plasticity.interventions import ContinualBackprop
from plasticity.interventions.cbp import contribution
from plasticity.structure.trace import wiring
from plasticity.surgery.unit_weights import incoming_magnitude, outgoing_magnitude, transfer_to_biases_

pytestmark = pytest.mark.usefixtures("everywhere")

H = torch.tensor([[1.0, -4.0], [3.0, 0.0]], dtype=torch.float64)


def golden_net() -> nn.Sequential:
    """Two hidden neurons with the golden weights, linear, so that activations are what is put in."""
    net = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(1.0), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        net[2].weight.copy_(torch.tensor([[2.0, -1.0], [0.0, 1.0]]))
        net[0].bias.zero_()
        net[2].bias.zero_()
    return net


def utility(kind: str, magnitude: Tensor, *others: Tensor) -> Tensor:
    """The utility made of a magnitude, and of deviation, outgoing and incoming weights; a draw is not asked for."""
    deviation, outgoing, incoming = ((lambda known=known: known) for known in others)
    return contribution(kind, magnitude, deviation, outgoing, incoming, lambda: pytest.fail("drawn"))


@pytest.mark.on_cpu  # numbers on the host
def test_golden_numbers_of_utilities() -> None:
    net = golden_net()
    wired = wiring(net, models.normal(2, 2))
    layer = wired.layers["0"]
    mean, total = outgoing_magnitude(wired, layer), outgoing_magnitude(wired, layer, "sum")
    assert mean.tolist() == [1.0, 1.0]
    assert total.tolist() == [2.0, 2.0]
    assert incoming_magnitude(layer).tolist() == [1.0, 1.0]
    magnitude, f = H.abs().mean(0), torch.zeros(2, dtype=torch.float64)
    u = {"mean": torch.zeros(2, dtype=torch.float64), "sum": torch.zeros(2, dtype=torch.float64)}
    for _ in range(2):
        f = 0.5 * f + 0.5 * H.mean(0)
        for name, outgoing in (("mean", mean), ("sum", total)):
            u[name] = 0.5 * u[name] + 0.5 * utility("contribution", magnitude, f, outgoing, mean)
    assert u["mean"].tolist() == [1.5, 1.5]
    assert u["sum"].tolist() == [3.0, 3.0]
    assert (u["sum"] / (1 - 0.5**2)).tolist() == [4.0, 4.0]
    mean_h = f / (1 - 0.5**2)
    assert mean_h.tolist() == [2.0, -2.0]
    deviation = (H - mean_h).abs().mean(0)
    for kind in ("zero_contribution", "adaptable_contribution"):
        assert utility(kind, magnitude, deviation, mean, incoming_magnitude(layer)).tolist() == [1.0, 2.0]
    assert utility("feature_by_input", magnitude, deviation, mean, mean).tolist() == [1.0, 2.0]
    assert utility("adaptation", magnitude, deviation, mean, 2 * mean).tolist() == [0.5, 0.5]
    assert utility("weight", magnitude, deviation, mean, mean).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("unit", "given"), [(0, [4.0, 0.0]), (1, [2.0, -2.0])])
def test_golden_numbers_of_the_transfer(unit: int, given: list[float]) -> None:
    """The released code zeroes the means first, and gives [0, 0]."""
    net = golden_net()
    wired = wiring(net, models.normal(2, 2))
    mask = torch.zeros(2, dtype=torch.bool)
    mask[unit] = True
    assert transfer_to_biases_(wired, {"0": mask}, {"0": torch.tensor([2.0, -2.0])}) == []
    assert net[2].bias.tolist() == given


def step(net: nn.Module, optimizer: optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    (net(x) * 0).sum().backward()  # passes and gradients, and no learning
    optimizer.step()


def test_the_counter_is_that_of_a_peer() -> None:
    """rho 0.25, m 1, eta 0.5, features (1, 4), weights 1: one replacement, of neuron 0, at step 3."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [4.0]]))
        net[0].bias.zero_()
        net[2].weight.fill_(1.0)
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    method = ContinualBackprop(rate=0.25, maturity=1, decay=0.5, outgoing_sum=True)
    method.on_train_start(ctx)
    for _ in range(2):
        step(net, optimizer, torch.ones(1, 1))
    assert method.counters["net"]["0"] == 0.5
    assert not writer.events
    before = net[2].bias.detach().clone()
    step(net, optimizer, torch.ones(1, 1))
    assert writer.named("cbp")[0]["neurons"] == {"0": [0]}
    known = method.units["net"]["0"]
    assert known["age"].tolist() == [0, 3]
    assert known["utility"].tolist() == [0.0, 7.0]
    assert net[2].weight[:, 0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(net[2].bias - before, torch.ones(2))  # what neuron 0 gave on average
    assert method.counters["net"]["0"] == 0.0


class Naive:
    """The algorithm for one hidden layer, neuron by neuron."""

    def __init__(self, size: int, utility: str) -> None:
        self.age, self.u, self.f, self.owed, self.utility = [0] * size, [0.0] * size, [0.0] * size, 0.0, utility

    def step(self, h: Tensor, w_in: Tensor, w_out: Tensor) -> list[int]:
        chosen: list[int] = []
        for i in range(len(self.age)):
            self.age[i] += 1
            self.f[i] = 0.9 * self.f[i] + 0.1 * h[:, i].mean().item()
            f = self.f[i] / (1 - 0.9 ** self.age[i])
            size = h[:, i].abs().mean().item() if self.utility == "contribution" else (h[:, i] - f).abs().mean().item()
            value = size * w_out[:, i].abs().mean().item()
            value /= w_in[i].abs().mean().item() if self.utility == "adaptable_contribution" else 1
            self.u[i] = 0.9 * self.u[i] + 0.1 * value
        eligible = [i for i in range(len(self.age)) if self.age[i] > 3]
        self.owed += 0.06 * len(eligible)
        while self.owed >= 1 - 1e-9:
            best = min(eligible, key=lambda i: self.u[i] / (1 - 0.9 ** self.age[i]))
            self.owed -= 1
            eligible.remove(best)
            chosen.append(best)
        for i in chosen:
            self.age[i], self.u[i], self.f[i] = 0, 0.0, 0.0
        return sorted(chosen)


@pytest.mark.parametrize("utility", ["contribution", "zero_contribution", "adaptable_contribution"])
def test_thirty_steps_are_those_of_a_naive_twin(utility: Any) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    optimizer = optim.Adam(net.parameters(), 0.02)
    ctx, writer = plain_loop(net, optimizer)
    twin = Naive(8, utility)
    expected: list[list[int]] = []
    seen: dict[str, Tensor] = {}
    net[1].register_forward_hook(lambda m, a, out: seen.update(h=out.detach().clone()))

    def follow(*_: Any) -> None:  # registered before the method, hence before its edits
        chosen = twin.step(seen["h"], net[0].weight.detach(), net[2].weight.detach())
        expected.extend([chosen] if chosen else [])

    optimizer.register_step_post_hook(follow)
    method = ContinualBackprop(rate=0.06, maturity=3, decay=0.9, utility=utility)
    method.on_train_start(ctx)
    for seed in range(30):
        x = models.normal(16, 3, seed=seed).double()
        optimizer.zero_grad()
        (net(x) - x[:, :2].sin()).square().mean().backward()
        optimizer.step()
    assert len(expected) >= 5
    assert [event["neurons"]["0"] for event in writer.named("cbp")] == expected
    assert method.units["net"]["0"]["age"].tolist() == twin.age
    torch.testing.assert_close(
        method.units["net"]["0"]["utility"], torch.tensor(twin.u, dtype=torch.float64, device="cpu")
    )


@pytest.mark.parametrize("kind", ["conv", "groups"])
def test_the_transfer_keeps_the_mean_of_a_convolution(kind: str) -> None:
    groups = 2 if kind == "groups" else 1
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2, groups=groups), nn.Flatten(), nn.Linear(36, 2)
    )
    x = models.normal(5, 2, 6, 6)
    wired, mask = wiring(net, x), torch.tensor([True, False, False, True])
    h = net[:2](x).detach()
    constant = h.mean((0, 2, 3), keepdim=True).expand_as(h)
    before = net[2](constant).detach()
    transfer_to_biases_(wired, {"0": mask}, {"0": h.mean((0, 2, 3))})
    after = net[2](constant * (~mask)[None, :, None, None].to(h.device)).detach()
    torch.testing.assert_close(after, before)


def test_what_is_official_does_not_move_biases() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = optim.SGD(net.parameters(), 0.1)
    ctx, writer = plain_loop(net, optimizer)
    before = net[2].bias.detach().clone()
    ContinualBackprop(preset="official", rate=0.5, maturity=1).on_train_start(ctx)
    for seed in range(4):
        step(net, optimizer, models.normal(8, 3, seed=seed))
    assert writer.named("cbp")
    assert torch.equal(net[2].bias, before)


@pytest.mark.slow_off_the_cpu
def test_nothing_is_known_of_a_replaced_neuron_and_its_moments_are_cleared() -> None:
    agent, _, writer = run_sac([method := ContinualBackprop(rate=0.05, maturity=2, decay=0.9)], steps=50)
    last = [event for event in writer.named("cbp") if event["network"] == "critic_1"][-1]
    assert last["gradient_step"] <= agent.updates
    ages = method.units["critic_1"]
    for layer, neurons in last["neurons"].items():
        assert ages[layer]["age"][neurons].tolist() == [agent.updates - last["gradient_step"]] * len(neurons)
    assert copy.deepcopy(method.state_dict())["counters"] == method.counters


def test_layers_that_cannot_be_cut_are_named_once() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    net[2].weight.requires_grad_(False)
    optimizer = optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    ctx, writer = plain_loop(net, optimizer)
    ContinualBackprop(rate=0.5, maturity=0).on_train_start(ctx)
    for seed in range(4):
        step(net, optimizer, models.normal(8, 3, seed=seed))
    assert [event["layer"] for event in writer.named("cbp_skipped")] == ["0"]
    assert not writer.named("cbp")


@pytest.mark.parametrize("settings", [{"rate": 2.0}, {"decay": 1.0}, {"maturity": -1}, {"outgoing": "keep"}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ContinualBackprop needs"):
        ContinualBackprop(**settings)


@pytest.mark.parametrize(("preset", "first"), [("paper", 10_001), ("supervised", 101), ("official", 21)])
def test_every_preset_says_when_neurons_are_mature(preset: Any, first: int) -> None:
    assert ContinualBackprop(preset=preset).earliest() == first
    assert ContinualBackprop(preset=preset).transfer == (preset != "official")
