"""Plasticity injection: the same outputs, a frozen original, a head that learns, and no nesting."""

import copy
from typing import Any

import models
import pytest
import torch
from test_reset import (
    OPTIMIZERS,
    Recorder,
    assert_all_move,
    assert_all_trained,
    bits,
    plain_loop,
    same,
    small_sac,
    take_step,
    train_sac,
)
from torch import Tensor, nn

from plasticity import Monitor
from plasticity.agents.train import context
from plasticity.callback import Context, start
from plasticity.interventions.injection import (
    Head,
    Injected,
    PlasticityInjection,
    exchange_,
    find_heads,
    inject_,
    restructure_,
)
from plasticity.interventions.reset import Reset
from plasticity.interventions.shrink_perturb import ShrinkPerturb

pytestmark = pytest.mark.usefixtures("everywhere")


def injected_loop(name: str = "mlp", kind: str = "adam", steps: int = 3, **settings: Any) -> tuple[nn.Module, Context]:
    """A plain loop whose network was injected after ``steps`` steps, and its context."""
    net, inputs = models.build(name)
    ctx = plain_loop(net, OPTIMIZERS[kind])
    method = PlasticityInjection(at=(steps,), **settings)
    method.on_train_start(ctx)
    for _ in range(steps):
        take_step(ctx, *inputs)
    return net, ctx


# --- which modules are the head ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", [Head("", ("2", "3", "4"), True)]),
        ("norm after", [Head("", ("3", "4", "5", "6"), True)]),
        ("conv nchw", [Head("", ("5", "6", "7"), True)]),
        ("norm before", [Head("", ("0", "1", "2", "3"), True)]),
        ("two heads", []),
        ("functional", []),
    ],
)
def test_the_head_is_the_last_two_weight_layers(name: str, expected: list[Head]) -> None:
    assert find_heads(models.build(name)[0]) == expected


def test_heads_inside_and_by_name() -> None:
    _, agent = small_sac()
    assert find_heads(agent.networks["critic_1"]) == [Head("q", ("2", "3", "4"), True)]
    assert find_heads(agent.networks["actor"]) == []
    net, _ = models.build("two heads")
    assert find_heads(net, "*[ng]*") == [Head("", ("mean",), False), Head("", ("log_std",), False)]
    nested = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), nn.Identity())
    assert find_heads(nested) == [Head("1", ("0", "1", "2"), True)]
    assert find_heads(nested, "*") == [Head("", (n,), False) for n in "012"]


# --- the injection itself ---


@pytest.mark.parametrize("name", ["mlp", "norm after", "conv nchw", "batchnorm conv", "norm before"])
def test_outputs_are_the_same_bits_and_the_new_head_is_drawn_as_at_first(name: str) -> None:
    net, inputs = models.build(name)
    head = "5" if name == "batchnorm conv" else None  # its default head would hold dropout
    method = PlasticityInjection(at=(3,), head=head)
    ctx = plain_loop(net, OPTIMIZERS["adam"])
    method.on_train_start(ctx)
    for _ in range(2):
        take_step(ctx, *inputs)
    twin = copy.deepcopy(net)
    other = plain_loop(twin)
    other.optimizers["net"].load_state_dict(copy.deepcopy(ctx.optimizers["net"].state_dict()))
    torch.manual_seed(0)
    take_step(other, *inputs)
    torch.manual_seed(0)
    take_step(ctx, *inputs)
    assert any(isinstance(m, Injected) for m in net.modules())
    for training in (False, True):
        torch.manual_seed(0)
        expected = copy.deepcopy(twin).train(training)(*inputs)
        torch.manual_seed(0)
        assert torch.equal(copy.deepcopy(net).train(training)(*inputs), expected)
    (details,) = ctx.writer.named("plasticity_injection")  # type: ignore[union-attr]
    assert details["networks"]["net"]["function_change"] == 0.0


def test_the_new_head_is_fresh() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 2))
    nn.init.orthogonal_(net[2].weight, 2.0)
    nn.init.zeros_(net[2].bias)
    ctx = plain_loop(net)
    method = PlasticityInjection(at=(1,), seed=5)
    method.on_train_start(ctx)
    take_step(ctx)
    injected = net[2]
    assert isinstance(injected, Injected)
    assert list(injected.new._modules) == ["2", "3", "4", "5"]
    first = injected.new[0]
    torch.testing.assert_close(first.weight @ first.weight.T, 4 * torch.eye(64), atol=1e-4, rtol=0)
    assert not first.bias.any()
    assert torch.equal(injected.new[1].weight, torch.ones(64))
    assert not torch.equal(first.weight, injected.frozen[0].weight)
    assert same(injected.new.state_dict(), injected.copy.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_only_the_new_head_and_the_encoder_are_trained(kind: str) -> None:
    net, inputs = models.build("mlp")
    ctx = plain_loop(net, OPTIMIZERS[kind])
    optimizer = ctx.optimizers["net"]
    method = PlasticityInjection(every=None, at=(4,))
    method.on_train_start(ctx)
    for _ in range(3):
        take_step(ctx, *inputs)
    twin = copy.deepcopy(net)
    other = plain_loop(twin, OPTIMIZERS[kind])
    other.optimizers["net"].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_step(ctx, *inputs)
    take_step(other, *inputs)
    injected = net[2]
    assert isinstance(injected, Injected)
    assert_all_trained(ctx)
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]
    for parameter, old in zip(net[0].parameters(), twin[0].parameters(), strict=True):
        mine, theirs = optimizer.state[parameter], other.optimizers["net"].state[old]
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(torch.as_tensor(mine[k]), torch.as_tensor(theirs[k])) for k in mine)
    assert not any(p in optimizer.state for part in (injected.frozen, injected.copy) for p in part.parameters())
    assert all(p.grad is None for p in injected.parameters())
    fresh = OPTIMIZERS[kind](injected.new.parameters())
    for p in injected.new.parameters():
        state = optimizer.state.get(p, {})
        first = fresh.state.get(p, {}) or {k: torch.zeros_like(torch.as_tensor(v)) for k, v in state.items()}
        for key in state if kind != "nadam" else ():  # whose mu_product starts at 1
            assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(first[key])), key
    assert_all_move(ctx, lambda: take_step(ctx, *inputs))


def test_gradients_reach_the_encoder_through_all_three() -> None:
    net, ctx = injected_loop()
    x = torch.randn(8, 4)
    for _ in range(4):
        take_step(ctx, x)  # the new head has left its copy
    phi = net[1](net[0](x)).detach().requires_grad_()
    injected = net[2]
    (whole,) = torch.autograd.grad(injected(phi).sum(), phi)
    parts = [torch.autograd.grad(part(phi).sum(), phi)[0] for part in (injected.frozen, injected.new, injected.copy)]
    assert all(part.abs().sum() > 0 for part in parts)
    torch.testing.assert_close(whole, parts[0] + parts[1] - parts[2])


def test_a_second_injection_is_refused() -> None:
    net, _ = models.build("mlp")
    inject_(net, find_heads(net)[0])
    for head in (Head("", ("2",), False), Head("2.new", ("4",), False), Head("", ("0", "1", "2"), True)):
        with pytest.raises(ValueError, match="would nest"):
            inject_(net, head)


def test_a_trigger_that_fires_again_is_refused_and_said() -> None:
    net, _ = models.build("mlp")
    ctx = plain_loop(net)
    method = PlasticityInjection(when="loss > 1")
    method.on_train_start(ctx)
    for step in range(1000):
        ctx.latest["loss"] = 2.0 * (step % 2)
        method._after_step(ctx.optimizers["net"], (), {})
    assert sum(isinstance(m, Injected) for m in net.modules()) == 1
    assert method.counts == {"applications": 1, "heads": 1}
    (refused,) = ctx.writer.named("plasticity_injection_refused")  # type: ignore[union-attr]
    assert refused["injected before"] == ["net"]


def test_outputs_may_be_nested() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Any:
            return {"a": self.a(x), "rest": (self.b(x), [self.a(x)])}

    net = nn.Sequential(nn.Linear(4, 3), Two())
    x = torch.randn(5, 4)
    before = net(x)
    inject_(net, Head("", ("1",), False))
    after = net(x)
    assert torch.equal(after["a"], before["a"])
    assert torch.equal(after["rest"][1][0], before["rest"][1][0])


# --- on SAC ---


def test_sac_learns_on_with_injected_critics_and_targets() -> None:
    method = PlasticityInjection(at=(10,), clock="updates")
    agent, ctx, writer = train_sac([method])
    (details,) = writer.named("plasticity_injection")
    assert set(details["networks"]) == {"critic_1", "critic_2"}
    assert details["networks"]["critic_1"] == {"heads": ["q.2:"], "function_change": 0.0}
    (skipped,) = writer.named("plasticity_injection_skipped")
    assert list(skipped) == ["actor"]
    assert_all_trained(ctx)
    assert agent.networks["critic_1"].q[2].frozen[0].weight.grad is None
    assert not torch.equal(
        agent.networks["critic_1"].q[2].new[0].weight, agent.networks["critic_1"].q[2].copy[0].weight
    )
    before = bits(ctx)
    assert_all_move(ctx, agent.update)
    for name, now in bits(ctx).items():
        frozen = "critic" in name and (".copy." in name or ".frozen." in name) and name.startswith("networks")
        assert torch.equal(before[name], now) == (frozen or (name.startswith("targets") and ".copy." in name)), name


def test_targets_keep_their_function_and_then_follow() -> None:
    agent, ctx, _ = train_sac([])
    x, a = torch.randn(6, 1), torch.rand(6, 1)
    before = {key: target(x, a) for key, target in agent.targets.items()}
    method = PlasticityInjection(at=(1,), clock="updates")
    method.on_train_start(ctx)
    method.on_update_end(ctx, {})
    for key, target in agent.targets.items():
        assert torch.equal(target(x, a), before[key])
        assert not any(p.requires_grad for p in target.parameters())
        assert [n for n, _ in target.named_parameters()] == [n for n, _ in agent.networks[key].named_parameters()]


@pytest.mark.on_real_devices
def test_sac_with_one_that_never_fires_is_bit_identical() -> None:
    plain, ctx, _ = train_sac([])
    other, other_ctx, _ = train_sac([PlasticityInjection()])
    assert same(bits(ctx), bits(other_ctx))
    assert str(plain.state_dict()) == str(other.state_dict())


@pytest.mark.slow_off_the_cpu
def test_resume_rebuilds_the_heads_before_weights_are_loaded() -> None:
    method = PlasticityInjection(at=(10,), clock="updates")
    agent, _, _ = train_sac([method])
    saved = copy.deepcopy((agent.state_dict(), agent.buffer.state_dict(), method.state_dict()))
    metrics = [agent.update() for _ in range(3)]
    _, twin = small_sac(seed=3)
    again = PlasticityInjection(at=(10,), clock="updates")

    def load() -> None:
        twin.load_state_dict(saved[0])
        twin.buffer.load_state_dict(saved[1])

    start([again], context(twin, writer=Recorder()), [saved[2]], load)
    for expected in metrics:
        assert str(twin.update()) == str(expected)
    assert again.counts == method.counts
    assert_all_trained(context(twin))


def test_a_saved_network_is_loaded_by_its_keys() -> None:
    for name, head in (("mlp", None), ("two heads", "mean"), ("conv nchw", "5")):
        net, _ = injected_loop(name, head=head)
        twin, inputs = models.build(name, seed=5)
        state = net.state_dict()
        assert len(restructure_(twin, state)) == 1
        twin.load_state_dict(state)
        a, b = net(*inputs), twin(*inputs)
        assert str(a) == str(b)
        assert restructure_(twin, state) == []
        assert restructure_(models.build(name)[0], models.build(name)[0].state_dict()) == []


# --- with others ---


def test_probes_see_the_hidden_layer_of_the_new_head() -> None:
    net, ctx = injected_loop()
    with Monitor(net, passes="training") as monitor:
        take_step(ctx, torch.randn(32, 4))
    reading = monitor.read()
    for metric in ("dormancy", "grama"):
        assert reading.values[metric]["2.new.2"] == reading.values[metric]["2.new.2"], metric
    assert {"0", "2.new.2"} <= set(reading.num_neurons)


@pytest.mark.slow_off_the_cpu
def test_a_reset_after_an_injection_leaves_a_fresh_network_only() -> None:
    method, reset = PlasticityInjection(at=(10,), clock="updates"), Reset(at=(15,), clock="updates")
    agent, ctx, writer = train_sac([method, reset], steps=40)
    assert len(writer.named("reset")) == 1
    assert_all_trained(ctx)
    reset.apply(ctx)
    x, a = torch.randn(6, 1), torch.rand(6, 1)
    for key, critic in agent.networks.items():
        if key != "actor":
            injected = critic.q[2]
            alone = injected.new(critic.q[1](critic.q[0](torch.cat([x, a], -1)))).squeeze(-1)
            torch.testing.assert_close(critic(x, a), alone)
            assert same(critic.state_dict(), agent.targets[key].state_dict())


def test_shrink_and_perturb_leaves_the_frozen_heads_alone() -> None:
    net, _ = models.build("mlp")
    ctx = plain_loop(net)
    methods = [PlasticityInjection(at=(2,)), ShrinkPerturb(preset="soft", shrink=0.9)]
    for method in methods:
        method.on_train_start(ctx)
    for _ in range(2):
        take_step(ctx)
    before = bits(ctx)
    for _ in range(2):
        take_step(ctx)
    for name, now in bits(ctx).items():
        assert torch.equal(now, before[name]) == (".frozen." in name or ".copy." in name), name


def test_what_does_not_fit_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="applied once"):
        PlasticityInjection(every=100)
    with pytest.raises(ValueError, match="applied once"):
        PlasticityInjection(at=(1, 2))
    two = models.build("two heads")[0]
    with pytest.raises(ValueError, match=r"finds no head in net: there is no nn\.Sequential"):
        PlasticityInjection().on_train_start(plain_loop(two))
    with pytest.raises(ValueError, match=r"no module matches 'q'; it has \['mean', 'log_std', 'a', 'act'\]"):
        PlasticityInjection(head="q", networks=("net",)).on_train_start(plain_loop(two))
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tied[0].weight = tied[2].weight
    with pytest.raises(ValueError, match=r"2\.weight of net is also used outside"):
        PlasticityInjection().on_train_start(plain_loop(tied))
    drop = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="has dropout"):
        PlasticityInjection().on_train_start(plain_loop(drop))


def test_exchange_keeps_the_order_of_a_group() -> None:
    net, _ = models.build("mlp")
    groups = [
        {"params": list(net[2].parameters()), "lr": 0.5},
        {"params": [*net[0].parameters(), *net[4].parameters()]},
    ]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    injected = inject_(net, find_heads(net)[0])
    exchange_([optimizer], injected)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in injected.new[0].parameters()]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [
        *(id(p) for p in net[0].parameters()),
        *(id(p) for p in injected.new[2].parameters()),
    ]


class Attention(nn.Module):
    """A part that keeps keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, past_key_values: Any = None) -> Tensor:
        """Attend."""
        return self.q(x) + self.k(x)


class Cached(Attention):
    """The same by another name."""

    def forward(self, x: Tensor, kv_cache: Any = None) -> Tensor:  # type: ignore[override]
        """Attend."""
        return super().forward(x)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (
            lambda: {"heads": nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})},
            "is a ModuleDict, whose parts",
        ),
        (lambda: {"heads": nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])}, "is a ModuleList, whose parts"),
        (lambda: {"heads": nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4)])}, "is a ModuleList"),
        (lambda: {"heads": Attention()}, r"writes to a cache \(heads\)"),
        (lambda: {"heads": nn.Sequential(nn.Linear(4, 4), Cached())}, r"writes to a cache"),
    ],
)
def test_structures_that_would_not_be_kept_are_refused(parts: Any, reason: str) -> None:
    network = models.Net(lambda s, x: x, trunk=nn.Linear(4, 4), **parts())
    (head,) = find_heads(network)
    before = dict(network.named_modules())
    with pytest.raises(ValueError, match=reason):
        inject_(network, head)
    assert dict(network.named_modules()) == before
