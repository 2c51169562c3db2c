"""ReDo, and the recycling it shares with ReGraMa: which neurons, when, from which scores, and what becomes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from test_interventions import OPTIMIZERS, plain_loop, run_sac, small_sac
from torch import Tensor, nn, optim

from plasticity import Measure
from plasticity.agents.sac import SAC, critic_loss
from plasticity.callback import Callback, Context, start
from plasticity.interventions import ReDo, ReGraMa
from plasticity.interventions.recycling import Recycling, published, select
from plasticity.monitor import Monitor
from plasticity.surgery.initialisers import record_initialisers
from plasticity.surgery.optimizer_state import entry_state

pytestmark = pytest.mark.usefixtures("everywhere")

T, F = True, False


def batch() -> Tensor:
    return models.normal(64, 4)


def mlp(activation: type[nn.Module] = nn.ReLU, bias: bool = True, dead: int = 0) -> nn.Sequential:
    """4-16-16-2; the first ``dead`` neurons of both hidden layers never fire."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 16, bias), activation(), nn.Linear(16, 16, bias), activation(), nn.Linear(16, 2, bias)
    )
    with torch.no_grad():
        for layer in (net[0], net[2]) if dead else ():
            layer.weight[:dead], layer.bias[:dead] = 0, -1
    return net


def learn(net: nn.Module, optimizer: optim.Optimizer, *inputs: Tensor) -> None:
    optimizer.zero_grad()
    out = net(*(inputs or (batch(),)))
    tensors = out.values() if isinstance(out, dict) else [out]
    sum((t - 1).square().mean() for t in tensors).backward()
    optimizer.step()


class Golden(nn.Module):
    """The worked example: the third neuron is dead. Mean squared error to (0, 1), without the factor 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
            self.hidden.bias.zero_()
            self.out.weight.copy_(torch.tensor([[1.0, -2.0, 3.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu()).squeeze(-1)


def golden_scores(method: Recycling) -> Tensor:
    """The scores with which the method recycles all three neurons of the worked example."""
    net = Golden()
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    method.on_train_start(ctx)
    loss = (net(torch.tensor([[1.0, 2.0], [3.0, 0.5]])) - torch.tensor([0.0, 1.0])).square().mean()
    assert loss.item() == 5
    loss.backward()
    optimizer.step()
    (event,) = writer.named(method.NAME)
    assert event["neurons"] == {"hidden": [0, 1, 2]}
    return torch.tensor(event["scores"]["hidden"])


# -- which neurons -----------------------------------------------------------------------------------------------------


def test_selection() -> None:
    scores = torch.tensor([0.0, 0.025, 0.026, 3.0], dtype=torch.float64)
    assert select(scores, 0.025).tolist() == [T, T, F, F]  # at most, not less than
    assert select(scores, 0.0).tolist() == [T, F, F, F]
    assert select(scores, 9.0, cap=0.5).tolist() == [T, T, F, F]  # the lowest
    assert select(scores.flip(0), 9.0, cap=0.74).tolist() == [F, F, T, T]
    assert select(scores, 9.0, cap=0.01).tolist() == [T, F, F, F]  # at least one
    assert select(scores, 0.0, cap=0.5).tolist() == [T, F, F, F]  # a cap adds none
    assert not select(torch.tensor([0.0, torch.nan]), 1.0).any()


def test_the_worked_example() -> None:
    scores = golden_scores(ReDo(every=1, threshold=10.0))
    torch.testing.assert_close(scores, torch.tensor([1.84615, 1.15385, 0.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [ReDo, ReGraMa])
def test_dead_neurons_are_found_and_the_function_stays(method: type[Recycling]) -> None:
    net = mlp(dead=3)
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    method(every=2, threshold=0.0).on_train_start(ctx)
    learn(net, optimizer)
    assert not writer.named(method.NAME)
    learn(net, optimizer)
    (event,) = writer.named(method.NAME)
    assert {0, 1, 2} <= set(event["neurons"]["0"])
    assert {0, 1, 2} <= set(event["neurons"]["2"])
    assert set(event["scores"]["0"]) == {0.0}
    if method is ReDo:  # a neuron with gradient 0 may fire, if all that it feeds is dead
        assert event["function_change"] <= 1e-6
    assert event["recycled"] == sum(map(len, event["neurons"].values()))
    assert writer.scalars[f"interventions/{method.NAME}/recycled"] == [event["recycled"]]
    assert writer.scalars[f"interventions/{method.NAME}/net/recycled"] == [event["recycled"]]  # once, not twice
    assert all(net[i].weight[:3].all() for i in (0,))
    assert not net[2].weight[3:, :3].any()
    assert not net[4].weight[:, :3].any()


def test_the_function_change_is_logged_as_it_is() -> None:
    net = mlp()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    seen: list[Tensor] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(net(batch()).detach()))
    ReDo(every=1, threshold=10.0, cap=0.25).on_train_start(ctx)
    optimizer.register_step_post_hook(lambda *_: seen.append(net(batch()).detach()))
    learn(net, optimizer)
    before, after = (s.double() for s in seen)
    (event,) = writer.named("redo")
    assert event["function_change"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
    assert event["function_change"] > 0.01
    assert event["function_change"] == writer.scalars["interventions/redo/net/function_change"][0]


@pytest.mark.parametrize("name", ["mlp", "two heads", "conv nchw", "conv nhwc", "critic", "crelu", "norm after"])
def test_output_layers_are_never_touched(name: str) -> None:
    net, inputs = models.build(name)
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    with Monitor(net, ["dormancy"]) as monitor:
        net(*inputs)
    assert monitor.wiring is not None
    outputs = [layer for layer in monitor.wiring.layers.values() if layer.is_output]
    biases = [layer.module.bias.detach().clone() for layer in outputs]
    for preset in ("paper", "official"):
        ReDo(preset=preset, every=1, threshold=1e9).on_train_start(ctx)
        ReGraMa(preset=preset, every=1, threshold=1e9).on_train_start(ctx)
    learn(net, ctx.optimizers["net"], *inputs)
    events = writer.named("redo") + writer.named("regrama")
    assert len(events) == 4
    assert not {layer.name for layer in outputs} & {layer for event in events for layer in event["neurons"]}
    assert all(torch.equal(layer.module.bias, bias) for layer, bias in zip(outputs, biases, strict=True))


@pytest.mark.parametrize("method", [ReDo, ReGraMa])
def test_a_nan_never_recycles(method: type[Recycling]) -> None:
    net = mlp(dead=3)
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    method(every=1, threshold=10.0).on_train_start(ctx)
    x = batch()
    x[0, 0] = torch.nan
    before = copy.deepcopy(net.state_dict())
    learn(net, ctx.optimizers["net"], x)
    assert not writer.named(method.NAME)
    now = net.state_dict()  # with learning rate 0 the step itself writes NaN
    assert all(torch.equal(now[key][~now[key].isnan()], before[key][~now[key].isnan()]) for key in now)


@pytest.mark.parametrize("method", [ReDo(every=1, threshold=0.0), ReGraMa(every=1, threshold=0.0)])
def test_measuring_without_recycling_leaves_the_same_bits(method: Recycling) -> None:
    results = []
    for on in (False, True):
        net = mlp(nn.Tanh)
        optimizer = OPTIMIZERS["adam"](net.parameters())
        ctx, writer = plain_loop(net, optimizer)
        if on:
            method.on_train_start(ctx)
        for _ in range(5):
            learn(net, optimizer)
        results.append((torch.cat([p.flatten() for p in net.parameters()]), torch.get_rng_state()))
        assert not writer.events
    assert all(map(torch.equal, *results))
    assert writer.scalars[f"interventions/{method.NAME}/net/recycled"] == [0.0] * 5


# -- when --------------------------------------------------------------------------------------------------------------


def test_the_period_counts_steps_of_the_networks_own_optimizer() -> None:
    nets = {"fast": mlp(), "slow": mlp()}
    optimizers = {name: optim.SGD(net.parameters(), 0.0) for name, net in nets.items()}
    ctx, writer = plain_loop(nets["fast"], optimizers["fast"])
    ctx.networks, ctx.optimizers = nets, optimizers
    ReDo(every=3, threshold=10.0).on_train_start(ctx)
    for step in range(12):
        learn(nets["fast"], optimizers["fast"])
        if step % 2:
            learn(nets["slow"], optimizers["slow"])
    found = [(event["network"], event["gradient_step"]) for event in writer.named("redo")]
    assert sorted(found) == [("fast", 3), ("fast", 6), ("fast", 9), ("fast", 12), ("slow", 3), ("slow", 6)]


def test_start_and_stop() -> None:
    net = mlp()
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    ReDo(every=2, threshold=10.0, start=4, stop=7).on_train_start(ctx)
    for _ in range(10):
        learn(net, ctx.optimizers["net"])
    assert [event["gradient_step"] for event in writer.named("redo")] == [4, 6]


def test_a_crossed_bound_triggers() -> None:
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, writer = plain_loop(net, optimizer)
    Measure(["dormancy"], every=1).on_train_start(ctx)
    redo = ReDo(when="plasticity/net/dormancy/2 > 0.5", threshold=0.0, every=4)
    redo.on_train_start(ctx)
    for step in range(20):
        if step in (6, 15, 17):
            with torch.no_grad():
                net[2].weight[:12], net[2].bias[:12] = 0, -1
        learn(net, optimizer)
    # Measured in step 7, acted upon with the scores of step 8; not again until the value has been below the bound.
    assert [event["gradient_step"] for event in writer.named("redo")] == [8, 17]
    with pytest.raises(ValueError, match="when is"):
        ReDo(when="dormancy is high")


# -- from which scores -------------------------------------------------------------------------------------------------


class Spy(Callback):
    """Before one update: a twin of the agent, which tells what the update is going to see."""

    def __init__(self, agent: SAC, update: int, look: Callable[[SAC], None]) -> None:
        self.agent, self.update, self.look, self.seen = agent, update, look, 0

    def on_update_start(self, ctx: Context) -> None:
        self.seen += 1
        if self.seen == self.update:
            twin = small_sac(batch_size=32)
            twin.load_state_dict(self.agent.state_dict())
            twin.buffer.load_state_dict(self.agent.buffer.state_dict())
            self.look(twin)


@pytest.mark.parametrize("method", [ReDo(every=7, threshold=10.0, cap=0.3), ReGraMa(every=7, threshold=10.0, cap=0.3)])
@pytest.mark.slow_off_the_cpu
def test_sac_critics_are_scored_on_their_own_loss_of_the_very_step(method: Recycling) -> None:
    expected: dict[str, dict[str, Tensor]] = {}
    polluted: dict[str, dict[str, Tensor]] = {}

    def look(twin: SAC) -> None:
        state = copy.deepcopy(twin.state_dict())
        buffer = twin.buffer.state_dict()
        batch = twin.buffer.sample(32)
        noise = torch.randn((2, 32, twin.action_dim), generator=twin.generators["update"])[1]
        for name in ("critic_1", "critic_2"):
            with Monitor(twin.networks[name], {"p": method.probe()}, passes="training") as monitor:
                target = twin.target_value(batch, twin.log_alpha.detach().exp(), noise)
                critic_loss(twin.q(batch.obs, batch.action), target).backward()
            expected[name] = monitor.read().scores["p"]
        twin.load_state_dict(state)
        twin.buffer.load_state_dict(buffer)
        for name in ("critic_1", "critic_2"):
            with Monitor(twin.networks[name], {"p": method.probe()}, passes="training") as monitor:
                critic_loss(twin.q(batch.obs, batch.action), target).backward()
                twin.q(batch.obs, -batch.action).mean().backward()  # as an actor's loss does
            polluted[name] = monitor.read().scores["p"]
            twin.load_state_dict(state)
            twin.buffer.load_state_dict(buffer)

    agent = small_sac(batch_size=32)
    _, _, writer = run_sac([method, Spy(agent, 7, look)], steps=80, agent=agent)
    for name in ("critic_1", "critic_2"):
        event = next(e for e in writer.named(method.NAME) if e["network"] == name)
        assert event["gradient_step"] == 7
        for layer, neurons in event["neurons"].items():
            exact = [round(float(expected[name][layer][i]), 6) for i in neurons]
            assert event["scores"][layer] == exact
            assert set(neurons) == set(select(expected[name][layer], 10.0, 0.3).nonzero().flatten().tolist())
    assert not all(torch.allclose(polluted[n]["q.2"], expected[n]["q.2"]) for n in expected)
    methods_networks = {event["network"] for event in writer.named(method.NAME)}
    assert methods_networks == {"actor", "critic_1", "critic_2"}


# -- what becomes of them ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "muon"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"preset": "official"}, {"outgoing": "keep"}, {"moments": False}],
    ids=["paper", "official", "k", "m"],
)
@pytest.mark.parametrize("method", [ReDo, ReGraMa])
def test_exactly_the_entries_of_recycled_neurons_change(method: type[Recycling], settings: Any, kind: str) -> None:
    """Weights, gradients and optimizer state of all others are the same bits; theirs is 0 if it is to be cleared."""
    net = mlp(bias=kind != "muon")
    optimizer = optim.Muon(net.parameters(), 1e-3) if kind == "muon" else OPTIMIZERS[kind](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    before: dict[str, Tensor] = {}
    optimizer.register_step_post_hook(lambda *_: before.update(snapshot(net, optimizer)))
    chosen = method(**{"every": 3, "threshold": 10.0, "cap": 0.2, **settings})
    chosen.on_train_start(ctx)
    for _ in range(3):
        learn(net, optimizer)
    (event,) = writer.named(method.NAME)
    assert {layer: len(neurons) for layer, neurons in event["neurons"].items()} == {"0": 3, "2": 3}
    after = snapshot(net, optimizer)
    first = {"sum": 0.1} if kind == "adagrad" else {}
    incoming, outgoing = owned(net, event["neurons"])
    for key, old in before.items():
        parameter, what = key.split("/")
        edited = incoming[parameter] | (outgoing[parameter] if chosen.outgoing != "keep" else False)
        assert torch.equal(after[key][~edited], old[~edited]), key
        if what == "grad":
            assert not after[key][edited].any()
        elif what != "value" and chosen.moments:
            assert (after[key][edited] == first.get(what, 0.0)).all()
        elif what != "value":
            assert torch.equal(after[key], old)
    for name, weight in net.named_parameters():
        fresh = incoming[name] & ~outgoing[name]
        assert (weight != before[f"{name}/value"])[fresh].all() or (name.endswith("bias") and chosen.init != "own")
        if chosen.outgoing == "zero":
            assert not weight[outgoing[name]].any()
    moved = snapshot(net, optimizer)
    learn(net, optimizer)
    assert all(not torch.equal(moved[f"{n}/value"], p) for n, p in net.named_parameters())


def snapshot(net: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    found = {}
    for name, p in net.named_parameters():
        state = entry_state(optimizer, p)
        found |= {f"{name}/{key}": t.detach().clone() for key, t in {"value": p, "grad": p.grad, **state}.items()}
    return found


def owned(net: nn.Module, neurons: dict[str, list[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The entries that lead into and out of neurons of the MLP, written out."""
    incoming = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in net.named_parameters()}
    outgoing = copy.deepcopy(incoming)
    for layer, indices in neurons.items():
        incoming[f"{layer}.weight"][indices] = True
        outgoing[f"{int(layer) + 2}.weight"][:, indices] = True
        if f"{layer}.bias" in incoming:
            incoming[f"{layer}.bias"][indices] = True
    return incoming, outgoing


def test_small_columns_have_their_norm() -> None:
    net = mlp()
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    ReDo(every=1, threshold=10.0, cap=0.2, outgoing="small").on_train_start(ctx)
    learn(net, ctx.optimizers["net"])
    chosen = writer.named("redo")[0]["neurons"]["2"]
    norms = net[4].weight.norm(dim=0)
    others = [i for i in range(16) if i not in chosen]
    torch.testing.assert_close(norms[chosen], (0.02 * norms[others].mean()).expand(len(chosen)))


def test_residual_writers_are_skipped_and_said_once() -> None:
    net, inputs = models.build("residual")
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    ReDo(every=1, threshold=10.0, cap=0.3).on_train_start(ctx)
    for _ in range(3):
        learn(net, ctx.optimizers["net"], *inputs)
    assert {layer for event in writer.named("redo") for layer in event["neurons"]} == {"1.up", "2.up"}
    skipped = writer.named("redo_skipped")
    assert sorted(event["layer"] for event in skipped) == ["0", "1.down", "2.down"]
    assert all("writes to a residual stream" in event["reason"] for event in skipped)
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    ReDo(every=1, threshold=10.0, cap=0.3, outgoing="keep").on_train_start(ctx)
    learn(net, ctx.optimizers["net"], *inputs)
    assert {layer for event in writer.named("redo") for layer in event["neurons"]} >= {"0", "1.down", "2.down"}


def test_a_layer_that_another_network_reads_too_is_skipped() -> None:
    encoder = nn.Linear(4, 8)
    one = nn.Sequential(encoder, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    two = nn.Sequential(encoder, nn.ReLU(), nn.Linear(8, 1))
    optimizer = optim.SGD([*one.parameters(), *two[2].parameters()], 0.0)
    ctx, writer = plain_loop(one, optimizer)
    ctx.networks["other"] = two
    redo = ReDo(every=1, threshold=10.0, networks=("net",))
    redo.on_train_start(ctx)
    learn(one, optimizer)
    assert set(writer.named("redo")[0]["neurons"]) == {"2"}
    assert "is also part of other" in writer.named("redo_skipped")[0]["reason"]
    ctx.networks["other"] = one[2]  # a part of the network hides nothing from it
    learn(one, optimizer)
    assert set(writer.named("redo")[1]["neurons"]) == {"0", "2"}


def test_redraws_have_their_law() -> None:
    layer = nn.Linear(256, 512)
    generator = torch.Generator().manual_seed(0)
    own = record_initialisers(layer)[""]
    assert own.weight(generator).abs().max().item() == pytest.approx(0.0625, rel=1e-3)
    he = published(layer, "he_uniform")
    assert he.weight(generator).abs().max().item() == pytest.approx(0.15309, rel=1e-3)
    assert 0.06 < he.bias(generator).abs().max() <= 0.0625
    xavier = published(layer, "xavier_uniform")
    assert xavier.weight(generator).abs().max().item() == pytest.approx((6 / 768) ** 0.5, rel=1e-3)
    assert not xavier.bias(generator).any()
    lecun = published(layer, "lecun_normal")
    assert lecun.weight(generator).std().item() == pytest.approx(0.0625, rel=1e-2)
    assert not lecun.bias(generator).any()


@pytest.mark.parametrize(
    ("method", "bound"), [(ReDo(), 0.5), (ReDo("official"), (6 / 20) ** 0.5), (ReGraMa("official"), 1.5**0.5)]
)
def test_presets_redraw_within_their_bound(method: Recycling, bound: float) -> None:
    net = mlp()
    method.every, method.threshold = 1, 10.0
    ctx, _ = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    method.on_train_start(ctx)
    learn(net, ctx.optimizers["net"])
    assert net[0].weight.abs().max() <= bound
    assert net[0].weight.abs().max() > 0.9 * bound
    assert bool(net[0].bias.any()) == (method.init != "xavier_uniform")


def test_what_became_of_the_recycled_is_logged() -> None:
    net = mlp()
    ctx, writer = plain_loop(net, optim.SGD(net.parameters(), 0.0))
    ReDo(every=1, threshold=10.0, cap=0.2).on_train_start(ctx)
    learn(net, ctx.optimizers["net"])
    assert "interventions/redo/net/score_since" not in writer.scalars
    with Monitor(net, {"p": ReDo().probe()}) as monitor:
        net(batch())
    scores = monitor.read().scores["p"]
    neurons = writer.named("redo")[0]["neurons"]
    then = [float(scores[layer][i]) for layer in neurons for i in neurons[layer]]
    learn(net, ctx.optimizers["net"])
    assert writer.scalars["interventions/redo/net/score_since"] == [pytest.approx(sum(then) / len(then))]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [3, 4, 6])  # right before an application, right after one, in between
@pytest.mark.parametrize("method", [ReDo, ReGraMa])
def test_a_resumed_run_goes_on_bit_by_bit(method: type[Recycling], stop: int) -> None:
    def make() -> tuple[nn.Module, optim.Optimizer, Recycling]:
        net = mlp()
        return net, OPTIMIZERS["adam"](net.parameters()), method(every=4, threshold=0.5, cap=0.2)

    net, optimizer, chosen = make()
    chosen.on_train_start(plain_loop(net, optimizer)[0])
    for _ in range(stop):
        learn(net, optimizer)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), chosen.state_dict()))
    for _ in range(10):
        learn(net, optimizer)

    twin, again, other = make()
    twin.load_state_dict(state[0])
    again.load_state_dict(state[1])
    start([other], plain_loop(twin, again)[0], [state[2]])
    for _ in range(10):
        learn(twin, again)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert other.counts == chosen.counts
    assert chosen.counts["applications"] >= 3
    assert repr(other.state_dict()) == repr(chosen.state_dict())


@pytest.mark.parametrize("again", [False, True])
def test_initialisers_are_those_of_the_beginning(again: bool) -> None:
    """Also when training goes on, in this process or another, with weights that have grown since."""
    net = mlp()
    optimizer = optim.SGD(net.parameters(), 0.0)
    ctx, _ = plain_loop(net, optimizer)
    redo = ReDo(every=2, threshold=10.0)
    redo.on_train_start(ctx)
    learn(net, optimizer)
    redo.on_train_end(ctx)
    with torch.no_grad():
        net[0].weight *= 100
    state = redo.state_dict()
    if not again:
        redo = ReDo(every=2, threshold=10.0)
    start([redo], ctx, [state])
    learn(net, optimizer)  # the second step: the clock goes on
    assert net[0].weight.abs().max() <= 0.5
    assert redo.counts["applications"] == 1


def test_another_run_starts_afresh() -> None:
    redo = ReDo(every=2, threshold=10.0)
    for scale in (1.0, 10.0):
        net = mlp()
        with torch.no_grad():
            net[0].weight *= scale
        optimizer = optim.SGD(net.parameters(), 0.0)
        ctx, writer = plain_loop(net, optimizer)
        redo.on_train_start(ctx)
        learn(net, optimizer)
        assert not writer.named("redo")
        learn(net, optimizer)
        redo.on_train_end(ctx)
    assert 4 < net[0].weight.abs().max() < 6


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every >= 1 gradient steps"),
        ({"cap": 0.0}, r"cap in \(0, 1\]"),
        ({"threshold": -0.1}, "threshold >= 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    for method in (ReDo, ReGraMa):
        with pytest.raises(ValueError, match=f"{method.__name__} needs {message}"):
            method(**settings)


def test_states_that_cannot_be_cut_are_refused_at_the_start() -> None:
    for make in (optim.Adafactor, optim.LBFGS):
        net = mlp()
        ctx, _ = plain_loop(net, make(net.parameters()))
        with pytest.raises(ValueError, match="moments=False leaves it alone"):
            ReDo().on_train_start(ctx)
        ReDo(moments=False).on_train_start(ctx)
