"""ReGraMa: three readings of the gradient, entries of norms, and what a column of zeros does to the next score."""

from __future__ import annotations

import models
import pytest
import torch
from test_interventions import OPTIMIZERS, plain_loop
from test_redo import batch, golden_scores, learn, mlp
from torch import nn, optim

from plasticity.interventions import ReGraMa
from plasticity.interventions.regrama import norm_scores

pytestmark = pytest.mark.usefixtures("everywhere")


@pytest.mark.parametrize(
    ("reading", "expected"), [("pre", [1.0, 2.0, 0.0]), ("weight", [1.0, 2.0, 0.0]), ("post", [0.5, 1.0, 1.5])]
)
def test_the_worked_example(reading: str, expected: list[float]) -> None:
    """The third neuron is dead: the reading behind the activation scores it highest, against the paper's theorem."""
    scores = golden_scores(ReGraMa(every=1, threshold=10.0, score=reading))  # type: ignore[arg-type]
    torch.testing.assert_close(scores, torch.tensor(expected))


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_official_leaves_outgoing_weights_and_moments(preset: str) -> None:
    net = mlp()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    ReGraMa(preset=preset, every=2, threshold=10.0, cap=0.2).on_train_start(ctx)  # type: ignore[arg-type]
    learn(net, optimizer)
    learn(net, optimizer)
    neurons = writer.named("regrama")[0]["neurons"]["2"]
    assert bool(net[4].weight[:, neurons].any()) == (preset == "official")
    assert bool(optimizer.state[net[2].weight]["exp_avg"][neurons].any()) == (preset == "official")
    assert not net[2].weight.grad[neurons].any()


@pytest.mark.parametrize("outgoing", ["zero", "small"])
def test_zero_columns_are_flagged_again_and_small_ones_are_not(outgoing: str) -> None:
    """Behind a column of zeros there is no gradient until the column has moved."""
    net = mlp(nn.Tanh)
    with torch.no_grad():
        net[4].weight[:, :3] = 0
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    ReGraMa(every=1, threshold=0.0, outgoing=outgoing).on_train_start(ctx)  # type: ignore[arg-type]
    learn(net, ctx.optimizers["net"])
    learn(net, ctx.optimizers["net"])
    flagged = [event["neurons"] for event in writer.named("regrama")]
    assert flagged == [{"2": [0, 1, 2]}] * (2 if outgoing == "zero" else 1)


@pytest.mark.parametrize("moments", [True, False])
def test_entries_of_norms_are_neurons_too(moments: bool) -> None:
    net, inputs = models.build("norm after")
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    regrama = ReGraMa(every=3, threshold=0.0, cap=0.5, moments=moments, norms=False)
    regrama.on_train_start(ctx)
    norm = net[2]
    for step in range(3):
        if step == 2:
            norm.weight.register_hook(lambda g: g * torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).to(g))
        learn(net, optimizer, *inputs)
    (event,) = writer.named("regrama")
    assert event["norm_entries"] == {"2": [0, 1]}
    assert norm.weight[:2].tolist() == [1, 1]
    assert norm.bias[:2].tolist() == [0, 0]
    assert (norm.weight[2:] != 1).all()
    assert (norm.bias[2:] != 0).all()
    assert not norm.weight.grad[:2].any()
    assert not norm.bias.grad[:2].any()
    assert norm.bias.grad[2:].all()
    for parameter in (norm.weight, norm.bias):
        assert bool(optimizer.state[parameter]["exp_avg"][:2].any()) != moments
        assert optimizer.state[parameter]["exp_avg"][2:].all()


def test_norm_resets_count_in_the_function_change() -> None:
    net, inputs = models.build("norm after")
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    with torch.no_grad():
        net[2].weight.fill_(2.0)
    ReGraMa(every=1, threshold=0.0).on_train_start(ctx)
    net[2].weight.register_hook(lambda g: g * torch.tensor([0.0, 1, 1, 1, 1, 1]).to(g))
    before = net(*inputs).detach().double()
    learn(net, ctx.optimizers["net"], *inputs)
    (event,) = writer.named("regrama")
    assert event["norm_entries"] == {"2": [0]}
    expected = (net(*inputs).detach().double() - before).norm() / before.norm()
    assert event["function_change"] == pytest.approx(float(expected), rel=1e-5)
    assert expected > 0.01


def test_norms_can_be_left_alone_and_frozen_ones_are() -> None:
    net, inputs = models.build("norm after")
    net[2].requires_grad_(False)
    with torch.no_grad():
        net[2].weight.fill_(2.0)
        net[5].weight.fill_(2.0)
    for regrama in (ReGraMa(every=1, threshold=10.0, norms=False, score_norms=False), ReGraMa(every=1, threshold=10.0)):
        ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
        regrama.on_train_start(ctx)
        learn(net, ctx.optimizers["net"], *inputs)
        assert (net[2].weight == 2).all()
        assert (net[5].weight == (2 if not regrama.score_norms else 1)).all()
        assert set(writer.named("regrama")[-1].get("norm_entries", {})) == ({"5"} if regrama.score_norms else set())
        regrama.on_train_end(ctx)


def test_norm_scores() -> None:
    gain = nn.Parameter(torch.ones(2, 2))
    assert norm_scores(gain) is None
    gain.grad = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    scores = norm_scores(gain)
    assert scores is not None
    assert scores.tolist() == [0.5, 1.5, 0.0, 2.0]


def test_a_step_without_any_gradient_tells_nothing() -> None:
    """As when every sample of a clipped loss is clipped: all scores are 0, and nobody is to blame."""
    net = mlp()
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.1))
    ReGraMa(every=1).on_train_start(ctx)
    for _ in range(2):
        ctx.optimizers["net"].zero_grad()
        (net(batch()) * 0).sum().backward()
        ctx.optimizers["net"].step()
    assert not writer.named("regrama")
    assert [event["reason"] for event in writer.named("regrama_skipped")] == ["its gradient was 0 everywhere"]
    with torch.no_grad():  # a dead layer is another matter: the output bias still learns
        net[2].weight.zero_()
        net[2].bias.fill_(-1)
    learn(net, ctx.optimizers["net"])
    assert set(writer.named("regrama")[0]["neurons"]) == {"0", "2"}
