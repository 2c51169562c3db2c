"""KNIFE: the function stays, to the bit; the fresh row learns; other methods' edits reach all three parts."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from test_interventions import FREQUENT, Recorder, plain_loop, run_sac
from torch import Tensor, nn, optim

from plasticity.agents.sac import SAC
from plasticity.callback import Context, fire, start
from plasticity.interventions import KNIFE, ReDo, Reset
from plasticity.interventions.composite import CompositeUnits, compose_
from plasticity.interventions.knife import RelativeUpdates
from plasticity.structure.trace import wiring

pytestmark = pytest.mark.usefixtures("everywhere")


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def conv() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.ReLU())


def inputs(net: nn.Module) -> Tensor:
    images = any(isinstance(m, nn.Conv2d) for m in net.modules())
    return models.normal(8, 2, 4, 4) if images else models.normal(8, 3)


def begun(net: nn.Module, **settings: object) -> tuple[Context, Recorder, KNIFE, optim.Optimizer]:
    optimizer = optim.Adam(net.parameters(), 1e-2)
    ctx, writer = plain_loop(net, optimizer)
    method = KNIFE(**settings)  # type: ignore[arg-type]
    start([method], ctx)
    return ctx, writer, method, optimizer


def step(net: nn.Module, optimizer: optim.Optimizer) -> None:
    optimizer.zero_grad()
    (net(inputs(net)) - 1).square().mean().backward()
    optimizer.step()


def test_scores_are_the_golden_numbers() -> None:
    probe = RelativeUpdates()
    probe.on_weight_gradient(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.3, 0.4]]))
    probe.on_weight(torch.tensor([[3.0, 4.0], [1.0, 0.0], [6.0, 8.0]]))
    score = probe.scores()
    torch.testing.assert_close(score.float(), torch.tensor([1.0, 0.0, 0.05]))
    torch.testing.assert_close((score / score.mean()).float(), torch.tensor([2.857143, 0.0, 0.142857]))


@pytest.mark.parametrize("make", [mlp, conv])
def test_wiring_and_function_are_those_of_the_plain_network(make: type) -> None:
    net = make()
    plain, x = copy.deepcopy(net), inputs(net)
    compose_(net)
    assert torch.equal(net(x), plain(x))
    one, other = wiring(net, x), wiring(plain, x)
    for mine, theirs in zip(one.layers.values(), other.layers.values(), strict=True):
        assert mine.activation == theirs.activation
        assert mine.remarks == theirs.remarks
        for a, b in zip(mine.consumers, theirs.consumers, strict=True):
            assert torch.equal(a.columns, b.columns)


@pytest.mark.parametrize("make", [mlp, conv])
def test_the_function_stays_and_the_units_are_those_of_a_naive_second_implementation(make: type) -> None:
    net = make()
    _, writer, method, optimizer = begun(net, every=3, window=2, threshold=0.9)
    x = inputs(net)
    for _ in range(2):
        step(net, optimizer)
    seen: list[int] = []
    optimizer.param_groups[0]["lr"] = 0.0  # the third step only lets the method act
    before = net(x).detach()
    rows = [m.layer.weight.detach().clone() for m in net.modules() if isinstance(m, CompositeUnits)]
    step(net, optimizer)
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    (event,) = writer.named("knife")
    assert event["function_change"] == 0
    places = {f"{n}.layer": m for n, m in net.named_modules() if isinstance(m, CompositeUnits)}
    optimizer.param_groups[0]["lr"] = 0.1
    step(net, optimizer)
    for row, (name, units) in zip(rows, places.items(), strict=True):
        chosen = event["neurons"].get(name, [])
        assert units.retained.composite.nonzero().flatten().tolist() == chosen
        seen += chosen
        hidden: list[Tensor] = []
        with units.register_forward_hook(lambda _, args, out, hidden=hidden: hidden.extend((args[0], out))):
            net(x)
        given, h = hidden
        old, twin = copy.deepcopy(units.layer), copy.deepcopy(units.layer)
        with torch.no_grad():
            old.weight.copy_(row)
            twin.weight.copy_(units.retained.copy)
            if (bias := units.retained.before_bias) is not None:
                old.bias.copy_(bias)
                twin.bias.copy_(units.retained.copy_bias)
        phi = units.activation
        naive = phi(units.layer(given))
        for i in chosen:  # unit by unit
            naive[:, i] = phi(old(given))[:, i] + naive[:, i] - phi(twin(given))[:, i]
            assert not torch.equal(units.layer.weight[i], units.retained.copy[i])  # it learns
        torch.testing.assert_close(h, naive)
    assert seen
    assert method.parameters_added() > 0


def composed() -> tuple[nn.Sequential, Context, KNIFE]:
    net = mlp()
    ctx, _, method, optimizer = begun(net, every=1, window=1, threshold=10.0, cap=0.5)
    step(net, optimizer)
    assert all(int(m.retained.composite.sum()) for m in net.modules() if isinstance(m, CompositeUnits))
    return net, ctx, method


def test_a_neuron_that_is_redrawn_is_a_plain_one_and_one_that_is_cut_is_cut_in_all_parts() -> None:
    net, ctx, _ = composed()
    units = net[1]
    index = int(units.retained.composite.nonzero()[0])
    weight, row = units.layer.weight, torch.zeros_like(units.layer.weight, dtype=torch.bool)
    row[index] = True
    ctx.redrawn({weight: row})
    assert not units.retained.composite[index]
    column = torch.zeros_like(row)
    column[:, 1] = True
    with torch.no_grad():
        weight[:, 1] = 0
    ctx.redrawn({weight: column})
    assert not units.retained.before[:, 1].any()
    assert not units.retained.copy[:, 1].any()
    assert units.retained.before[:, 0].any()


def test_a_neuron_becomes_composite_once() -> None:
    net = mlp()
    _, writer, _, optimizer = begun(net, every=1, window=1, threshold=10.0)
    for _ in range(3):
        step(net, optimizer)
    assert len(writer.named("knife")) == 1


@pytest.mark.slow_off_the_cpu
def test_targets_follow_with_rows_of_their_own() -> None:
    method = KNIFE(**FREQUENT["knife"])
    agent, ctx, writer = run_sac([method])
    assert isinstance(agent, SAC)
    for name, target in ctx.targets.items():
        for one, other in zip(ctx.networks[name].modules(), target.modules(), strict=True):
            if isinstance(one, CompositeUnits):
                assert torch.equal(one.retained.composite, other.retained.composite)
                assert torch.equal(one.retained.copy, other.retained.copy)
    assert writer.named("knife")


@pytest.mark.slow_off_the_cpu
def test_a_reset_and_recycling_end_what_was_kept() -> None:
    method = KNIFE(**FREQUENT["knife"], stop=20)
    _, ctx, _ = run_sac([method, Reset(at=(40,), clock="updates")])
    nets = [*ctx.networks.values(), *ctx.targets.values()]
    assert not any(m.retained.composite.any() for net in nets for m in net.modules() if isinstance(m, CompositeUnits))
    _, _, writer = run_sac([KNIFE(**FREQUENT["knife"]), ReDo(**FREQUENT["redo"])])
    assert writer.named("redo")


def test_networks_that_allow_no_such_units_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
    ctx, _ = plain_loop(net, optim.Adam(net.parameters()))
    with pytest.raises(ValueError, match="finds no layer in net whose elementwise activation"):
        fire([KNIFE()], "restructure", ctx, None)
