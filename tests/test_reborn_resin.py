"""ReBorn: the split keeps the function, entry by entry. ReSiN: what is reset neither fires nor learns."""

from __future__ import annotations

import copy
from typing import Any

import models
import pytest
import torch
from test_interventions import plain_loop
from torch import nn, optim

from plasticity.interventions import ReBorn, SilentReset
from plasticity.interventions.reborn import sharing
from plasticity.structure.trace import wiring
from plasticity.surgery.split import split_

pytestmark = pytest.mark.usefixtures("everywhere")


def test_dormant_neurons_are_given_to_the_most_active_first() -> None:
    scores = torch.tensor([0.0, 4.0, 0.01, 5.0, 1.0, 0.02])
    assert sharing(scores, 0.025, 3.0, 2) == {3: [0, 2], 1: [5]}
    assert sharing(scores, 0.025, 3.0, 5) == {3: [0, 2, 5]}
    assert sharing(scores, 0.025, 6.0, 2) == {}
    assert sharing(torch.tensor([torch.nan, 4.0]), 0.025, 3.0, 2) == {}


def test_dormant_neurons_are_given_at_random_where_there_is_room() -> None:
    scores, generator = torch.tensor([0.0, 4.0, 0.0, 5.0, 1.0, 0.1, 0.0]), torch.Generator("cpu").manual_seed(0)
    drawn = [sharing(scores, 0.1, 3.0, 2, generator) for _ in range(300)]
    for shares in drawn:
        assert sorted(i for into in shares.values() for i in into) == [0, 2, 5, 6]
        assert {i: len(into) for i, into in shares.items()} == {1: 2, 3: 2}
    assert {tuple(shares[3]) for shares in drawn} == {(i, j) for i in (0, 2, 5, 6) for j in (0, 2, 5, 6) if i != j}
    assert {sum(map(len, sharing(scores, 0.1, 4.5, 3, generator).values())) for _ in range(9)} == {3}


def networks() -> dict[str, tuple[nn.Sequential, torch.Tensor]]:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    conv = nn.Sequential(nn.Conv2d(2, 6, 3), nn.LeakyReLU(0.1), nn.Conv2d(6, 3, 2), nn.Flatten(), nn.Linear(27, 2))
    flat = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 2))
    images = models.normal(4, 2, 6, 6)
    return {"linear": (linear, models.normal(9, 3)), "conv": (conv, images), "flat": (flat, images[..., :5, :5])}


@pytest.mark.parametrize("kind", ["linear", "conv", "flat"])
def test_a_split_keeps_the_function_and_entries_are_those_of_the_formula(kind: str) -> None:
    net, x = networks()[kind]
    net = net.double()
    x = x.double()
    with torch.no_grad():  # neurons 1 and 4 do nothing
        net[0].weight[[1, 4]], net[0].bias[[1, 4]] = 0, 0
    wired = wiring(net, x)
    before, old = net(x).detach(), copy.deepcopy(net)
    split_(wired, wired.layers["0"], 2, [1, 4], torch.tensor([0.5, 1.25]))
    torch.testing.assert_close(net(x).detach(), before)
    for k, scale in ((1, 0.5), (4, 1.25)):
        torch.testing.assert_close(net[0].weight[k], old[0].weight[2] * scale)
        torch.testing.assert_close(net[0].bias[k], old[0].bias[2] * scale)
    if kind != "flat":
        torch.testing.assert_close(net[2].weight[:, 2], old[2].weight[:, 2] / 3)
        torch.testing.assert_close(net[2].weight[:, 1], old[2].weight[:, 2] / 3 / 0.5)


def test_parts_may_be_any_that_make_a_whole_and_are_those_of_a_naive_loop() -> None:
    net, x = networks()["conv"]
    with torch.no_grad():
        net[0].weight[[1, 4]], net[0].bias[[1, 4]] = 0, 0
    parts, scales = models.normal(3, 3).softmax(0), torch.tensor([0.5, 0.8])
    wired, before, first, second = wiring(net, x), net(x).detach(), *(net[i].weight.tolist() for i in (0, 2))
    split_(wired, wired.layers["0"], 2, [4, 1], scales, shares=lambda outputs: parts)
    torch.testing.assert_close(net(x).detach(), before)
    shares, a = parts.tolist(), scales.tolist()
    for out, row in enumerate(second):
        for place, neuron in enumerate((4, 1, 2)):
            part = shares[place][out] / (a[place] if place < 2 else 1)
            expected = [[entry * part for entry in line] for line in row[2]]
            torch.testing.assert_close(net[2].weight[out, neuron], torch.tensor(expected))
    torch.testing.assert_close(net[0].weight[1], torch.tensor(first[2]) * a[1])


def step(net: nn.Module, optimizer: optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    net(models.normal(32, 3, seed=seed)).square().mean().backward()
    optimizer.step()


def test_reborn_splits_in_training_and_forgets_the_copies() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].bias[1] = -100.0
        net[0].weight[3] *= 10
    optimizer = optim.Adam(net.parameters(), 1e-3)
    ctx, writer = plain_loop(net, optimizer)
    ReBorn(every=1, active=2.0, threshold=0.025).on_train_start(ctx)
    step(net, optimizer)
    (event,) = writer.named("reborn")
    assert event["split"] == {"0": {"3": [1]}}
    assert event["function_change"] < 1e-5
    assert not optimizer.state[net[0].weight]["exp_avg"][1].any()
    assert not optimizer.state[net[2].weight]["exp_avg"][:, 1].any()
    assert optimizer.state[net[0].weight]["exp_avg"][3].any()


def test_official_splits_at_random_and_redraws_dormant_neurons_without_a_partner() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    with torch.no_grad():
        net[0].bias[[1, 4, 6]] = -100.0
        net[0].weight[3] *= 20
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    ReBorn(preset="official", every=1, shared=2, threshold=0.0).on_train_start(ctx)
    before = copy.deepcopy(net)
    step(net, optimizer)
    (event,) = writer.named("reborn")
    (copies,), (rest,) = event["split"]["0"].values(), event["redrawn"]["0"]
    assert list(event["split"]["0"]) == ["3"]
    assert {*copies, rest} == {1, 4, 6}
    assert event["function_change"] < 1e-5
    for i in copies:
        scale = (net[0].weight[i] / before[0].weight[3]).detach()
        torch.testing.assert_close(scale, scale[:1].expand(3))
        assert 0.3 <= float(scale[0]) <= 0.8
    assert not net[2].weight[:, rest].any()
    assert net[0].bias[rest].item() > -50
    x = models.normal(5, 3)
    torch.testing.assert_close(net(x), before(x))


def test_reborn_leaves_other_activations_alone_by_name() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0, 0
    optimizer = optim.Adam(net.parameters(), 1e-3)
    ctx, writer = plain_loop(net, optimizer)
    ReBorn(every=1, active=1.05).on_train_start(ctx)
    before = net[0].weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    step(net, optimizer)
    assert torch.equal(net[0].weight, before)
    assert "tanh" in writer.named("reborn_skipped")[0]["reason"]


def test_resin_resets_what_neither_fires_nor_learns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].bias[1] = -100.0  # never fires, so no gradient reaches it
        net[2].weight[:, 3] = 0  # fires, and gets no gradient
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    method = SilentReset(every=1)
    method.on_train_start(ctx)
    step(net, optimizer)
    assert writer.named("resin")[0]["neurons"] == {"0": [1]}


@pytest.mark.parametrize("settings", [{"active": 0.01}, {"shared": 0}])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ReBorn needs"):
        ReBorn(**settings)
