"""Neuroplastic Expansion: densities, exact zeros, what grows and what is pruned, reviews, and going on."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from test_interventions import OPTIMIZERS, Check, assert_masked, plain_loop, run_sac, small_sac
from torch import Tensor, nn, optim

from plasticity import measure
from plasticity.agents.replay import ReplayBuffer
from plasticity.callback import Context
from plasticity.callback import start as begin
from plasticity.interventions import NeuroplasticExpansion
from plasticity.interventions.topology import SparseLayer, grown_share
from plasticity.surgery.optimizer_state import entry_state

pytestmark = pytest.mark.usefixtures("everywhere")


def batch() -> Tensor:
    return models.normal(64, 4)


def mlp(width: int = 24) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 2),
    )  # fmt: skip


def learn(net: nn.Module, optimizer: optim.Optimizer, *inputs: Tensor) -> None:
    optimizer.zero_grad()
    (net(*(inputs or (batch(),))) - 1).square().mean().backward()
    optimizer.step()


def start(net: nn.Module, kind: str = "adam", **settings: Any) -> tuple[NeuroplasticExpansion, optim.Optimizer, Any]:
    optimizer = OPTIMIZERS[kind](net.parameters())
    ctx, writer = plain_loop(net, optimizer)
    method = NeuroplasticExpansion(**settings)
    method.on_train_start(ctx)
    return method, optimizer, writer


class Seen:
    """Masks, weights and dense gradients of all sparse layers around one step."""

    def __init__(self, method: NeuroplasticExpansion, optimizer: optim.Optimizer, name: str = "net") -> None:
        self.method, self.name = method, name
        self.gradient: dict[Tensor, Tensor] = {}
        self.weight: dict[Tensor, Tensor] = {}
        optimizer.register_step_post_hook(self._after)
        # Hooks run in order, and those of the masks were there first: look before them.
        before = optimizer.register_step_pre_hook(self._before)
        optimizer._optimizer_step_pre_hooks.move_to_end(before.id, last=False)
        stepped = optimizer.register_step_post_hook(self._stepped)
        optimizer._optimizer_step_post_hooks.move_to_end(stepped.id, last=False)

    def _layers(self) -> list[Any]:
        return self.method._layers.get(self.name, [])

    def _before(self, *_: Any) -> None:
        self.gradient = {la.weight: la.weight.grad.clone() for la in self._layers()}
        self.mask = {la.weight: self.method._masks[self.name][la.weight].clone() for la in self._layers()}

    def _stepped(self, *_: Any) -> None:
        self.weight = {la.weight: la.weight.detach().clone() for la in self._layers()}

    def _after(self, *_: Any) -> None:
        self.new = {la.weight: self.method._masks[self.name][la.weight].clone() for la in self._layers()}


def largest(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """Brute force: the ``count`` largest scores among some entries."""
    order = sorted(among.flatten().nonzero().flatten().tolist(), key=lambda i: -float(scores.flatten()[i]))
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view_as(scores)


# -- density -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("prune", ["dormant", "none", "magnitude"])
@pytest.mark.slow_off_the_cpu
def test_density_keeps_to_the_cosine_schedule(prune: str, final: float) -> None:
    net = mlp()
    with torch.no_grad():  # some neurons are dormant all the time
        for layer in (net[2], net[4]):
            layer.bias[:6] = -100
    method, optimizer, writer = start(net, every=4, end=60, prune=prune, final_density=final)
    for step in range(1, 81):
        learn(net, optimizer)
        expected = 0.2 + (final - 0.2) * grown_share(step - step % 4, 60)
        assert method._masks["net"].density() == pytest.approx(expected, abs=2 / 576)
    densities = writer.scalars["interventions/ne/net/density"]
    assert len(densities) == 1 + 20
    assert densities[-1] == pytest.approx(final, abs=1e-3)
    assert bool(method.counts["pruned"]) == (prune != "none")
    assert [layer.name for layer in method._layers["net"]] == ["2", "4"]  # the ends are dense


def test_what_is_pruned_finds_room_elsewhere_or_stays() -> None:
    net = mlp()
    with torch.no_grad():
        net[2].bias[:20] = -100
    method, optimizer, _ = start(net, every=4, end=8, prune_ratio=0.9, final_density=1.0)
    for _ in range(8):
        learn(net, optimizer)
    assert method._masks["net"].density() == 1


@pytest.mark.on_real_devices
def test_official_takes_191_events_to_its_final_density() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))
    method, optimizer, writer = start(net, "sgd", preset="official", every=1, dense_ends=True)
    x = batch()[:2]
    for _ in range(192):
        learn(net, optimizer, x)
    densities = writer.scalars["interventions/ne/net/density"]
    assert densities[0] == pytest.approx(0.2, abs=1e-5)
    assert densities[1] == pytest.approx((13107 + 314 - 125) / 65536)
    assert densities[190] < 0.75 <= densities[191]
    event = writer.named("ne")[190]
    assert (event["grown"], event["gradient_step"]) == (189, 191) or event["grown"] - event["pruned"] == 189
    assert densities[192] == densities[191]  # from now on as much is pruned as grown
    live = int(method._masks["net"].density() * 65536)
    assert 0 < writer.named("ne")[191]["grown"] <= int(0.2 * live)


@pytest.mark.on_real_devices
def test_official_densities_are_erdos_renyi_in_every_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(17, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 6))
    weight = net[2].weight.detach().clone()
    method, optimizer, _ = start(net, preset="official", every=1)
    learn(net, optimizer, torch.randn(2, 17))
    layers = {layer.name: layer for layer in method._layers["net"]}
    assert [layers[name].initial for name in ("0", "2", "4")] == pytest.approx([1.0, 0.128, 1.0], abs=1e-3)
    assert method._masks["net"].density(net[0].weight) == 1  # what starts denser than it may end does not shrink
    # The largest weights are kept, and one event's 0.6 of 0.008 of the free space is added.
    kept = largest(weight.abs(), torch.ones_like(weight, dtype=torch.bool), round(layers["2"].initial * 65536))
    assert int((kept & ~method._masks["net"][net[2].weight]).sum()) <= int(0.4 * 0.008 * 65536)
    grow = int((0.8 - layers["2"].initial) * 65536 * 0.008)
    live = int(method._masks["net"][net[2].weight].sum())
    assert live == round(layers["2"].initial * 65536) + grow - int(0.4 * grow)


@pytest.mark.parametrize(
    "sizes", [(113, 256, 256, 1), (23, 256, 256, 1), (17, 64, 64, 6), (8, 400, 300, 1), (113, 1024, 1)]
)
@pytest.mark.on_real_devices
def test_official_growth_is_that_of_the_released_scheduler(sizes: tuple[int, ...]) -> None:
    """Its target density is its initial sparsity, 0.8, in every layer: int(0.008 * (0.8 * size - connections))."""
    parts = [part for i, o in itertools.pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    net = nn.Sequential(*parts[:-1])
    method, optimizer, _ = start(net, preset="official", every=2)
    learn(net, optimizer, torch.randn(64, sizes[0]))
    masks = method._masks["net"]
    before = {layer.name: int(masks[layer.weight].sum()) for layer in method._layers["net"]}
    learn(net, optimizer, torch.randn(64, sizes[0]))
    for layer in method._layers["net"]:
        size, live = layer.weight.numel(), before[layer.name]
        grow = max(0, int(0.008 * (0.8 * size - round(layer.initial * size))))
        grown = int(masks[layer.weight].sum()) - live
        assert grown in (grow - int(0.4 * grow), grow - int(0.4 * grow) + 1), layer.name  # rounding of the first mask


@pytest.mark.parametrize(
    ("shape", "live", "grown"),
    [((256, 119), 8551, 126), ((256, 113), 8369, 118), ((256, 35), 6107, 8), ((256, 256), 11674, 326)],
)
def test_official_growth_is_what_the_released_scheduler_computes(shape: tuple[int, int], live: int, grown: int) -> None:
    """Golden numbers: its STL_Scheduler run on its critics for Ant (states of 111, 105 and 27), the first event."""
    layer = SparseLayer("0", nn.Linear(*reversed(shape)), live / math.prod(shape), 0.8)
    assert NeuroplasticExpansion(preset="official")._steady_growth(layer) == grown


@pytest.mark.on_real_devices
def test_official_growth_of_a_tiny_network_is_nothing_and_says_so() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    _, optimizer, _ = start(net, preset="official", every=2)
    with pytest.warns(RuntimeWarning, match="net are so small that 0.008 of their free space is no connection"):
        learn(net, optimizer, torch.randn(4, 3))


@pytest.mark.parametrize("preset", ["rigl", "set"])
@pytest.mark.on_real_devices
def test_rigl_and_set_keep_the_density(preset: str) -> None:
    net = mlp()
    method, optimizer, writer = start(net, preset=preset, every=3, end=60, initial_density=0.3)
    learn(net, optimizer)
    layers, masks = method._layers["net"], method._masks["net"]
    before = {layer.name: masks.density(layer.weight) for layer in layers}
    assert set(before) == {"0", "2", "4", "6"}
    grown = []
    for _ in range(80):
        learn(net, optimizer)
        assert {layer.name: masks.density(layer.weight) for layer in layers} == before
    grown = [event["grown"] for event in writer.named("ne")]
    assert grown[0] > 3 * grown[-1]  # decays with a cosine
    assert [event["gradient_step"] for event in writer.named("ne")][-1] < 60
    assert all(event["grown"] == event["pruned"] for event in writer.named("ne"))


# -- zeros -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*OPTIMIZERS, "adam with decay"])
@pytest.mark.parametrize("preset", ["paper", "official", "rigl", "set"])
def test_exact_zeros_after_every_step(preset: str, kind: str) -> None:
    net = mlp()
    OPTIMIZERS["adam with decay"] = lambda ps: optim.Adam(ps, 1e-2, weight_decay=0.1)
    method, optimizer, _ = start(net, kind, preset=preset, every=3, end=30)
    del OPTIMIZERS["adam with decay"]
    for _ in range(12):
        learn(net, optimizer)
        assert_masked(method, method._ctx)
        for layer in method._layers["net"]:
            absent = ~method._masks["net"][layer.weight]
            assert not layer.weight.grad[absent].any()
            assert layer.weight[~absent].any()
    assert method.counts["applications"] == 4


@pytest.mark.parametrize("kind", ["adam", "adagrad", "sgd momentum"])
def test_grown_weights_start_at_zero_with_an_empty_state(kind: str) -> None:
    net = mlp()
    method, optimizer, _ = start(net, kind, every=5, end=20)
    learn(net, optimizer)
    seen = Seen(method, optimizer)
    for _ in range(4):
        learn(net, optimizer)
    first = 0.1 if kind == "adagrad" else 0.0
    for weight, new in seen.new.items():
        grown = new & ~seen.mask[weight]
        assert grown.any()
        assert not weight[grown].any()
        assert all((value[grown] == first).all() for value in entry_state(optimizer, weight).values())
        kept = new & seen.mask[weight]
        assert torch.equal(weight[kept], seen.weight[weight][kept])
    learn(net, optimizer)
    assert all(weight[new].all() for weight, new in seen.new.items())  # they learn at once


# -- what grows and what is pruned -------------------------------------------------------------------------------------


def test_the_largest_dense_gradients_grow() -> None:
    net = mlp()
    method, optimizer, _ = start(net, every=5, end=20, prune="none")
    learn(net, optimizer)
    seen = Seen(method, optimizer)
    for _ in range(4):
        learn(net, optimizer)
    for weight, new in seen.new.items():
        mask = seen.mask[weight]
        count = int(new.sum() - mask.sum())
        assert count > 20
        assert torch.equal(new, mask | largest(seen.gradient[weight].abs(), ~mask, count))


def test_twin_critics_of_one_optimizer_grow_by_their_own_gradients() -> None:
    agent = small_sac()
    ne = NeuroplasticExpansion(every=4, end=20, prune="none", networks=("critic_*",))
    seen: dict[str, Seen] = {}

    def attach(ctx: Context) -> None:
        if not seen and "critic_2" in ne._layers:
            seen.update({name: Seen(ne, agent.optimizers["critic"], name) for name in ("critic_1", "critic_2")})

    run_sac([ne, Check(attach)], steps=12, agent=agent)  # the fourth update is the event
    assert agent.updates == 4
    for name in ("critic_1", "critic_2"):
        for weight, new in seen[name].new.items():
            mask = seen[name].mask[weight]
            count = int(new.sum() - mask.sum())
            assert count > 5
            gradient = seen[name].gradient[weight].abs()
            best = largest(gradient, ~mask, count)  # dead neurons tie at 0: compare the gradients themselves
            assert torch.equal(gradient[new & ~mask].sort().values, gradient[best].sort().values)


def test_official_prunes_the_smallest_and_regrows_by_gradient() -> None:
    net = mlp(32)
    method, optimizer, _ = start(net, preset="official", every=3, grow_rate=0.1, dense_ends=True)
    learn(net, optimizer)
    seen = Seen(method, optimizer)
    for _ in range(2):
        learn(net, optimizer)
    for weight, new in seen.new.items():
        mask, live = seen.mask[weight], int(seen.mask[weight].sum())
        grow = int(0.6 * 1024 * 0.1)
        cut = largest(-seen.weight[weight].abs(), mask, int(0.4 * grow))
        kept = mask & ~cut
        assert torch.equal(new, kept | largest(seen.gradient[weight].abs(), ~kept, grow))
        assert int(new.sum()) == live + grow - int(0.4 * grow)


def test_rigl_rewires_by_magnitude_and_gradient_and_set_at_random() -> None:
    results = {}
    for preset in ("rigl", "set"):
        net = mlp()
        method, optimizer, _ = start(net, preset=preset, every=3, end=30, initial_density=0.4)
        learn(net, optimizer)
        seen = Seen(method, optimizer)
        for _ in range(2):
            learn(net, optimizer)
        weight = net[2].weight
        mask, live = seen.mask[weight], int(seen.mask[weight].sum())
        fraction = (0.5 if preset == "rigl" else 0.3) / 2 * (1 + torch.cos(torch.tensor(torch.pi * 3 / 30)))
        count = int(live * float(fraction))
        kept = mask & ~largest(-seen.weight[weight].abs(), mask, count)
        by_gradient = kept | largest(seen.gradient[weight].abs(), ~kept, count)
        assert not (kept & ~seen.new[weight]).any()
        assert int(seen.new[weight].sum()) == live
        results[preset] = torch.equal(seen.new[weight], by_gradient)
    assert results == {"rigl": True, "set": False}


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_dormant_neurons_are_cut_loose_up_to_a_share_of_the_growth(grow: str) -> None:
    net = mlp()
    with torch.no_grad():
        net[2].bias[:8] = -100
    method, optimizer, writer = start(net, every=5, end=20, prune_ratio=0.25, initial_density=0.4, grow=grow)
    learn(net, optimizer)
    seen = Seen(method, optimizer)
    for _ in range(4):
        with torch.no_grad():
            dormant = (net[:4](batch()) == 0).all(0)
        learn(net, optimizer)
    mask, new = seen.mask[net[2].weight], seen.new[net[2].weight]
    pruned, net_growth = mask & ~new, int(new.sum() - mask.sum())
    assert int(pruned.sum()) == int(0.25 * net_growth) > 3
    assert dormant[:8].all()
    assert not dormant.all()
    assert not pruned[~dormant].any()
    assert writer.named("ne")[0]["layers"]["2"]["pruned"] == int(pruned.sum())


@pytest.mark.parametrize("kind", ["conv nchw", "transposed", "grouped"])
def test_convolutions_prune_the_channels_that_are_dormant(kind: str) -> None:
    net, inputs = models.build(kind)
    settings = {"dense_ends": False, "initial_density": 0.5, "final_density": 0.9, "prune_ratio": 0.9}
    method, optimizer, _ = start(net, every=3, end=12, **settings)
    with torch.no_grad():
        net[0].bias[0] = -100
    learn(net, optimizer, *inputs)
    seen = Seen(method, optimizer)
    for _ in range(2):
        learn(net, optimizer, *inputs)
    weight = net[0].weight
    pruned = seen.mask[weight] & ~seen.new[weight]
    assert pruned.any()
    channels = pruned.transpose(0, 1) if kind == "transposed" else pruned
    assert not channels[1:].any()
    assert_masked(method, method._ctx)


def test_what_cannot_be_ranked_is_left_alone() -> None:
    net = mlp()
    method, optimizer, writer = start(net, "sgd", every=2, end=20)
    learn(net, optimizer)
    masks = method._masks["net"]
    before = masks[net[2].weight].clone()
    net[2].weight.register_hook(lambda g: g.index_fill(0, torch.tensor([0], device=g.device), torch.inf))
    learn(net, optimizer)
    assert torch.equal(masks[net[2].weight], before)
    assert writer.named("ne")[0]["layers"]["2"]["grown"] == 0
    assert writer.named("ne")[0]["layers"]["4"]["grown"] > 0


# -- the start ---------------------------------------------------------------------------------------------------------


def test_only_the_first_pass_of_the_run_itself_counts() -> None:
    net = mlp()
    net(batch())  # before training starts
    method, optimizer, _ = start(net, every=10, end=100)
    before = copy.deepcopy(net.state_dict())
    measure(net, (batch(), torch.zeros(64, 2)), nn.functional.mse_loss)  # leaves no trace
    clone = copy.deepcopy(net)
    assert clone(batch()).isfinite().all()
    assert not clone._forward_pre_hooks or len(method._masks) == 0
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
    with torch.no_grad():
        net(batch())  # acting
    assert method._masks["net"].density() == pytest.approx(0.2, abs=1e-3)
    assert_masked(method, method._ctx)
    assert all(weight.all() for weight in (net[0].weight, net[6].weight, net[2].bias))
    learn(net, optimizer)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("order", [("net", "target"), ("target", "net")])
def test_targets_have_the_masks_whichever_runs_first(order: tuple[str, str]) -> None:
    net = mlp()
    target = copy.deepcopy(net).requires_grad_(False)
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, _ = plain_loop(net, optimizer)
    ctx.targets["net"] = target
    method = NeuroplasticExpansion(every=2, end=20)
    method.on_train_start(ctx)
    for name in order:
        {"net": net, "target": target}[name](batch())
        assert_masked(method, ctx)
        assert len(method._masks) == 1
    for _ in range(6):
        learn(net, optimizer)
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        assert_masked(method, ctx)
    assert not target._forward_pre_hooks


def test_a_target_that_is_no_copy_is_refused() -> None:
    net = mlp()
    optimizer = OPTIMIZERS["adam"](net.parameters())
    ctx, _ = plain_loop(net, optimizer)
    ctx.targets["net"] = mlp(23)
    NeuroplasticExpansion().on_train_start(ctx)
    with pytest.raises(ValueError, match="the target of net is no copy of it: 2 differs"):
        net(batch())


def test_a_shared_layer_is_masked_once() -> None:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    nets = {n: nn.Sequential(trunk, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)) for n in ("a", "b")}
    optimizer = OPTIMIZERS["adam"]({p: 0 for net in nets.values() for p in net.parameters()})
    ctx, _ = plain_loop(nets["a"], optimizer)
    ctx.networks = dict(nets)
    method = NeuroplasticExpansion(every=2, end=20)
    method.on_train_start(ctx)
    for _ in range(4):
        optimizer.zero_grad()
        out = nets["a"](batch()) + nets["b"](batch())
        out.square().mean().backward()  # b's first pass comes with a's graph alive
        optimizer.step()
        assert_masked(method, ctx)
    assert [layer.name for layer in method._layers["a"]] == ["0.2", "1"]
    assert [layer.name for layer in method._layers["b"]] == ["1"]


@pytest.mark.slow_off_the_cpu
def test_sac_is_sparse_from_its_first_update() -> None:
    ne = NeuroplasticExpansion(every=3, end=30)
    run_sac([ne, Check(lambda ctx: assert_masked(ne, ctx))], steps=60)
    assert {name: [la.name for la in layers] for name, layers in ne._layers.items()} == {
        "critic_1": ["q.2"], "critic_2": ["q.2"], "actor": ["trunk.2"],
    }  # fmt: skip
    assert ne._masks["actor"].density() > 0.5
    assert ne.counts["grown"] > ne.counts["pruned"]


# -- review ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("active", "share"), [(0.1, 1 - 0.451), (0.3, 1 - 0.5013), (0.41, 0.0), (0.9, 0.0)])
def test_reviews_come_with_the_probability_of_the_gate(active: float, share: float) -> None:
    net, buffer = mlp(), ReplayBuffer(100, (1,), (1,))
    buffer.clock = 100
    ctx = Context({"net": net}, {"net": OPTIMIZERS["sgd"](net.parameters())}, buffer=buffer)
    method = NeuroplasticExpansion(review=True)
    method.on_train_start(ctx)
    method.on_update_start(ctx)
    assert not buffer.weights  # nothing measured yet
    method._active = {"net": active}
    reviews = 0
    for _ in range(3000):
        method.on_update_start(ctx)
        if buffer.weights:
            reviews += 1
            assert int(buffer.draw_ages(4).min()) > 70
    assert reviews / 3000 == pytest.approx(share, abs=0.03)
    assert method.counts.get("reviews", 0) == reviews
    method.on_train_end(ctx)
    assert not buffer.weights


def test_the_activity_that_gates_is_that_of_the_critics() -> None:
    net, buffer = mlp(), ReplayBuffer(100, (1,), (1,))
    buffer.clock = 100
    networks = {"actor": mlp(), "critic": net}
    optimizers = {name: OPTIMIZERS["sgd"](n.parameters()) for name, n in networks.items()}
    ctx = Context(networks, optimizers, targets={"critic": copy.deepcopy(net)}, buffer=buffer)
    method = NeuroplasticExpansion(review=True)
    method.on_train_start(ctx)
    method._active = {"actor": 0.0, "critic": 0.5}
    for _ in range(20):
        method.on_update_start(ctx)
        assert not buffer.weights


def test_activity_is_measured_and_logged() -> None:
    net = mlp()
    _, optimizer, writer = start(net, "sgd", every=2, end=20)
    learn(net, optimizer)
    with torch.no_grad():
        hidden = torch.stack([net[: i + 1](batch()) for i in (1, 3, 5)])
    learn(net, optimizer)
    assert writer.scalars["interventions/ne/net/active"] == [
        pytest.approx(float((hidden > 0).float().mean()), abs=0.02)
    ]


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 3, 4, 18])
@pytest.mark.parametrize("settings", [{}, {"preset": "official", "grow_rate": 0.2}, {"preset": "set"}], ids=str)
def test_a_resumed_run_goes_on_bit_by_bit(settings: dict[str, Any], stop: int) -> None:
    settings = {"every": 4, "end": 40, **settings}
    net = mlp()
    method, optimizer, _ = start(net, **settings)
    for _ in range(stop):
        learn(net, optimizer)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict(), method.state_dict()))
    for _ in range(20):
        learn(net, optimizer)

    twin = mlp()
    twin.load_state_dict(state[0])
    again = OPTIMIZERS["adam"](twin.parameters())
    again.load_state_dict(state[1])
    other, ctx = NeuroplasticExpansion(**settings), plain_loop(twin, again)[0]
    begin([other], ctx, [state[2]])
    for _ in range(20):
        learn(twin, again)
    assert all(map(torch.equal, net.parameters(), twin.parameters()))
    assert repr(other.state_dict()) == repr(method.state_dict())


def test_training_that_is_started_again_keeps_its_topology() -> None:
    net = mlp()
    method, optimizer, _ = start(net, every=4, end=40)
    for _ in range(6):
        learn(net, optimizer)
    before = method._masks["net"][net[2].weight].clone()
    method.on_train_end(method._ctx)
    begin([method], method._ctx, [method.state_dict()])
    learn(net, optimizer)
    assert torch.equal(method._masks["net"][net[2].weight], before)
    learn(net, optimizer)  # the eighth step
    assert method.counts["applications"] == 2


def test_a_state_of_another_network_is_refused() -> None:
    net = mlp()
    method, optimizer, _ = start(net, every=4, end=40)
    learn(net, optimizer)
    short = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    other = NeuroplasticExpansion(every=4, end=40)
    with pytest.raises(ValueError, match="the saved run masked 4, which net lacks"):
        begin([other], plain_loop(short, OPTIMIZERS["adam"](short.parameters()))[0], [method.state_dict()])


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"initial_density": 0.0},
        {"initial_density": 0.8, "final_density": 0.5},
        {"final_density": 1.5},
        {"every": 0},
        {"every": 10, "end": 5},
        {"prune_ratio": 1.0},
        {"grow_rate": 2.0},
        {"rewire": -0.1},
        {"review_share": 0.0},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="NeuroplasticExpansion needs"):
        NeuroplasticExpansion(**settings)


def test_a_network_without_a_middle_is_refused_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="with dense_ends=False these become sparse too"):
        start(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))


def test_a_network_whose_middle_never_runs_is_refused_in_its_first_pass() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.spare, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())

    net = Spare()
    start(net)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="with dense_ends=False these become sparse too"):
        net(batch())


def test_compiled_networks_are_refused() -> None:
    net: Callable[..., Any] = mlp()
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(ValueError, match="compiled"):
        start(compiled)  # type: ignore[arg-type]
